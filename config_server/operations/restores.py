"""Restores: access for somebody who runs one, and how it goes, which he says."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from config_server.operations import machines
from config_server.operations.call import Call
from config_server.operations.control import Control, new_id
from config_server.operations.granting import Granting
from config_server.operations.keys import grant_of
from config_server.rules.machine import Machine
from config_server.storage import removal
from config_server.storage.deletion_note import NONE
from config_server.store import audit, deletions, events, jobs
from config_server.store.database import Connection
from shared import logging
from shared.api.events import EventKind
from shared.api.jobs import JobProgress, JobState, JobView
from shared.api.restores import RestoreGrant, RestoreRequest
from shared.blob import BlobStore
from shared.errors import NotFoundError, StorageError, UsageError
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

_ENDED: Final = {
    JobState.DONE: "is done",
    JobState.FAILED: "has failed",
    JobState.CANCELLED: "was cancelled",
}


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
        id_ = new_id()
        args: dict[str, Any] = msgspec.to_builtins(body)

        def work(db: Connection) -> None:
            deletions.check_readable(db, machine.name, self._control.storage.place)
            audit.add(db, call.who, "restore.grant", machine.name, {"job": id_, **args}, now_ns)
            if not body.dry_run:
                jobs.create(db, id_, "restore", machine.name, call.who, args, now_ns)

        await self._control.db.run(work)
        return RestoreGrant(job="" if body.dry_run else id_, storage=storage, key=grant_of(key))

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
        now_ns = self._control.now_ns()

        def work(db: Connection) -> JobView:
            before = jobs.get(db, call.path["id"])
            after = jobs.update(db, before.id, body, now_ns)
            ended = after.state is not JobState.RUNNING
            if ended and (before.state, before.error) != (after.state, after.error):
                note_ended(db, after, call.who, now_ns)
            return after

        return await self._control.db.run(work)


def note_ended(db: Connection, job: JobView, who: str, now_ns: int) -> None:
    """An event of how the job ended. A mistake in the request (a wrong folder or point) is none of the machine's: who made it was told,
    and the job says it."""
    error = job.error
    if error is not None and error.exit_code in (UsageError.exit_code, NotFoundError.exit_code):
        return
    happened = Problem(
        code=error.code if error else "",
        what=f"The {job.kind} of {job.machine} to {job.args.get('to', '')} {_ENDED[job.state]}",
        cause=error.cause if error else "",
        action=error.action if error else "",
        severity=Severity.ERROR if error else Severity.INFO,
        object=job.machine,
    )
    events.note(db, EventKind.JOB, who, happened, now_ns)
