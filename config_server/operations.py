"""Handlers of machines and what is done with them: protection, policy, points, flush, restore jobs."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Final

import msgspec

from config_server import audit, commands, events, inventory, jobs, view
from config_server.binding import Binder, Call
from config_server.control import Control, check_name, new_id
from config_server.facts import Facts, facts_of
from config_server.granting import Granting
from config_server.inventory import Machine
from config_server.keys import grant_of
from shared import api, logging
from shared.batch import SECTOR
from shared.errors import DisconnectedError, NotFoundError, RequestError, UsageError
from shared.limits import check_page_blob_target
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
    Policy,
    Protection,
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

    def bind(self, binder: Binder) -> None:
        binder.on(api.POLICY, self.policy)
        binder.on(api.POLICY_SET, self.set_policy)
        binder.on(api.MACHINES, self.machines)
        binder.on(api.MACHINE, self.machine)
        binder.on(api.PROTECT, self.protect)
        binder.on(api.UNPROTECT, self.unprotect)
        binder.on(api.RESYNC, self.resync)
        binder.on(api.POINTS, self.points)
        binder.on(api.POINT_CREATE, self.create_point)
        binder.on(api.FLUSH, self.flush)
        binder.on(api.RESTORE, self.restore)
        binder.on(api.JOBS, self.jobs)
        binder.on(api.JOB, self.job)
        binder.on(api.JOB_UPDATE, self.update_job)

    # ---- policy and protection

    async def policy(self, _call: Call, _body: Nothing) -> Policy:
        return await self._control.db.run(inventory.default_policy)

    async def set_policy(self, call: Call, body: Policy) -> Policy:
        now_ns = self._control.now_ns()

        def work(db: sqlite3.Connection) -> None:
            inventory.set_default_policy(db, body)
            audit.add(db, call.who, "policy.set", "default", msgspec.to_builtins(body), now_ns)

        await self._control.db.run(work)
        return body

    async def machines(self, _call: Call, _body: Nothing) -> MachineList:
        found = await self._control.db.run(inventory.machines)
        # Side by side: storage that hangs is waited for once, and not once for each.
        return MachineList(machines=await asyncio.gather(*(self._listed(machine) for machine in found)))

    async def _listed(self, machine: Machine) -> MachineView:
        """What cannot be shown of one machine hides no other."""
        try:
            return await self._view(machine)
        except Exception as exc:  # noqa: BLE001 - whatever its daemons reported
            _log.error("a machine could not be shown: this is a bug", machine=machine.name, exc_info=exc)
            return view.not_shown(machine, exc)

    async def machine(self, call: Call, _body: Nothing) -> MachineView:
        return await self._view(await self._known(call))

    async def protect(self, call: Call, body: Protection) -> MachineView:
        """Record what shall be protected; a connected agent that protects other disks is told."""
        name = check_name(call.path["machine"], "machine")
        if len(set(body.disks)) != len(body.disks) or any(
            not disk.startswith("/dev/") for disk in body.disks
        ):
            raise RequestError(
                f"The protection of '{name}' was refused",
                cause="it needs the paths of its disks, /dev/NAME, each once",
            )
        now_ns = self._control.now_ns()
        facts = facts_of(self._control.presence, name, self._control.mono_ns())
        target = f"agent:{name}"
        reported = None
        if facts.agent is not None and not facts.agent[0].is_silent(self._control.mono_ns()):
            reported = {disk.device or f"/dev/{disk.name}" for disk in facts.agent[1].disks}

        self._check_sizes(facts, body)

        def work(db: sqlite3.Connection) -> Machine:
            machine = inventory.protect(db, name, body.disks, body.policy, now_ns)
            audit.add(db, call.who, "machine.protect", name, msgspec.to_builtins(body), now_ns)
            if reported is not None and reported != set(body.disks):
                commands.add(db, new_id(), target, CommandKind.PROTECT, {"disks": body.disks}, now_ns)
            return machine

        machine = await self._control.db.run(work)
        self._control.bell.ring(target)
        return await self._view(machine)

    def _check_sizes(self, facts: Facts, body: Protection) -> None:
        """Raises DiskTooLargeError for a disk that no master target here can hold."""
        if facts.agent is None or self._control.presence.has_image_target():
            return
        for disk in facts.agent[1].disks:
            if (disk.device or f"/dev/{disk.name}") in body.disks:
                check_page_blob_target(disk.name, disk.sectors * SECTOR)

    async def unprotect(self, call: Call, _body: Nothing) -> MachineView:
        known = await self._known(call)
        target = f"agent:{known.name}"
        now_ns = self._control.now_ns()

        def work(db: sqlite3.Connection) -> Machine:
            machine = inventory.unprotect(db, known.name)
            audit.add(db, call.who, "machine.unprotect", known.name, {}, now_ns)
            if self._control.presence.agent(known.name) is not None:
                commands.add(db, new_id(), target, CommandKind.UNPROTECT, {}, now_ns)
            return machine

        machine = await self._control.db.run(work)
        self._control.bell.ring(target)
        return await self._view(machine)

    async def resync(self, call: Call, _body: Nothing) -> CommandView:
        """Have the agent begin a new epoch: everything is read again, earlier points stay."""
        machine = await self._known(call)
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
        return await self._control.storage.points((await self._known(call)).name)

    async def create_point(self, call: Call, body: PointRequest) -> CommandView:
        """Have the agent place a mark. The command's result says at which position it stands: that is the
        point."""
        machine = await self._known(call)
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
        machine = await self._known(call)
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
        machine = await self._known(call)
        store, key = await self._control.storage.access(machine.name)
        storage = await self._granting.give(
            call, machine.name, store, host=body.host, again=body.grant, request=body.request
        )
        now_ns = self._control.now_ns()
        id_ = new_id()
        args: dict[str, Any] = msgspec.to_builtins(body)

        def work(db: sqlite3.Connection) -> None:
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

    # ---- common

    async def _known(self, call: Call) -> Machine:
        name = call.path["machine"]
        # An agent that has just reported for the first time is known before its machine is stored.
        if self._control.presence.agent(name) is not None:
            await self._control.db.run(lambda db: inventory.ensure_machine(db, name, self._control.now_ns()))
        return await self._control.db.run(lambda db: inventory.machine(db, name))

    async def _view(self, machine: Machine) -> MachineView:
        last_point = await self._control.storage.last_point(machine.name)
        facts = self._control.facts(machine, last_point)
        return view.machine_view(machine, facts, self._control.mono_ns())


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
