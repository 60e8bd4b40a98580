"""The jobs of `protect` and `unprotect`: the act was done with the transaction that began them, and they see whether it comes true.

    set      the act, written down as done by its own transaction
    follow   its agent says that it goes by it; of a stop, and that it captures nothing any more
    copy     all disks are in order (`protect` alone)

Whatever is in the way (its agent is not heard, refuses, is not told) is waited for, and named, for weeks if need be. Only where the act
does not hold any more there is nothing to wait for, and the job fails.

**Cancelled by a person, what was wanted before is said again** (`act_jobs.take_back`), as another act, later than this one, in one
transaction with the look whether this job's act is still what is wanted. What was said since is not touched: not by somebody else, here
or over another config server, nor what an agent is told for new hardware. It is `set` that takes it back, since that did it. Once the
last step is done, so is the job: there is nothing left to be cancelled, and who wants it otherwise says so. A policy that was given with
the act stays.

**Nobody else takes an act back.** Not a job that failed: an act is an operator's. Nor one that was superseded: mostly its act does not hold
any more, but a machine that is bound to other hardware is to be protected as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from config_server.jobs.kinds import Kind, Stands, Waits
from config_server.operations import act_jobs
from config_server.operations.act_jobs import LOOK_S, RARELY_S, SET, VERSION
from config_server.operations.control import Control
from config_server.operations.sides import Sides
from config_server.rules import acts as rules
from config_server.rules.facts import Facts
from config_server.rules.lanes import Watch
from config_server.rules.machine import Machine
from config_server.store import inventory, journal
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared.errors import MachineNotFoundError, RequestError


def kinds(control: Control, sides: Sides) -> list[Kind]:
    protect: list[Any] = [_Set(control, sides), _FollowProtect(control, sides), _Copy(control, sides)]
    unprotect: list[Any] = [_Set(control, sides), _FollowStop(control, sides)]
    return [
        Kind(name=Watch.PROTECT, version=VERSION, steps=protect, lasting_s=0.0),
        Kind(name=Watch.UNPROTECT, version=VERSION, steps=unprotect, lasting_s=0.0),
    ]


def check(db: Connection, job: Job) -> Machine:
    """The machine, of which this job's act still holds. Both are read in one transaction: the same may have been said again since the job
    was last looked at. Raises SaidSinceError, MachineNotFoundError."""
    what = f"The {job.kind} of '{job.machine}' was not seen to its end"
    machine = inventory.find(db, job.machine)
    if machine is None:
        raise MachineNotFoundError(what, cause="nothing is known of it any more: it was deleted")
    wish = machine.wish
    act = act_jobs.act_of(journal.find(db, job.id))
    if wish is None or act is None or wish.mark.act != act.act:
        raise rules.said_since(what, wish)
    return machine


class _Set:
    name: Final = SET

    def __init__(self, control: Control, sides: Sides) -> None:
        self._control = control
        self._sides = sides

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        """Only where the journal is in doubt: then the act may not hold any more, and is not said again."""
        await self._control.db.run(lambda db: check(db, job))
        return None

    async def undo(self, job: Job) -> bool | Waits | Stands:
        """Whoever does it a second time finds another act than this job's. What only a person can say is asked of one at once: no time
        mends that."""
        await self._sides.ask(job.machine)
        now_ns, mono_ns = self._control.now_ns(), self._control.mono_ns()

        def work(db: Connection) -> bool | Waits:
            now = journal.still(db, job)
            # Looked at in this transaction: who was told in an earlier one had reported before that.
            agent = self._sides.agent(job.machine, inventory.find(db, job.machine))
            if agent is None:
                return act_jobs.take_back(db, now, None, now_ns, is_heard=False)
            seen, report = agent
            return act_jobs.take_back(db, now, report, now_ns, is_heard=not seen.is_silent(mono_ns))

        try:
            is_done = await self._control.db.run(work)
        except RequestError as exc:
            return Stands(f"{SET}: {exc.what}", exc)
        if is_done is True:
            self._control.bell.ring(f"agent:{job.machine}")
        return is_done


class _Watches:
    """A step that only looks."""

    def __init__(self, control: Control, sides: Sides) -> None:
        self._control = control
        self._sides = sides

    async def undo(self, _job: Job) -> bool | Waits:
        return False

    def _waits(self, machine: str, facts: Facts, why: str) -> Waits:
        is_heard = facts.agent is not None and not facts.agent[0].is_silent(self._control.mono_ns())
        refused = "" if is_heard else self._sides.refused(machine)
        return Waits(
            f"{why}; {refused}" if refused else why,
            LOOK_S if is_heard else RARELY_S,
            rules.progress(facts) if is_heard else None,
        )


class _FollowProtect(_Watches):
    name: Final = "follow"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        machine = await self._control.db.run(lambda db: check(db, job))
        facts = act_jobs.facts(self._control, job.machine)
        why = rules.untaken(machine, facts, self._control.mono_ns())
        return self._waits(job.machine, facts, why) if why else None


class _Copy(_Watches):
    name: Final = "copy"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        machine = await self._control.db.run(lambda db: check(db, job))
        facts = act_jobs.facts(self._control, job.machine)
        why = rules.not_in_order(machine, facts, self._control.mono_ns())
        if why or facts.agent is None:
            return self._waits(job.machine, facts, why)
        point = await self._control.storage.last_point(job.machine)
        return {"epoch": facts.agent[1].epoch, "point": point.id if point is not None else None}


class _FollowStop(_Watches):
    name: Final = "follow"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        machine = await self._control.db.run(lambda db: check(db, job))
        facts, mono_ns = act_jobs.facts(self._control, job.machine), self._control.mono_ns()
        why = rules.untaken(machine, facts, mono_ns) or rules.not_stopped(machine, facts, mono_ns)
        return self._waits(job.machine, facts, why) if why else None
