"""Jobs: long operations that somebody started and can look at, here restores that a CLI runs."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, insert, select
from sqlalchemy import update as updating

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import jobs
from shared import decoding
from shared.api.jobs import JobProgress, JobState, JobView
from shared.api.route import Failure
from shared.errors import JobGivenUpError, JobNotFoundError

_SILENT_NS: Final = 120 * SECOND_NS
"""A running job whose worker says nothing for so long has lost it."""


_IT: Final = jobs.c.id == bindparam("it")
_CREATE: Final = insert(jobs)
_GET: Final = select(jobs).where(_IT)
_UPDATE: Final = updating(jobs).where(_IT)
_RUNNING: Final = select(jobs.c.id).where(jobs.c.state == JobState.RUNNING).order_by(jobs.c.rowid)
_OF_MACHINE: Final = (
    select(jobs.c.id, jobs.c.kind)
    .where(jobs.c.machine == bindparam("of_machine"), jobs.c.state == JobState.RUNNING)
    .order_by(jobs.c.id)
)
_ENDED_WITH_ERROR: Final = (
    select(jobs.c.id, jobs.c.error)
    .where(jobs.c.machine == bindparam("of_machine"), jobs.c.error.is_not(None))
    .order_by(jobs.c.id)
)
_NEWEST: Final = select(jobs).order_by(jobs.c.rowid.desc()).limit(bindparam("most"))


def create(db: Connection, id_: str, kind: str, machine: str, args: dict[str, Any], now_ns: int) -> JobView:
    new = {
        "id": id_,
        "kind": kind,
        "machine": machine,
        "state": JobState.RUNNING,
        "detail": "",
        "args": msgspec.json.encode(args).decode(),
        "created_ns": now_ns,
        "updated_ns": now_ns,
    }
    db.execute(_CREATE, new)
    return get(db, id_)


def update(db: Connection, id_: str, report: JobProgress, now_ns: int) -> JobView:
    """Raises JobNotFoundError. An ended job stays as it ended; one that was only given up goes on when its worker is heard again."""
    known = get(db, id_)
    is_given_up = known.error is not None and known.error.code == JobGivenUpError.code
    if known.state is not JobState.RUNNING and not is_given_up:
        return known
    now = {
        "state": report.state,
        "progress": report.progress,
        "detail": report.detail,
        "result": None if report.result is None else msgspec.json.encode(report.result).decode(),
        "error": None if report.error is None else msgspec.json.encode(report.error).decode(),
        "updated_ns": now_ns,
    }
    db.execute(_UPDATE, {"it": id_, **now})
    return get(db, id_)


def fail_silent(db: Connection, heard_ns: dict[str, int], mono_ns: int, now_ns: int) -> list[JobView]:
    """End the jobs whose worker is gone; those that were ended. `heard_ns` says when each was heard, by the monotonic clock: one that is
    not in it yet (this server has just started) is heard now, and those that do not run are taken out."""
    running = list(db.scalars(_RUNNING))
    for id_ in heard_ns.keys() - set(running):
        del heard_ns[id_]
    silent = [id_ for id_ in running if mono_ns - heard_ns.setdefault(id_, mono_ns) > _SILENT_NS]
    error = JobGivenUpError("The job was given up")
    report = JobProgress(state=JobState.FAILED, error=Failure(**error.as_dict(), exit_code=error.exit_code))
    return [update(db, id_, report, now_ns) for id_ in silent]


def get(db: Connection, id_: str) -> JobView:
    """Raises JobNotFoundError."""
    row = db.execute(_GET, {"it": id_}).first()
    if row is None:
        raise JobNotFoundError(f"Job '{id_}' was not found")
    return _view(row)


def running(db: Connection, machine: str) -> list[tuple[str, str]]:
    """Id and kind of each that runs over it."""
    return [(id_, kind) for id_, kind in db.execute(_OF_MACHINE, {"of_machine": machine})]


def given_up(db: Connection, machine: str) -> list[str]:
    """Those over it whose workers have lost this server, or are no more: such a one goes on when it is heard again."""
    found = db.execute(_ENDED_WITH_ERROR, {"of_machine": machine})
    return [row.id for row in found if decoding.decode(row.error, type=Failure).code == JobGivenUpError.code]


def newest(db: Connection, limit: int) -> list[JobView]:
    return [_view(row) for row in db.execute(_NEWEST, {"most": limit})]


def _view(row: Row[Any]) -> JobView:
    return JobView(
        id=row.id,
        kind=row.kind,
        machine=row.machine,
        state=JobState(row.state),
        progress=row.progress,
        detail=row.detail,
        args=decoding.decode(row.args, type=Any),
        result=None if row.result is None else decoding.decode(row.result, type=dict[str, Any]),
        error=None if row.error is None else decoding.decode(row.error, type=Failure),
        created=rfc3339(row.created_ns),
        updated=rfc3339(row.updated_ns),
    )
