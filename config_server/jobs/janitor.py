"""What was undone is looked for once more: a request of an owner that died, or stood still, may have its effect after another undid it.

A step stays `undone` until nothing of it was seen for as long as any request of its kind may be on its way; each time something is found it
is removed, and the time begins anew. Then it is `gone`. The times are of this host's clock: of two hosts whose clocks differ the one that
is ahead would look too short a time, so what is added is more than clocks may differ before that is an event (US473).

**It deletes only what a job of this database ended undone.** What nobody's job explains is told, and left: it may be of another
installation, or of a job that a database from a backup does not know. What a person took over (`abandoned`) is his.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from config_server.jobs.kinds import Kind, Kinds, Stands, Waits
from config_server.rules.clock import SECOND_NS
from config_server.store import journal
from config_server.store.database import Connection, Database
from config_server.store.journal import Entry, Job
from shared.api.jobs import StepState
from shared.daemon import logging
from shared.errors import DatabaseError, UnderstudyError

_log = logging.get()
_CLOCKS_S: Final = 120.0


class Janitor:
    def __init__(self, db: Database, kinds: Kinds, now_ns: Callable[[], int]) -> None:
        self._db = db
        self._kinds = kinds
        self._now_ns = now_ns

    async def look(self) -> None:
        """Once. What it cannot do is done by the next look. Raises DatabaseError; what nobody thought of, behind the last job."""
        bugs = list[Exception]()
        for job in await self._db.run(journal.undone):
            if (job.kind, job.version) in self._kinds.known:
                try:
                    await self._look_at(job, self._kinds.of(job))
                except DatabaseError:
                    raise
                except Exception as exc:  # noqa: BLE001 - it hinders no look at the others
                    bugs.append(exc)
        if bugs:
            raise bugs[0]

    async def _look_at(self, job: Job, kind: Kind) -> None:
        for name in reversed(kind.names):
            entry = await self._db.run(partial(_undone, job=job, step=name))
            if entry is not None:
                await self._look_for(job, kind, name, entry)

    async def _look_for(self, job: Job, kind: Kind, name: str, entry: Entry) -> None:
        begun_ns = self._now_ns()
        try:
            found = await kind.step(name).undo(job)
        except DatabaseError:
            raise
        except UnderstudyError as exc:
            _log.warning("not looked for what came late", job=job.id, step=name, **exc.as_dict())
            return
        if isinstance(found, (Waits, Stands)):
            return
        if found:
            _log.warning(
                "something came late, and was removed",
                job=job.id,
                kind=job.kind,
                step=name,
                machine=job.machine,
            )
            after = Entry(state=StepState.UNDONE, tries=0, undone_ns=begun_ns)
        elif begun_ns - entry.undone_ns > (kind.lasting_s + _CLOCKS_S) * SECOND_NS:
            after = Entry(state=StepState.GONE, tries=0, undone_ns=entry.undone_ns)
        else:
            return
        await self._db.run(lambda db: journal.put_undone(db, job.id, name, entry, after, begun_ns))


def _undone(db: Connection, job: Job, step: str) -> Entry | None:
    """Read anew before each step: the database may have been put back since the jobs were looked for, and then this one may go on."""
    if job.id not in [each.id for each in journal.undone(db)]:
        return None
    entry = journal.entries(db, job.id).get(step)
    return entry if entry is not None and entry.state is StepState.UNDONE else None
