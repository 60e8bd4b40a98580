"""The job of a resync: the agent is asked to begin a new epoch, and all disks are read again until they are in order.

The command to the agent bears the job's id, so it is the same one however often it is asked for. What the agent has begun is not taken
back: its earlier epoch is over. Cancelled before that, the command is withdrawn; later, only nobody waits any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from config_server.jobs.kinds import Kind, Waits
from config_server.operations import machines
from config_server.operations.control import Control
from config_server.rules.lanes import Lane
from config_server.store import commands, inventory
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared import decoding
from shared.api.commands import CommandKind, CommandState, CommandView
from shared.api.route import Failure
from shared.errors import RequestError, UnderstudyError
from shared.rest import error_of
from shared.vocabulary import MachineState, Role

NAME: Final = "resync"
VERSION: Final = 1
LANE: Final = Lane.DATA
EPOCH: Final = "after"
"""The argument: the machine's epoch when it was asked for."""
_SOON_S: Final = 2.0
_LOOK_S: Final = 5.0


def kind(control: Control) -> Kind:
    return Kind(
        name=NAME, version=VERSION, steps=[_Ask(control), _Copy(control)], fence=_Copy.name, lasting_s=0.0
    )


def ask(db: Connection, id_: str, machine: str, now_ns: int) -> CommandView:
    """The command of this job, once."""
    return commands.add(db, id_, f"{Role.AGENT}:{machine}", CommandKind.RESYNC, {}, now_ns)


class _Ask:
    name: Final = "ask"

    def __init__(self, control: Control) -> None:
        self._control = control

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        now_ns = self._control.now_ns()

        def work(db: Connection) -> CommandView:
            commands.expire(db, now_ns)
            return ask(db, job.id, job.machine, now_ns)

        command = await self._control.db.run(work)
        match command.state:
            case CommandState.DONE:
                return command.result
            case CommandState.PENDING:
                self._control.bell.ring(command.target)
                return Waits("the agent to take it", _SOON_S)
            case CommandState.FAILED:
                raise _refused(job.machine, command.result.get("error"))
            case CommandState.WITHDRAWN:
                raise RequestError(
                    f"The resync of '{job.machine}' was not begun",
                    cause="it was withdrawn before its agent took it",
                )

    async def undo(self, job: Job) -> bool | Waits:
        now_ns = self._control.now_ns()

        def work(db: Connection) -> bool:
            return commands.withdraw(db, job.id, now_ns)

        return await self._control.db.run(work)


class _Copy:
    name: Final = "copy"

    def __init__(self, control: Control) -> None:
        self._control = control

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        machine = await self._control.db.run(lambda db: inventory.machine(db, job.machine))
        seen = await machines.shown(self._control, machine)
        if not machine.protected:
            raise RequestError(
                f"The resync of '{job.machine}' was not seen to its end",
                cause="the machine is not protected any more",
            )
        if seen.epoch <= job.args[EPOCH]:
            return Waits(f"the agent of {job.machine} to begin a new epoch", _LOOK_S)
        if seen.state == MachineState.ORDERED:
            return {"epoch": seen.epoch}
        shares = [disk.progress for disk in seen.disks if disk.progress is not None]
        why = f"{job.machine} is {seen.state}" + (f" ({seen.cause})" if seen.cause else "")
        return Waits(why, _LOOK_S, min(shares, default=None))

    async def undo(self, _job: Job) -> bool | Waits:
        return False


def _refused(machine: str, error: object) -> UnderstudyError:
    """As its agent says, which may say anything."""
    try:
        return error_of(decoding.convert({"exit_code": 5, **_words(error)}, Failure))
    except msgspec.ValidationError:
        return RequestError(f"The resync of '{machine}' was not begun", cause="its agent did not take it")


def _words(error: object) -> dict[str, Any]:
    return error if isinstance(error, dict) else {}
