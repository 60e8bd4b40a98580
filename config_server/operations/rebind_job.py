"""The job of `rebind`: the binding was made in storage, and this sees whether the new hardware takes it up.

    set      storage says that the machine is this hardware, written down as done by the transaction that began the job
    follow   its agent reports, and a process server says that it serves it

**Cancelled, the binding stays**; only nobody watches it any more. It could be changed back by compare-and-swap, and that would harm.
Undoing comes when its time comes: behind a restart, when storage answers again, when a person says how a job of a database that was put
back goes on. By then the new hardware may be the one that works, with a session, and with disks that are newer than the former's: it would
be refused, and the former replicated over what is newer (I7). Nor could a request to change it back, once it is on its way, be told from a
later word for the new hardware: to bind what is bound already writes nothing, so nothing would be in its way. Which of two is the machine
only somebody says who sees both, now: `understudy machine rebind NAME --identity ID`, with the identity that the job's arguments name as
`before`. So there is nothing that a failure could undo, either (no `fence` is needed): where the machine was bound to something else
meanwhile, the job fails, and that holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from config_server.jobs.kinds import Kind, Waits
from config_server.operations import act_jobs
from config_server.operations.act_jobs import LOOK_S, RARELY_S, SET, VERSION
from config_server.operations.control import Control
from config_server.operations.sides import Sides
from config_server.rules import acts as rules
from config_server.rules.acts import Rebound
from config_server.rules.lanes import Watch
from config_server.store import inventory
from config_server.store.journal import Job
from shared import decoding
from shared.errors import SaidSinceError
from shared.machine.active_side import UNKNOWN, shown


def kind(control: Control, sides: Sides) -> Kind:
    return Kind(
        name=Watch.REBIND,
        version=VERSION,
        steps=[_Set(control, sides), _Follow(control, sides)],
        lasting_s=0.0,
    )


class _Step:
    def __init__(self, control: Control, sides: Sides) -> None:
        self._control = control
        self._sides = sides

    async def undo(self, _job: Job) -> bool | Waits:
        return False

    async def _check(self, job: Job) -> str:
        """Who it was bound to. Raises SaidSinceError where storage has said since that it is another one."""
        identity = decoding.convert(job.args, type=Rebound).identity
        await self._sides.ask(job.machine)
        if (bound := self._sides.bound(job.machine)) not in (UNKNOWN, identity):
            raise SaidSinceError(
                f"The rebind of '{job.machine}' to {identity} was not seen to its end",
                cause=f"it is bound to {shown(bound)} since",
            )
        return identity


class _Set(_Step):
    name: Final = SET

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        """Only where the journal is in doubt. Nothing is bound anew."""
        await self._check(job)
        return None


class _Follow(_Step):
    name: Final = "follow"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        identity = await self._check(job)
        machine = await self._control.db.run(lambda db: inventory.find(db, job.machine))
        facts, mono_ns = act_jobs.facts(self._control, job.machine), self._control.mono_ns()
        if why := rules.unserved(machine, identity, facts, mono_ns):
            is_heard = facts.agent is not None and not facts.agent[0].is_silent(mono_ns)
            return Waits(why, LOOK_S if is_heard else RARELY_S)
        return None
