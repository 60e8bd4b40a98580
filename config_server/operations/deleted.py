"""What a process server or a master target is told of machines that were deleted: which of the containers that it names.

A daemon finds that a container is gone, and cannot tell a deletion from storage that forgot; this server can, as it did it, because a
person wanted it (deletion_sweep.py). It is written down with the deletion's last step, in the same transaction, and kept for daemons that
come later. It is of the container, since the name may be another machine's by then; and a daemon is told of what it names alone, so that
no answer grows with the years. What that daemon does then: process_server/deletions.py, master_target/service.py.

A container that was brought back (container soft delete) is somebody's again. Were it lost later, as behind a failover, what daemons have
of it must not go for a deletion from before. So it is looked for in storage before it is said, and where it is there, what was written
down is forgotten for good: that is at the first report of whoever has to do with it. While storage cannot tell, nothing is said. And as a
deletion does, it counts in the incarnation of the database in which it was done: a backup does not know what was brought back since.
"""

from __future__ import annotations

from typing import Final

from config_server.operations.control import Control
from config_server.rules.clock import SECOND_NS
from config_server.store import deleted
from shared.blob import Retry
from shared.daemon import logging
from shared.errors import DatabaseError, IntegrityError, StorageError
from shared.status import MasterTargetReport, ProcessServerReport, Report

_log = logging.get()
_ASK: Final = Retry(deadline_s=0.0, attempt_s=2.0)
"""A daemon waits for its answer; it asks again with the next report."""
_KNOWN_NS: Final = 30 * SECOND_NS
"""So long it is not asked again whether a container is there."""


class Deleted:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._looked: dict[str, tuple[int, bool]] = {}
        """By container: when storage was asked (monotonic), and whether it is gone, for all that storage said."""

    async def of(self, report: Report) -> list[str]:
        asked = _named(report)
        if not asked or not self._control.storage.place:
            return []
        try:
            found = await self._control.db.run(lambda db: deleted.among(db, asked))
            return [name for name, machine in found.items() if await self._is_gone(name, machine)]
        except DatabaseError:
            return []  # it says so itself

    async def _is_gone(self, container: str, machine: str) -> bool:
        """Raises DatabaseError."""
        at_ns, is_gone = self._looked.get(container, (0, False))
        now_ns = self._control.mono_ns()
        if at_ns and now_ns - at_ns < _KNOWN_NS:
            return is_gone
        try:
            is_there = await self._control.storage.machines().with_retry(_ASK).has(machine, container)
        except (StorageError, IntegrityError) as exc:
            _log.info("deleted container not looked for", container=container, **exc.as_dict())
            is_there = None
        if is_there:
            _log.warning("a deleted container is there again", container=container, machine=machine)
            await self._control.db.run(lambda db: deleted.forget(db, container))
            self._looked.pop(container, None)
            return False
        self._looked[container] = self._control.mono_ns(), is_there is False
        return is_there is False


def _named(report: Report) -> set[str]:
    if isinstance(report, ProcessServerReport):
        return {container for stream in report.machines.values() for container in stream.containers}
    if isinstance(report, MasterTargetReport):
        return {apply.container for apply in report.machines.values()} - {""}
    return set()
