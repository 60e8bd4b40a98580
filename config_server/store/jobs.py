"""Jobs as they are shown, whoever drives them (journal.py).

Those of version 0 are nobody's here: restores that a program from before the journal of jobs began, whose commands report them. They end as
they did. Nothing makes them any more, so `update`, `fail_silent`, `given_up`'s word of FAILED ones and `journal.OF_WORKER` can go with the
release behind the next one, together with Control.job_heard: no upgrade leads past that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, or_, select
from sqlalchemy import update as updating

from config_server.rules import job_view
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.journal import OF_WORKER, args_of, error_of, read
from config_server.store.schema import jobs, steps
from shared.api.jobs import (
    Direction,
    JobProgress,
    JobQuery,
    JobState,
    JobView,
    StepState,
    StepView,
    WorkerState,
)
from shared.api.route import Failure
from shared.errors import JobGivenUpError, JobNotFoundError

_SILENT_NS: Final = 120 * SECOND_NS
"""A running job whose worker says nothing for so long has lost it."""


_THAT: Final = jobs.alias("that")
_IT: Final = jobs.c.id == bindparam("it")
_GET: Final = select(jobs).where(_IT)
_UPDATE: Final = updating(jobs).where(_IT)
_ACTIVE: Final = jobs.c.state == JobState.RUNNING
_OF_WORKERS: Final = (
    select(jobs.c.id, jobs.c.updated_ns).where(_ACTIVE, jobs.c.version == OF_WORKER).order_by(jobs.c.rowid)
)
_STEPS: Final = select(steps).where(steps.c.job.in_(bindparam("ids", expanding=True))).order_by(steps.c.rowid)
_OF_MACHINE: Final = (
    select(jobs.c.id, jobs.c.kind, jobs.c.error)
    .where(jobs.c.machine == bindparam("of_machine"), _ACTIVE)
    .order_by(jobs.c.id)
)
_WITH_ERROR: Final = (
    select(jobs.c.id, jobs.c.error)
    .where(jobs.c.machine == bindparam("of_machine"), jobs.c.error.is_not(None))
    .order_by(jobs.c.id)
)
_ATTENTION: Final = select(jobs).where(_ACTIVE, jobs.c.attention.is_(True)).order_by(jobs.c.rowid)
_PLACE: Final = select(_THAT.c.rowid).where(_THAT.c.id == bindparam("before")).scalar_subquery()
_NEWEST: Final = (
    select(jobs)
    .where(
        or_(bindparam("of_machine") == "", jobs.c.machine == bindparam("of_machine")),
        or_(bindparam("whether_ended"), _ACTIVE),
        or_(bindparam("before") == "", jobs.c.rowid < _PLACE),
    )
    .order_by(jobs.c.rowid.desc())
    .limit(bindparam("most"))
)


def update(db: Connection, id_: str, report: JobProgress, now_ns: int) -> JobView:
    """Of version 0. Raises JobNotFoundError. An ended job stays as it ended; one that was only given up goes on when its worker is heard
    again. One that a config server drives is not changed."""
    found = row(db, id_)
    known = _view(found, [])
    if found.version > OF_WORKER:
        return get(db, id_)
    if known.state is not JobState.RUNNING and not is_given_up(found.error):
        return known
    now = {
        "state": JobState(report.state),
        "progress": report.progress,
        "detail": report.detail,
        "result": None if report.result is None else msgspec.json.encode(report.result).decode(),
        "error": None if report.error is None else msgspec.json.encode(report.error).decode(),
        "updated_ns": now_ns,
    }
    db.execute(_UPDATE, {"it": id_, **now})
    return get(db, id_)


Heard = dict[str, tuple[int, int]]
"""By job: what its row said of when its worker was heard, and when that was seen first (monotonic)."""


def heard(db: Connection, before: Heard, mono_ns: int) -> Heard:
    """Of the jobs of version 0 that run, as it is now. One that is not in `before` (this server has just started) is heard now, and so is
    one whose worker has said something since, whichever server heard it: the times themselves are never compared."""
    running = {row.id: row.updated_ns for row in db.execute(_OF_WORKERS)}
    found = {id_: before.get(id_) for id_ in running}
    return {
        id_: known if known is not None and known[0] == running[id_] else (running[id_], mono_ns)
        for id_, known in found.items()
    }


def fail_silent(db: Connection, heard: Heard, mono_ns: int, now_ns: int) -> list[JobView]:
    """End the jobs of version 0 whose worker is gone; those that were ended."""
    silent = [id_ for id_, (_, since_ns) in heard.items() if mono_ns - since_ns > _SILENT_NS]
    error = JobGivenUpError("The job was given up")
    report = JobProgress(
        state=WorkerState.FAILED, error=Failure(**error.as_dict(), exit_code=error.exit_code)
    )
    return [update(db, id_, report, now_ns) for id_ in silent]


def get(db: Connection, id_: str) -> JobView:
    """Raises JobNotFoundError."""
    return _views(db, [row(db, id_)])[0]


def row(db: Connection, id_: str) -> Row[Any]:
    """Raises JobNotFoundError."""
    found = db.execute(_GET, {"it": id_}).first()
    if found is None:
        raise JobNotFoundError(f"Job '{id_}' was not found")
    return found


def that_need_attention(db: Connection) -> list[JobView]:
    return _views(db, db.execute(_ATTENTION).all())


def running(db: Connection, machine: str) -> list[tuple[str, str]]:
    """Id and kind of each that runs over it, as far as is known."""
    found = db.execute(_OF_MACHINE, {"of_machine": machine})
    return [(id_, kind) for id_, kind, error in found if not is_given_up(error)]


def given_up(db: Connection, machine: str) -> list[str]:
    """Those over it whose workers have lost this server, or are no more: such a one goes on when it is heard again."""
    found = db.execute(_WITH_ERROR, {"of_machine": machine})
    return [id_ for id_, error in found if is_given_up(error)]


def is_given_up(error: str | None) -> bool:
    """Whether this error of a job says that nobody knows whether its worker still runs."""
    found = error_of(error)
    return found is not None and found.code == JobGivenUpError.code


def newest(db: Connection, query: JobQuery) -> list[JobView]:
    """Raises JobNotFoundError, of `before`."""
    if query.before:
        row(db, query.before)
    asked = {
        "of_machine": query.machine, "whether_ended": not query.active, "before": query.before, "most": query.limit,
    }  # fmt: skip
    return _views(db, db.execute(_NEWEST, asked).all())


def _views(db: Connection, rows: Sequence[Row[Any]]) -> list[JobView]:
    known: dict[str, list[StepView]] = {row.id: [] for row in rows}
    if driven := [row.id for row in rows if row.version > OF_WORKER]:
        for step in db.execute(_STEPS, {"ids": driven}):
            known[step.job].append(
                StepView(
                    name=step.step,
                    state=StepState(step.state),
                    tries=step.tries,
                    changed=rfc3339(step.changed_ns),
                )
            )
    return [_view(row, known[row.id]) for row in rows]


def _view(row: Row[Any], begun: list[StepView]) -> JobView:
    direction = Direction(row.direction)
    state = job_view.state(JobState(row.state), waits=row.waits, attention=bool(row.attention))
    return JobView(
        id=row.id,
        kind=row.kind,
        machine=row.machine,
        state=state,
        progress=row.progress,
        detail=row.detail,
        args=args_of(row.args),
        result=read(row.result, dict[str, Any], None),
        error=error_of(row.error),
        created=rfc3339(row.created_ns),
        updated=rfc3339(row.updated_ns),
        who=row.who,
        direction=direction,
        waits=row.waits,
        cancelled_by=row.cancelled_by,
        superseded_by=row.superseded_by,
        steps=begun,
        allowed=job_view.allowed(state, direction, is_driven=row.version > OF_WORKER),
    )
