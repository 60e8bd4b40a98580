"""Jobs: which there are, and what people say of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.operations.pages import page
from config_server.rules.ca_renewal import Stage
from config_server.store import audit, ca, jobs, journal
from config_server.store.database import Connection
from shared.api.jobs import JobAct, JobList, JobQuery, JobView
from shared.api.route import Nothing
from shared.errors import JobActError, JobAttentionError
from shared.status import Problem
from shared.trust import anchors, identity

DRIVEN: Final = "jobs"
"""The bell that is rung when there is something to do for a job."""
Cancel = Callable[[Call, journal.Job], Awaitable[None]]
"""Behind it the job is cancelled."""
_Act = Callable[[Connection, str], bool]


class Jobs:
    def __init__(self, control: Control, cancels: Mapping[str, Cancel]) -> None:
        """`cancels`: by kind, where more has to be done at once than that the job turns back."""
        self._control = control
        self._cancels = cancels

    async def all(self, _call: Call, body: JobQuery) -> JobList:
        more = msgspec.structs.replace(body, limit=body.limit + 1)
        shown, next_ = page(
            await self._control.db.run(lambda db: jobs.newest(db, more)), body, lambda job: job.id
        )
        return JobList(jobs=shown, next=next_)

    async def one(self, call: Call, _body: Nothing) -> JobView:
        return await self._control.db.run(lambda db: jobs.get(db, call.path["id"]))

    async def cancel(self, call: Call, _body: Nothing) -> JobView:
        """A second time it is no error: it is being undone, or was. Raises JobNotFoundError, JobActError, and what such a kind's raises."""
        now_ns, id_ = self._control.now_ns(), call.path["id"]
        shown = await self._control.db.run(lambda db: jobs.get(db, id_))
        if (cancel := self._cancels.get(shown.kind)) is not None and JobAct.CANCEL in shown.allowed:
            await cancel(call, await self._control.db.run(lambda db: journal.find(db, id_)))

        def work(db: Connection, id_: str) -> bool:
            turned = journal.cancel(db, id_, call.who, now_ns)
            _check_cancel(db, id_, self._control.has.signer)
            return turned

        return await self._act(call, JobAct.CANCEL, work, done=_is_cancelled)

    async def retry(self, call: Call, _body: Nothing) -> JobView:
        return await self._act(call, JobAct.RETRY, journal.again)

    async def abandon(self, call: Call, _body: Nothing) -> JobView:
        """Raises JobNotFoundError, JobActError."""
        now_ns = self._control.now_ns()

        def work(db: Connection, id_: str) -> bool:
            if (job := journal.find(db, id_)).kind in self._cancels:
                raise JobActError(
                    f"'{JobAct.ABANDON}' was refused for job '{id_}'",
                    cause=f"the {job.kind} itself would go on, and nobody would see to it",
                    action=f"Take it back (understudy job cancel {id_}), or say it again.",
                )
            return journal.abandon(db, id_, now_ns)

        return await self._act(call, JobAct.ABANDON, work)

    async def _act(
        self, call: Call, act: JobAct, work: _Act, *, done: Callable[[JobView], bool] = lambda _job: False
    ) -> JobView:
        """Raises JobNotFoundError, JobActError."""
        now_ns = self._control.now_ns()

        def acted(db: Connection) -> JobView:
            before = jobs.get(db, call.path["id"])
            if done(before):
                return before
            if act not in before.allowed or not work(db, before.id):
                can = ", ".join(before.allowed)
                raise JobActError(
                    f"'{act}' was refused for job '{before.id}'",
                    cause=f"it is {before.state}" + (f"; possible is: {can}" if can else ""),
                )
            detail = {"job": before.id, "kind": before.kind, "state": before.state}
            audit.add(db, call.who, f"job.{act}", before.machine, detail, now_ns)
            return jobs.get(db, before.id)

        job = await self._control.db.run(acted)
        self._control.bell.ring(DRIVEN)
        return job


def problem_of(job: JobView) -> Problem:
    """Of one that needs attention."""
    can = ", ".join(f"understudy job {act} {job.id}" for act in job.allowed)
    of = f" of {job.machine}" if job.machine else ""
    error = JobAttentionError(
        f"The {job.kind}{of} stands still (job {job.id})",
        cause=job.waits,
        action=f"See it (understudy job show {job.id}), and say how it goes on: {can}.",
    )
    return Problem(**error.as_dict(), object=job.machine, key=job.id)


def _check_cancel(db: Connection, id_: str, signer: str) -> None:
    """In the transaction that turned it. `signer`: whose key signs by this server's files, which may be ahead of a database that was put
    back. Raises JobActError where it cannot be taken back."""
    renewal = ca.renewal(db)
    if renewal is None or renewal.job != id_:
        return
    new = anchors.fingerprint(identity.only_certificate(renewal.new))
    if renewal.stage in (Stage.SWITCHED, Stage.DROPPED) or (renewal.stage is Stage.MADE and new == signer):
        raise switched()


def switched() -> JobActError:
    return JobActError(
        "The renewal of the CA was not cancelled",
        cause="the new CA signs already, and daemons have its certificates",
        action="Let it go on: nobody is locked out while it waits. Is the new CA not wanted either: renew once more when it has ended.",
    )


def _is_cancelled(job: JobView) -> bool:
    return bool(job.cancelled_by)
