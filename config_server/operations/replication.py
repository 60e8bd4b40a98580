"""Handlers of machines and what is done with them: points, flush, restore jobs."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Final

import msgspec

from config_server.operations import machines
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name, new_id
from config_server.operations.granting import Granting
from config_server.operations.keys import grant_of
from config_server.rules import view
from config_server.rules.machine import Machine
from config_server.store import audit, commands, deletions, events, inventory, jobs
from shared import logging
from shared.errors import DisconnectedError, NotFoundError, RequestError, UsageError
from shared.messages import (
    CommandKind,
    CommandState,
    CommandView,
    EventKind,
    FlushReply,
    FlushRequest,
    JobList,
    JobProgress,
    JobState,
    JobView,
    Limit,
    MachineList,
    MachineView,
    Nothing,
    PointList,
    PointRequest,
    RestoreGrant,
    RestoreRequest,
)
from shared.status import Problem
from shared.vocabulary import Consistency, Severity
from shared.waiting import wait_for

_log = logging.get()
_CONSISTENCIES = (Consistency.CRASH,)
_ENDED: Final = {
    JobState.DONE: "is done",
    JobState.FAILED: "has failed",
    JobState.CANCELLED: "was cancelled",
}


class Operations:
    def __init__(self, control: Control, granting: Granting) -> None:
        self._control = control
        self._granting = granting

    # ---- machines

    async def machines(self, _call: Call, _body: Nothing) -> MachineList:
        found = await self._control.db.run(inventory.machines)
        # Side by side: storage that hangs is waited for once, and not once for each.
        return MachineList(machines=await asyncio.gather(*(self._listed(machine) for machine in found)))

    async def _listed(self, machine: Machine) -> MachineView:
        """What cannot be shown of one machine hides no other."""
        try:
            return await machines.shown(self._control, machine)
        except Exception as exc:  # noqa: BLE001 - whatever its daemons reported
            _log.error("a machine could not be shown: this is a bug", machine=machine.name, exc_info=exc)
            return view.not_shown(machine, exc)

    async def machine(self, call: Call, _body: Nothing) -> MachineView:
        return await machines.shown(self._control, await machines.known(self._control, call.path["machine"]))

    async def resync(self, call: Call, _body: Nothing) -> CommandView:
        """Have the agent begin a new epoch: everything is read again, earlier points stay."""
        machine = await machines.known(self._control, call.path["machine"])
        target = self._present_agent(machine, f"A resync of '{machine.name}' cannot be started")
        id_, now_ns = new_id(), self._control.now_ns()

        def work(db: sqlite3.Connection) -> CommandView:
            commands.expire(db, now_ns)
            if (same := commands.waiting(db, target, CommandKind.RESYNC)) is not None:
                return same  # once is enough: each reads all disks
            audit.add(db, call.who, "machine.resync", machine.name, {"command": id_}, now_ns)
            return commands.add(db, id_, target, CommandKind.RESYNC, {}, now_ns)

        queued = await self._control.db.run(work)
        self._control.bell.ring(target)
        return queued

    def _present_agent(self, machine: Machine, what: str) -> str:
        """Where commands for the machine go. Raises RequestError, DisconnectedError."""
        if not machine.protected:
            raise RequestError(what, cause="it is not protected")
        found = self._control.presence.agent(machine.name)
        if found is None or found[0].is_silent(self._control.mono_ns()):
            raise DisconnectedError(what, cause="its agent does not report")
        return found[0].source

    # ---- points

    async def points(self, call: Call, _body: Nothing) -> PointList:
        return await self._control.storage.points(
            (await machines.known(self._control, call.path["machine"])).name
        )

    async def create_point(self, call: Call, body: PointRequest) -> CommandView:
        """Have the agent place a mark. The command's result says at which position it stands: that is the
        point."""
        machine = await machines.known(self._control, call.path["machine"])
        if body.consistency not in _CONSISTENCIES:
            raise RequestError(
                f"A point with consistency '{body.consistency}' cannot be made",
                cause="only 'crash' is there yet",
            )
        target = self._present_agent(machine, f"A point of '{machine.name}' cannot be made")
        now_ns = self._control.now_ns()
        id_ = check_name(body.id, "point request") if body.id else new_id()
        args = {"id": id_, "consistency": body.consistency}

        def work(db: sqlite3.Connection) -> CommandView:
            audit.add(db, call.who, "point.create", machine.name, args, now_ns)
            return commands.add(db, id_, target, CommandKind.MARK, args, now_ns)

        queued = await self._control.db.run(work)
        self._control.bell.ring(target)
        return queued

    async def flush(self, call: Call, body: FlushRequest) -> FlushReply:
        """Ask the process servers that hold the machine's stream to upload what they have, and wait for
        them."""
        machine = await machines.known(self._control, call.path["machine"])
        now_ns = self._control.now_ns()
        asked: dict[str, str] = {}
        missing: list[str] = []
        for seen, _stream in self._control.presence.streams(machine.name):
            if seen.is_silent(self._control.mono_ns()):
                missing.append(seen.name)
                continue
            id_ = asked[seen.name] = new_id()
            args = {"machine": machine.name}
            await self._control.db.run(
                lambda db, seen=seen, id_=id_, args=args: commands.add(  # type: ignore[misc]
                    db, id_, seen.source, CommandKind.FLUSH, args, now_ns
                )
            )
            self._control.bell.ring(seen.source)
        done = await asyncio.gather(*(self._finished(id_, body.wait_s) for id_ in asked.values()))
        flushed = [name for name, ok in zip(asked, done, strict=True) if ok]
        return FlushReply(flushed=flushed, missing=missing + [name for name in asked if name not in flushed])

    async def _finished(self, id_: str, wait_s: float) -> bool:
        """Whether the command's result came in time and is no failure."""
        rung = self._control.bell.listen(id_)
        if (await self._control.db.run(lambda db: commands.get(db, id_))).state is CommandState.PENDING:
            await wait_for(rung, wait_s)
        now_ns = self._control.now_ns()

        def work(db: sqlite3.Connection) -> CommandState:
            commands.withdraw(db, id_, now_ns)
            return commands.get(db, id_).state

        return await self._control.db.run(work) is CommandState.DONE

    # ---- restore jobs

    async def restore(self, call: Call, body: RestoreRequest) -> RestoreGrant:
        """Give access to the machine's points. Every grant is in the audit log, whether or not it is used."""
        machine = await machines.known(self._control, call.path["machine"])
        store, key = await self._control.storage.access(machine.name)
        storage = await self._granting.give(
            call, machine.name, store, host=body.host, again=body.grant, request=body.request
        )
        now_ns = self._control.now_ns()
        id_ = new_id()
        args: dict[str, Any] = msgspec.to_builtins(body)

        def work(db: sqlite3.Connection) -> None:
            deletions.check_readable(db, machine.name)
            audit.add(db, call.who, "restore.grant", machine.name, {"job": id_, **args}, now_ns)
            if not body.dry_run:
                jobs.create(db, id_, "restore", machine.name, args, now_ns)

        await self._control.db.run(work)
        return RestoreGrant(job="" if body.dry_run else id_, storage=storage, key=grant_of(key))

    async def jobs(self, _call: Call, body: Limit) -> JobList:
        return JobList(jobs=await self._control.db.run(lambda db: jobs.newest(db, body.limit)))

    async def job(self, call: Call, _body: Nothing) -> JobView:
        return await self._control.db.run(lambda db: jobs.get(db, call.path["id"]))

    async def update_job(self, call: Call, body: JobProgress) -> JobView:
        now_ns = self._control.now_ns()
        self._control.job_heard_ns[call.path["id"]] = self._control.mono_ns()

        def work(db: sqlite3.Connection) -> JobView:
            before = jobs.get(db, call.path["id"])
            after = jobs.update(db, before.id, body, now_ns)
            ended = after.state is not JobState.RUNNING
            if ended and (before.state, before.error) != (after.state, after.error):
                note_ended(db, after, call.who, now_ns)
            return after

        return await self._control.db.run(work)


def note_ended(db: sqlite3.Connection, job: JobView, who: str, now_ns: int) -> None:
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
