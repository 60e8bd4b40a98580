"""Restores in the journal of jobs: what the command says that does one, somewhere. Functions of a transaction.

A job of a restore is driven by a config server (operations/restore_job.py), which does nothing of the restore itself: a command reports how
it goes, and its words turn and wake the job as a person's would. So they are taken here by whoever hears them, and need no claim.

    running      shown. A job that stood still because nothing was heard goes on
    done         the job goes on to its end, with this result
    failed       the job goes back: it ends as failed, with this error
    cancelled    the job goes back: it ends as cancelled

The command's first word of an end is its last: what comes behind it was said before it (two connections), or by somebody else. Of a job
that has ended nothing is changed any more, and the answer says how it ended.

`US553` (JobGivenUpError) as the job's error means that nobody knows whether its command still runs. It is set when the job stands still
for that, when a database was put back, and when it is cancelled and the command did not answer; and goes with the command's next word.
While it is there a deletion of the machine waits, for a day (store/deletions.py).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, or_, select, update

from config_server.store import jobs
from config_server.store.journal import OF_WORKER, WOKEN, args_of, read
from config_server.store.schema import jobs as table
from shared.api.jobs import Direction, JobProgress, JobState, JobView, WorkerState
from shared.api.route import Failure
from shared.errors import JobGivenUpError, RestoreError

KIND: Final = "restore"
VERSION: Final = 1
STEPS: Final = ("grant", "watch")
"""All are begun with the job: its command has the grant by then, and works."""
GRANT: Final = "grant"
"""The argument: the id of the grant by which its command reads, and nothing of what opens storage; empty: it needs none."""

_IT: Final = table.c.id == bindparam("it")
_CHANGE: Final = update(table).where(_IT)
_ACTIVE: Final = (table.c.kind == KIND, table.c.state == JobState.RUNNING)
_MAY_READ: Final = select(table.c.state, table.c.error, table.c.args).where(
    table.c.machine == bindparam("of_machine"),
    table.c.kind == KIND,
    table.c.id != bindparam("but"),
    table.c.direction == Direction.FORWARD,
    or_(
        table.c.state == JobState.RUNNING,
        and_(table.c.version == OF_WORKER, table.c.state == JobState.FAILED, table.c.error.is_not(None)),
    ),
)


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """The command that does a restore, as it was heard last."""

    state: WorkerState
    """RUNNING until it has said that it has ended."""
    heard_ns: int
    """When; 0: never. For people, and to see that something was said since."""
    progress: float | None
    result: dict[str, Any] | None

    @property
    def has_ended(self) -> bool:
        return self.state is not WorkerState.RUNNING


class Heard(NamedTuple):
    job: JobView
    """As it is behind that."""
    is_end: bool
    """Its command has said for the first time that it has ended."""


def worker(db: Connection, id_: str) -> Worker:
    """Raises JobNotFoundError."""
    row = jobs.row(db, id_)
    return Worker(
        state=_state(row),
        heard_ns=row.heard_ns,
        progress=row.progress,
        result=read(row.result, dict[str, Any], None),
    )


def hear(db: Connection, id_: str, said: JobProgress, who: str, now_ns: int) -> Heard:
    """Of a job that is no restore nothing is changed. Raises JobNotFoundError."""
    row = jobs.row(db, id_)
    if row.version == OF_WORKER:
        before, after = jobs.get(db, id_), jobs.update(db, id_, said, now_ns)
        is_new = (before.state, before.error) != (after.state, after.error)
        return Heard(after, is_new and after.state is not JobState.RUNNING)
    changes = _changes(row, said, who, now_ns) if row.kind == KIND else {}
    if changes:
        db.execute(_CHANGE.values(**changes), {"it": id_})
    return Heard(jobs.get(db, id_), "worker" in changes and said.state is not WorkerState.RUNNING)


def _changes(row: Row[Any], said: JobProgress, who: str, now_ns: int) -> dict[str, Any]:
    is_unheard = jobs.is_given_up(row.error)
    known = {"error": None} if is_unheard else {}
    was_given_up = row.state == JobState.FAILED and is_unheard and not row.attention  # else it was abandoned
    if row.state != JobState.RUNNING and not was_given_up:
        return known if said.state is not WorkerState.RUNNING else {}
    if _state(row) is not WorkerState.RUNNING:
        return {}
    heard: dict[str, Any] = {
        "worker": said.state,
        "heard_ns": now_ns,
        "updated_ns": now_ns,
        "progress": said.progress,
        "detail": said.detail,
    }
    if row.direction == Direction.BACK:  # which it hears with the answer
        return heard | ({**known, "wake_ns": WOKEN} if said.state is not WorkerState.RUNNING else {})
    # A program from before these jobs gave it up as one of its own: it goes on.
    heard |= known | {"state": JobState.RUNNING, "ended_ns": None}
    if row.attention or said.state is not WorkerState.RUNNING:
        heard |= {"attention": False, "waits": "", "wake_ns": WOKEN}
    elif row.owner:  # who may be about to say that it is not heard
        heard |= {"wake_ns": WOKEN}
    match said.state:
        case WorkerState.RUNNING:
            return heard
        case WorkerState.DONE:
            return heard | {"result": msgspec.json.encode(said.result or {}).decode()}
        case WorkerState.FAILED:
            error = said.error or failure_of(RestoreError(f"The restore of {row.machine} failed"))
            return heard | {"direction": Direction.BACK, "error": msgspec.json.encode(error).decode()}
        case WorkerState.CANCELLED:
            return heard | {"direction": Direction.BACK, "cancelled_by": who}


def give_up(db: Connection, id_: str, error: JobGivenUpError) -> JobView | None:
    """It goes back, and its command did not say that it heard of that. None where it did, or that was written down before."""
    row = jobs.row(db, id_)
    if row.state != JobState.RUNNING or _state(row) is not WorkerState.RUNNING or jobs.is_given_up(row.error):
        return None
    db.execute(_CHANGE.values(error=msgspec.json.encode(failure_of(error)).decode()), {"it": id_})
    return jobs.get(db, id_)


def doubt(db: Connection, error: JobGivenUpError) -> None:
    """This database was put back: of each restore that it calls unended nobody knows whether it goes on, until its command is heard."""
    unknown = (
        update(table)
        .where(*_ACTIVE, table.c.version > OF_WORKER, table.c.direction == Direction.FORWARD)
        .values(error=msgspec.json.encode(failure_of(error)).decode())
    )
    db.execute(unknown)


def have_grant(db: Connection, machine: str, grant: str, but: str) -> bool:
    """Whether another restore of the machine reads by this grant, or may: one that goes forward, or of version 0 that was given up."""
    found = db.execute(_MAY_READ, {"of_machine": machine, "but": but})
    may = (row for row in found if row.state == JobState.RUNNING or jobs.is_given_up(row.error))
    return any(args_of(row.args).get(GRANT) == grant for row in may)


def failure_of(error: RestoreError) -> Failure:
    return Failure(**error.as_dict(), exit_code=error.exit_code)


def _state(row: Row[Any]) -> WorkerState:
    return WorkerState(row.worker or WorkerState.RUNNING)
