"""Machines that were deleted: what is here of them goes, and nothing else.

Input: which containers the config server says were deleted with their machines, of those that the report named. Output: no folder, no file
and no log of them here, and no word of them in the reports.

Why nothing goes that somebody may still want (I5). A spool holds what was acknowledged and is not in storage, perhaps nowhere else. So it
takes two that cannot be wrong together:

- **The config server's word.** It is said of a container, whose name is random and never given twice, and not of a machine: a name may be
  used again. It is written down there when a person's deletion has gone its whole way (decision 0029), and is taken back when the container
  is in storage again. It comes with the answer to each report, over TLS, from whom orders come, too. A server that is older, is away, or
  lost that with its database says nothing, and nothing is what is done.
- **Storage, as this server sees it**: the container is not in the account's list, and the registry does not name it. While storage does not
  answer, or has it (somebody brought it back; or the config server looks at another account), all stays.

Storage alone decides nothing. After a failover of the account it has lost a container, or all of them, and what is here may be all that is
left. A deleted container and one that a failover lost look alike from here: the word tells them apart.

What is of a container. An open log knows it; an epoch's state, and the note of what was set aside, say it, with the epoch's claim
(spool/watermark.py, spool/aside.py). What says none, since it was written by an earlier version or is damaged, is of none, and stays. So
a name that is used again keeps what is of its new container, and its session goes on.

Killed anywhere, it is done by the next start. First goes what lies beside the spool, then the logs end, then files go; an epoch's folder
is first moved to a name that is no epoch's, since what is left of one that lost its state could not be told any more. What is still here
is named in the next report, so it is told again; that is how it is tried again, too. A server that was off during the deletion names what
it has when it is back. An empty folder is nobody's, and goes at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from process_server.reception.admission import Admission
from process_server.reception.boots import BootFiles
from process_server.spool.sides import Sides
from process_server.spool.spool import MachineLog, Spool
from shared import logging
from shared.blob import Retry
from shared.crashpoints import reach
from shared.errors import UnderstudyError
from shared.machine_storage import MachineStorage

_log = logging.get()
_BRIEFLY: Final = Retry(deadline_s=3.0)
"""It is tried again with the next answer."""


class Deletions:
    """`tell` what was said; `run` does it."""

    def __init__(
        self, storage: MachineStorage, spool: Spool, admission: Admission, sides: Sides, boots: BootFiles
    ) -> None:
        self._storage = storage.with_retry(_BRIEFLY)
        self._spool = spool
        self._admission = admission
        self._sides = sides
        self._boots = boots
        self._told: Collection[str] = ()
        self._news = asyncio.Event()
        self._failed: dict[str, str] = {}
        """Why the last try with a machine failed."""

    def tell(self, containers: Collection[str]) -> None:
        """Of those that the last report named, those that were deleted."""
        self._told = frozenset(containers)
        if containers:
            self._news.set()

    async def run(self) -> None:
        """Never returns. One machine's trouble hinders no other's."""
        while True:
            await self._news.wait()
            self._news.clear()
            for machine, log in list(self._spool.machines.items()):
                if not log.containers.isdisjoint(self._told):
                    await self._try(machine, log)

    async def _try(self, machine: str, log: MachineLog) -> None:
        before = self._failed.pop(machine, "")
        try:
            await self._drop(machine, log)
        except UnderstudyError as exc:
            self._failed[machine] = exc.cause
            if exc.cause != before:
                _log.warning("deleted machine not dropped yet", machine=machine, **exc.as_dict())

    async def _drop(self, machine: str, log: MachineLog) -> None:
        said = log.containers.intersection(self._told)
        gone = {container for container in said if not await self._storage.has(machine, container)}
        if not gone:
            return
        await log.look()
        if log.containers <= gone and self._admission.is_free(machine):
            await self._sides.forget(machine)
            await self._boots.forget(machine)
            reach("forget.beside-gone")
        for container in gone:
            self._storage.forget(machine, container)
        await log.forget(gone)
        _log.warning("deleted machine dropped", machine=machine, containers=sorted(gone))
        if not log.containers and self._admission.forget(machine):
            await self._spool.leave(machine)
