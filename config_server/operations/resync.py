"""The job of a resync: the agent is asked to begin a new epoch, and all disks are read again until they are in order.

**Once is enough**: each resync reads all disks, which may take a week. The command to the agent bears the job's id, so it is the same one
however often it is asked for; a number behind it says which try it is. There is another try where the agent said that it cannot do it just
now, and where its command was withdrawn since this database was put back, and a person has said that the job goes on. Before that what the
agent says counts: where it is in a later epoch than the machine was when somebody asked, it has taken the command, whatever is known of
that here; a command of which nothing is known any more (it is kept for a week) was taken, too, then.

What the agent has begun is not taken back: its earlier epoch is over. Cancelled before that, the command is withdrawn; later, only nobody
waits any more. What the agent says of it is data: it is told, in so many words, and no error of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from config_server.jobs.kinds import Kind, Waits
from config_server.operations import machines
from config_server.operations.control import Control
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import facts_of
from config_server.rules.lanes import Lane
from config_server.rules.steps import pause_s
from config_server.rules.view import epoch
from config_server.rules.words import bounded
from config_server.store import commands, inventory, jobs, journal
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared import decoding
from shared.api.commands import CommandKind, CommandState, CommandView
from shared.api.jobs import JobState
from shared.api.route import Failure
from shared.control.rest import error_of
from shared.errors import AgentRefusedError, DeadlineError, PeerError, RequestError, TransientError
from shared.vocabulary import MachineState, Role

NAME: Final = "resync"
VERSION: Final = 1
LANE: Final = Lane.DATA
ASK: Final = "ask"
EPOCH: Final = "after"
"""The argument: the machine's epoch when it was asked for."""
_TRIES: Final = 8
_PASSING: Final = (TransientError, PeerError, DeadlineError)
_SOON_S: Final = 2.0
_LOOK_S: Final = 5.0


def kind(control: Control) -> Kind:
    return Kind(
        name=NAME, version=VERSION, steps=[_Ask(control), _Copy(control)], fence=_Copy.name, lasting_s=0.0
    )


def ask(db: Connection, id_: str, machine: str, now_ns: int) -> CommandView:
    """The first command of this job, once."""
    return _ask(db, id_, 0, machine, now_ns)


def _ask(db: Connection, job: str, number: int, machine: str, now_ns: int) -> CommandView:
    return commands.add(db, _id(job, number), f"{Role.AGENT}:{machine}", CommandKind.RESYNC, {}, now_ns)


def _id(job: str, number: int) -> str:
    return f"{job}-{number}" if number else job


def job_of(command: str) -> str:
    return command.partition("-")[0]


def waiting(db: Connection, machine: str, now_ns: int) -> CommandView | None:
    """A command that the agent has not taken yet. One of a job that goes forward no more is withdrawn, and the job is in nobody's way."""
    journal.leave_lane(db, machine, LANE)
    same = commands.waiting(db, f"{Role.AGENT}:{machine}", CommandKind.RESYNC)
    if same is not None and journal.is_over(db, job_of(same.id)):
        commands.withdraw(db, same.id, now_ns)
        return None
    return same


def asked(db: Connection, id_: str, machine: str) -> CommandView:
    """The first command of a job that is there, also where that is forgotten."""
    found = commands.find(db, id_)
    if found is not None:
        return found[0]
    job = jobs.get(db, id_)
    state = CommandState.FAILED if job.state is JobState.FAILED else CommandState.DONE
    return CommandView(
        id=id_,
        target=f"{Role.AGENT}:{machine}",
        kind=CommandKind.RESYNC,
        args={},
        state=state,
        result={},
        created=job.created,
    )


class _Ask:
    name: Final = ASK

    def __init__(self, control: Control) -> None:
        self._control = control

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        now_ns = self._control.now_ns()
        agent = self._control.presence.agent(job.machine)
        mono_ns = self._control.mono_ns()
        is_heard = agent is not None and not agent[0].is_silent(mono_ns)
        facts = facts_of(self._control.presence, job.machine, mono_ns)

        def work(db: Connection) -> CommandView | Waits | None:
            """None: it is done."""
            journal.still(db, job)
            commands.expire(db, now_ns)
            number, last, ended_ns = _last(db, job.id)
            if last is None or last.state is CommandState.WITHDRAWN:
                if not is_heard:
                    return Waits(f"the agent of {job.machine} to report", _LOOK_S)
                current = epoch(facts)
                if not current:
                    return Waits(f"the agent of {job.machine} to say in which epoch it is", _LOOK_S)
                if current > job.args[EPOCH]:
                    return None
            elif last.state is CommandState.PENDING:
                return last
            elif last.state is CommandState.DONE:
                return None
            else:
                refused = _refusal(job.machine, last.result.get("error"))
                if not refused.may_pass or number + 1 >= _TRIES:
                    raise refused.error
                left_s = _left_s(now_ns, ended_ns, number + 1)
                if left_s > 0:
                    return Waits(refused.error.cause, left_s)
            return _ask(db, job.id, 0 if last is None else number + 1, job.machine, now_ns)

        found = await self._control.db.run(work)
        if isinstance(found, CommandView):
            self._control.bell.ring(found.target)
            return Waits("the agent to take it", _SOON_S)
        return {} if found is None else found

    async def undo(self, job: Job) -> bool | Waits:
        now_ns = self._control.now_ns()

        def work(db: Connection) -> bool:
            journal.still(db, job)
            number, _, _ = _last(db, job.id)
            return commands.withdraw(db, _id(job.id, number), now_ns)

        return await self._control.db.run(work)


def _last(db: Connection, job: str) -> tuple[int, CommandView | None, int]:
    """The newest command of the job: which try it was, and when it ended. (Earlier ones may be forgotten.)"""
    for number in reversed(range(_TRIES)):
        if (found := commands.find(db, _id(job, number))) is not None:
            return number, *found
    return 0, None, 0


def _left_s(now_ns: int, ended_ns: int, tries: int) -> float:
    """Until it is asked again. (A clock that was ahead when it ended says nothing.)"""
    past_s = (now_ns - ended_ns) / SECOND_NS
    return max(0.0, pause_s(tries) - past_s) if past_s >= 0 else 0.0


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


class _Refusal(NamedTuple):
    error: AgentRefusedError
    may_pass: bool


def _refusal(machine: str, said: object) -> _Refusal:
    """As its agent says, which may say anything."""
    what = f"The agent of '{machine}' did not begin the resync"
    try:
        failure = decoding.convert({"exit_code": 5, **(said if isinstance(said, dict) else {})}, Failure)
    except msgspec.ValidationError:
        return _Refusal(AgentRefusedError(what), may_pass=False)
    words = [bounded(word) for word in (failure.code, failure.what, failure.cause) if word]
    error = AgentRefusedError(what, cause=": ".join(words), action=bounded(failure.action))
    return _Refusal(error, may_pass=isinstance(error_of(failure), _PASSING))
