"""Recovery points: which there are, a mark for a new one, what is to be in storage first; and all disks anew."""

from __future__ import annotations

import asyncio
from typing import Final

from config_server.operations import machines, resync
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name, new_id
from config_server.operations.jobs import DRIVEN
from config_server.rules import view
from config_server.rules.facts import facts_of
from config_server.store import audit, commands, journal
from config_server.store.database import Connection
from shared.api.commands import CommandKind, CommandState, CommandView
from shared.api.jobs import StepState
from shared.api.points import FlushReply, FlushRequest, PointList, PointRequest
from shared.api.route import Nothing
from shared.errors import RequestError
from shared.vocabulary import Consistency, Role

_CONSISTENCIES = (Consistency.CRASH,)
_RESYNC: Final = "machine.resync"
"""In the audit log; with `key` where somebody was answered with one that was begun already."""


class Points:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def all(self, call: Call, _body: Nothing) -> PointList:
        return await self._control.storage.points(
            (await machines.known(self._control, call.path["machine"])).name
        )

    async def create(self, call: Call, body: PointRequest) -> CommandView:
        """Have the agent place a mark. The command's result says at which position it stands: that is the
        point."""
        machine = await machines.known(self._control, call.path["machine"])
        if body.consistency not in _CONSISTENCIES:
            raise RequestError(
                f"A point with consistency '{body.consistency}' cannot be made",
                cause="only 'crash' is there yet",
            )
        id_ = check_name(body.id, "point request") if body.id else call.key or new_id()

        def again(db: Connection) -> CommandView | None:
            """It was asked for with this id before: whether it could be now is not the question."""
            found = commands.find(db, id_)
            is_it = found is not None and (found[0].target, found[0].kind) == (
                f"{Role.AGENT}:{machine.name}",
                CommandKind.MARK,
            )
            return found[0] if found is not None and is_it else None

        if (same := await self._control.db.run(again)) is not None:
            return same
        target = machines.present_agent(self._control, machine, f"A point of '{machine.name}' cannot be made")
        now_ns = self._control.now_ns()
        args = {"id": id_, "consistency": body.consistency}

        def work(db: Connection) -> CommandView:
            if (same := again(db)) is not None:
                return same
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
        await self._control.wait_for_result(id_, wait_s)
        now_ns = self._control.now_ns()

        def work(db: Connection) -> CommandState:
            commands.withdraw(db, id_, now_ns)
            return commands.get(db, id_).state

        return await self._control.db.run(work) is CommandState.DONE

    async def resync(self, call: Call, _body: Nothing) -> CommandView:
        """Have the agent begin a new epoch: everything is read again, earlier points stay. The command's id is also that of the job which
        sees to it. Raises LaneTakenError while another one copies; KeyUsedError."""
        machine = await machines.known(self._control, call.path["machine"])

        def again(db: Connection) -> CommandView | None:
            """What this key was answered with before: whether it could be begun now is not the question."""
            if not call.key:
                return None
            if journal.is_there(db, call.key, kind=resync.NAME, machine=machine.name):
                return resync.asked(db, call.key, machine.name)
            said = audit.details(db, _RESYNC, machine.name)
            job = next((one["job"] for one in said if one.get("key") == call.key), None)
            return None if job is None else resync.asked(db, job, machine.name)

        if (begun := await self._control.db.run(again)) is not None:
            return begun
        target = machines.present_agent(
            self._control, machine, f"A resync of '{machine.name}' cannot be started"
        )
        now_ns = self._control.now_ns()
        epoch = view.epoch(facts_of(self._control.presence, machine.name, self._control.mono_ns()))

        def work(db: Connection) -> CommandView:
            commands.expire(db, now_ns)
            if (begun := again(db)) is not None:
                return begun
            if (same := resync.waiting(db, machine.name, now_ns)) is not None:
                if call.key:  # else it would begin one when it is sent again behind that one's end
                    joined = {"job": resync.job_of(same.id), "key": call.key}
                    audit.add(db, call.who, _RESYNC, machine.name, joined, now_ns)
                return same  # once is enough: each reads all disks
            if not epoch:
                raise RequestError(
                    f"A resync of '{machine.name}' cannot be started",
                    cause="its agent starts, or begins a new epoch, and has not said which: then all disks are looked at anyway",
                    action=f"See `understudy machine show {machine.name}`, and ask again when it names an epoch.",
                )
            id_ = journal.create(
                db,
                kind=resync.NAME,
                version=resync.VERSION,
                machine=machine.name,
                lane=resync.LANE,
                who=call.who,
                args={resync.EPOCH: epoch},
                now_ns=now_ns,
                id_=call.key,
                begun=[(resync.ASK, StepState.BEGUN)],
            )
            audit.add(db, call.who, _RESYNC, machine.name, {"job": id_}, now_ns)
            return resync.ask(db, id_, machine.name, now_ns)

        queued = await self._control.db.run(work)
        self._control.bell.ring(target)
        self._control.bell.ring(DRIVEN)
        return queued
