"""Jobs: which there are, and what people say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from config_server.jobs.kinds import Kinds, Refused
from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.operations.pages import page
from config_server.store import audit, jobs, journal
from config_server.store.database import Connection
from shared.api.jobs import Direction, JobAct, JobList, JobQuery, JobView
from shared.api.route import Nothing
from shared.errors import JobActError, JobAttentionError
from shared.status import Problem

DRIVEN: Final = "jobs"
"""The bell that is rung when there is something to do for a job."""
_Act = Callable[[Connection, str], bool]


class Jobs:
    def __init__(self, control: Control, kinds: Kinds) -> None:
        self._control = control
        self._kinds = kinds

    async def all(self, _call: Call, body: JobQuery) -> JobList:
        more = msgspec.structs.replace(body, limit=body.limit + 1)

        def work(db: Connection) -> list[JobView]:
            return [self._shown(db, job) for job in jobs.newest(db, more)]

        shown, next_ = page(await self._control.db.run(work), body, lambda job: job.id)
        return JobList(jobs=shown, next=next_)

    async def one(self, call: Call, _body: Nothing) -> JobView:
        return await self._control.db.run(lambda db: self._shown(db, jobs.get(db, call.path["id"])))

    async def cancel(self, call: Call, _body: Nothing) -> JobView:
        """A second time it is no error: it is being undone, or was. Raises JobNotFoundError, JobActError, and what such a kind's raises."""
        now_ns, id_ = self._control.now_ns(), call.path["id"]
        shown, job = await self._control.db.run(lambda db: (jobs.get(db, id_), journal.find(db, id_)))
        kind = self._kinds.like(job)
        if kind is not None and kind.cancel is not None and JobAct.CANCEL in shown.allowed:
            await kind.cancel(job, call.who)
        return await self._act(
            call,
            JobAct.CANCEL,
            lambda db, id_: journal.cancel(db, id_, call.who, now_ns),
            done=lambda job: bool(job.cancelled_by),
        )

    async def retry(self, call: Call, _body: Nothing) -> JobView:
        """Raises JobNotFoundError, JobActError."""
        return await self._act(call, JobAct.RETRY, journal.again)

    async def abandon(self, call: Call, _body: Nothing) -> JobView:
        """Raises JobNotFoundError, JobActError."""
        now_ns = self._control.now_ns()
        return await self._act(call, JobAct.ABANDON, lambda db, id_: journal.abandon(db, id_, now_ns))

    def standing(self, db: Connection) -> Iterable[Problem]:
        """Those that need a person's attention."""
        for job in jobs.that_need_attention(db):
            kind = self._kinds.like(journal.find(db, job.id))
            if kind is None or kind.is_told or job.direction is Direction.BACK:
                yield _problem(self._shown(db, job))

    async def _act(
        self, call: Call, act: JobAct, work: _Act, *, done: Callable[[JobView], bool] = lambda _job: False
    ) -> JobView:
        """Raises JobNotFoundError, JobActError, and why such a job's kind refuses it."""
        now_ns = self._control.now_ns()

        def acted(db: Connection) -> JobView:
            before = jobs.get(db, call.path["id"])
            if done(before):
                return self._shown(db, before)
            is_done = act in before.allowed and work(db, before.id)
            if (refused := self._refused(db, before).get(act)) is not None:
                raise refused
            if not is_done:
                can = ", ".join(self._shown(db, before).allowed)
                raise JobActError(
                    f"'{act}' was refused for job '{before.id}'",
                    cause=f"it is {before.state}" + (f"; possible is: {can}" if can else ""),
                )
            detail = {"job": before.id, "kind": before.kind, "state": before.state}
            audit.add(db, call.who, f"job.{act}", before.machine, detail, now_ns)
            return self._shown(db, jobs.get(db, before.id))

        job = await self._control.db.run(acted)
        self._control.bell.ring(DRIVEN)
        return job

    def _shown(self, db: Connection, job: JobView) -> JobView:
        """Without what its kind refuses now."""
        refused = self._refused(db, job)
        job.allowed = [act for act in job.allowed if act not in refused]
        return job

    def _refused(self, db: Connection, job: JobView) -> Refused:
        """Of one that nobody can say anything of, nothing is."""
        if not job.allowed:
            return {}
        there = journal.find(db, job.id)
        kind = self._kinds.like(there)
        return {} if kind is None else kind.refused(db, there)


def _problem(job: JobView) -> Problem:
    """Of one that needs attention."""
    can = ", ".join(f"understudy job {act} {job.id}" for act in job.allowed)
    of = f" of {job.machine}" if job.machine else ""
    error = JobAttentionError(
        f"The {job.kind}{of} stands still (job {job.id})",
        cause=job.waits,
        action=f"See it (understudy job show {job.id}), and say how it goes on: {can}.",
    )
    return Problem(**error.as_dict(), object=job.machine, key=job.id)
