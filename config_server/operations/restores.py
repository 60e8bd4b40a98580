"""Restores: access for somebody who runs one, and how it goes, which he says. What becomes of his words: restore_job.py."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from config_server.operations import machines
from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.operations.granting import Granting
from config_server.operations.jobs import DRIVEN
from config_server.operations.keys import grant_of
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.storage.deletion_note import NONE
from config_server.store import audit, deletions, events, jobs, journal, restores
from config_server.store.database import Connection
from shared.api.events import EventKind
from shared.api.jobs import Direction, JobProgress, JobState, JobView, StepState
from shared.api.restores import RestoreGrant, RestoreRequest
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import KeyUsedError, NotFoundError, StorageError, UsageError
from shared.status import Problem
from shared.vocabulary import Severity
from shared.waiting import wait_for

_log = logging.get()

_UNDER_WAY: Final = (JobState.RUNNING, JobState.WAITING)


class Restores:
    def __init__(self, control: Control, granting: Granting) -> None:
        self._control = control
        self._granting = granting

    async def begin(self, call: Call, body: RestoreRequest) -> RestoreGrant:
        """Give access to the machine's points. Every grant is in the audit log, whether or not it is used."""
        machine = await machines.known(self._control, call.path["machine"])
        store, key = await self._control.storage.access(machine.name)
        await self._keep_from_removal(machine, store)
        storage = await self._granting.give(
            call, machine.name, store, host=body.host, again=body.grant, request=body.request
        )
        now_ns = self._control.now_ns()

        def work(db: Connection) -> str:
            deletions.check_readable(db, machine.name, self._control.storage.place)
            id_ = "" if body.dry_run else _begun(db, call.who, machine.name, body, storage.id, now_ns)
            detail = {"job": id_, **msgspec.to_builtins(body)}
            audit.add(db, call.who, "restore.grant", machine.name, detail, now_ns)
            return id_

        if body.dry_run:
            id_ = await self._control.db.run(work)
        else:
            async with self._granting.kept(call, storage) as check:

                def in_turn(db: Connection) -> str:
                    check(db)
                    return work(db)

                id_ = await self._control.db.run(in_turn)
            self._control.bell.ring(DRIVEN)
        return RestoreGrant(job=id_, storage=storage, key=grant_of(key))

    async def _keep_from_removal(self, machine: Machine, store: BlobStore) -> None:
        """By a server that goes on with this one's database from before it was put back. Here nothing is deleted until a person says it
        again."""
        deletion, place = machine.deletion, self._control.storage.place
        if deletion is not None and await self._control.db.run(
            lambda db: deletions.is_of_before(db, deletion, place)
        ):
            storage = self._control.storage.machines()
            try:
                await removal.note(storage, store.container, NONE)
                await removal.fence(storage, store.container)
            except StorageError as exc:  # as one that may only read: it deletes nothing either
                _log.warning(
                    "not noted in storage that a machine is restored", machine=machine.name, **exc.as_dict()
                )

    async def update_job(self, call: Call, body: JobProgress) -> JobView:
        """Who says that it has ended may let the answer be held until its job has, too."""
        now_ns, id_ = self._control.now_ns(), call.path["id"]

        def work(db: Connection) -> tuple[JobView, restores.Heard]:
            before = jobs.get(db, id_)
            heard = restores.hear(db, id_, body, call.who, now_ns)
            if heard.is_end:
                note_ended(db, heard.job, call.who, now_ns)
            return before, heard

        before, heard = await self._control.db.run(work)
        if before.state is not heard.job.state or heard.is_end:
            self._control.bell.ring(DRIVEN)
        return await self._ended(id_, call.wait_s) if heard.is_end else heard.job

    async def _ended(self, id_: str, wait_s: float) -> JobView:
        """As it is when it has, or stands still, or the time is over."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + wait_s
        while True:
            rung = self._control.bell.listen(id_)
            job = await self._control.db.run(lambda db: jobs.get(db, id_))
            if job.state not in _UNDER_WAY or clock() >= until_s or self._control.bell.is_closed:
                return job
            await wait_for(rung, until_s - clock())


def _begun(db: Connection, who: str, machine: str, body: RestoreRequest, grant: str, now_ns: int) -> str:
    """The job's id; of a request that was made before, that of its job. Raises KeyUsedError."""
    id_ = body.request[:16]
    if id_ and journal.is_there(db, id_, kind=restores.KIND, machine=machine):
        known = jobs.get(db, id_)
        if (known.who, known.args.get(restores.GRANT, "")) != (who, grant):
            raise KeyUsedError(
                f"The restore of '{machine}' was not begun",
                cause=f"the id of the request is that of another one, which began job {id_}",
            )
        return id_
    args: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(body, request="", grant=grant))
    return journal.create(
        db,
        kind=restores.KIND,
        version=restores.VERSION,
        machine=machine,
        lane="",
        who=who,
        args=args,
        now_ns=now_ns,
        id_=id_,
        begun=[(step, StepState.BEGUN) for step in restores.STEPS],
    )


def note_ended(db: Connection, job: JobView, who: str, now_ns: int) -> None:
    """An event of how the job ends. A mistake in the request (a wrong folder or point) is none of the machine's: who made it was told,
    and the job says it."""
    error = job.error
    if error is not None and error.exit_code in (UsageError.exit_code, NotFoundError.exit_code):
        return
    happened = Problem(
        code=error.code if error else "",
        what=f"The {job.kind} of {job.machine} to {job.args.get('to', '')} {_in_words(job)}",
        cause=error.cause if error else "",
        action=error.action if error else "",
        severity=Severity.ERROR if error else Severity.INFO,
        object=job.machine,
    )
    events.note(db, EventKind.JOB, who, happened, now_ns)


def _in_words(job: JobView) -> str:
    if job.cancelled_by or job.state is JobState.CANCELLED:
        return "was cancelled"
    return "has failed" if job.direction is Direction.BACK or job.state is JobState.FAILED else "is done"
