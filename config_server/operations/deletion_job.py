"""The job of a deletion: it was said by the transaction that began the job, deletion_sweep.py goes on with it, and this sees what becomes
of it. So a deletion is in the list of jobs from the day on which it was asked for, and still when the machine is in no list any more.

    set      the deletion, written down as done by its own transaction
    delete   the delay passes, in which it can be taken back, and all that storage has of the machine goes

**Who cancels the job takes the deletion back**, and who takes that back (`machine keep`) cancels the job: that is one act (deleting.py),
and one transaction, with a word in the container before it. So there is nothing here that an undoing could do, and it is refused where the
container may be gone already. **The transaction with which the deletion ends ends its job**: no moment is between them in which a later act
for a new machine of that name could take the job's place.

Where a person has to say it again (something else is wanted of the machine since, the database was put back, another machine has the
name) the job stands; that is told by the deletion's own event (US631 and its like), and not by one of the job.

Said again while the job goes on, it sees to that later deletion from then on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from config_server.jobs.kinds import Kind, Refused, Stands, Waits
from config_server.operations.act_jobs import SET, VERSION, goes_on
from config_server.operations.control import Control, new_id
from config_server.rules import deletion_view
from config_server.rules.deletion import Deletion
from config_server.rules.lanes import Lane, Watch
from config_server.store import deletions, inventory, journal
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared import decoding
from shared.api.jobs import Direction, JobAct, StepState
from shared.errors import (
    BeingDeletedError,
    DeletionOfAnotherError,
    DeletionUnconfirmedError,
    JobActError,
    SaidSinceError,
    UnderstudyError,
)

LOOK_S: Final = 60.0
"""As often as deletions are looked at. (What hinders one otherwise than before wakes its job: deletion_sweep.py.)"""
_STEP: Final = "delete"
_DELETION: Final = "deletion"
"""What takes the place of jobs, where the deletion has none: an earlier version began it."""


class Wanted(msgspec.Struct, frozen=True):
    """The job's arguments."""

    deletion: str
    """Its id."""


def saying(machine: str) -> str:
    """The turn of who says something of a machine's deletion (turns.py): his word is in its container before it is in the database."""
    return f"deletion of {machine}"


def begin(db: Connection, machine: str, deletion: str, who: str, now_ns: int) -> str:
    """The id of the job that sees to it, in the place of whatever else was under way of the machine. In the transaction that says it."""
    args = msgspec.to_builtins(Wanted(deletion))
    there = of_machine(db, machine)
    if there is not None and goes_on(there) and there.version == VERSION:
        journal.supersede(db, machine, (Lane.DATA,), who, there.id, now_ns)
        journal.say_again(db, there.id, args, now_ns)
        return there.id
    id_ = new_id()
    journal.supersede(db, machine, (Lane.LIFE, Lane.DATA), who, id_, now_ns)
    return journal.create(
        db,
        kind=Watch.DELETE,
        version=VERSION,
        machine=machine,
        lane=Lane.LIFE,
        who=who,
        args=args,
        now_ns=now_ns,
        id_=id_,
        begun=[(SET, StepState.DONE)],
    )


def of_machine(db: Connection, machine: str) -> Job | None:
    """The one that has not ended."""
    there = journal.in_lane(db, machine, Lane.LIFE)
    return there if there is not None and there.kind == Watch.DELETE else None


def wanted(job: Job) -> Wanted:
    """Raises msgspec.ValidationError for arguments that this program did not write."""
    return decoding.convert(job.args, type=Wanted)


def end(db: Connection, machine: str, deletion: Deletion, who: str, now_ns: int) -> None:
    """It was done, and is in the audit log, in this transaction: so is its job, and whatever else is under way of the machine waits in
    vain."""
    there = of_machine(db, machine)
    if there is not None and there.version == VERSION and _sees_to(there, deletion.id):
        result = {"container": deletion.container, "points": deletion.points}
        journal.complete(db, there.id, _STEP, result, now_ns)
        journal.supersede(db, machine, tuple(Lane), who, there.id, now_ns)
    else:
        journal.supersede(db, machine, tuple(Lane), who, _DELETION, now_ns)


def _sees_to(job: Job, deletion: str) -> bool:
    """Not where its arguments cannot be read: the machine is gone all the same."""
    try:
        return wanted(job).deletion == deletion
    except msgspec.ValidationError:
        return False


def wake(db: Connection, machines: Iterable[str]) -> None:
    """What hinders these deletions is something else than before, or nothing: also one that stood for that looks again."""
    for machine in machines:
        if (there := of_machine(db, machine)) is None:
            continue
        if there.attention:
            journal.again(db, there.id)
        else:
            journal.wake(db, machine, Lane.LIFE)


def kind(control: Control, cancel: Callable[[Job, str], Awaitable[None]]) -> Kind:
    def refused(db: Connection, job: Job) -> Refused:
        if job.direction is Direction.BACK:
            return {}
        found: dict[JobAct, UnderstudyError] = {
            JobAct.ABANDON: JobActError(
                f"'{JobAct.ABANDON}' was refused for job '{job.id}'",
                cause="the deletion itself would go on, and nobody would see to it",
                action=f"Take it back (understudy job cancel {job.id}), or say it again.",
            )
        }
        try:
            deletions.check_not_removed(db, job.machine, control.storage.place, not_taken_back(job.machine))
        except BeingDeletedError as exc:
            found[JobAct.CANCEL] = exc
        return found

    return Kind(
        name=Watch.DELETE,
        version=VERSION,
        steps=[_Set(control), _Delete(control)],
        lasting_s=0.0,
        refused=refused,
        cancel=cancel,
        is_told=False,
    )


def not_taken_back(machine: str) -> str:
    return f"The deletion of '{machine}' was not taken back"


class _Step:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def undo(self, _job: Job) -> bool | Waits | Stands:
        return False

    def _standing(self, db: Connection, job: Job) -> Deletion | None:
        """None: it was done. Read together with the job, which may see to a later one by now. Raises SaidSinceError."""
        id_ = wanted(journal.find(db, job.id)).deletion
        machine = inventory.find(db, job.machine)
        if machine is not None and machine.deletion is not None and machine.deletion.id == id_:
            return machine.deletion
        if deletions.is_done(db, job.machine, id_):
            return None
        raise SaidSinceError(
            f"The deletion of '{job.machine}' was not seen to its end",
            cause="it was taken back, or said again",
        )


class _Set(_Step):
    name: Final = SET

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits:
        """Only where the journal is in doubt. Nothing is said again."""
        await self._control.db.run(lambda db: self._standing(db, job))
        return None


class _Delete(_Step):
    name: Final = _STEP

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        deletion = await self._control.db.run(lambda db: self._standing(db, job))
        if deletion is None:
            return None
        hindered = self._control.hinders(deletion.id)
        if isinstance(hindered, DeletionUnconfirmedError | DeletionOfAnotherError):
            return Stands(hindered.cause, hindered)
        passed = min(1.0, deletion.passed_ns / deletion.after_ns) if deletion.after_ns else 1.0
        if hindered is not None:
            return Waits(hindered.cause, LOOK_S, passed)
        if not deletion.is_due:
            day = deletion_view.day(deletion)
            return Waits(f"the day on which it is deleted: {day}", LOOK_S, passed, is_change=False)
        return Waits("what storage has of it to go", LOOK_S, passed)
