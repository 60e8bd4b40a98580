"""Jobs: long operations that somebody started and can look at, here restores that a CLI runs."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import msgspec

from config_server.rules.clock import SECOND_NS, rfc3339
from shared import decoding
from shared.api.jobs import JobProgress, JobState, JobView
from shared.api.route import Failure
from shared.errors import JobGivenUpError, JobNotFoundError

_SILENT_NS: Final = 120 * SECOND_NS
"""A running job whose worker says nothing for so long has lost it."""


def create(
    db: sqlite3.Connection, id_: str, kind: str, machine: str, args: dict[str, Any], now_ns: int
) -> JobView:
    db.execute(
        "INSERT INTO jobs VALUES (?, ?, ?, 'running', NULL, '', ?, NULL, NULL, ?, ?)",
        (id_, kind, machine, msgspec.json.encode(args).decode(), now_ns, now_ns),
    )
    return get(db, id_)


def update(db: sqlite3.Connection, id_: str, report: JobProgress, now_ns: int) -> JobView:
    """Raises JobNotFoundError. An ended job stays as it ended; one that was only given up goes on when its worker is heard again."""
    get(db, id_)
    db.execute(
        "UPDATE jobs SET state = ?, progress = ?, detail = ?, result = ?, error = ?, updated_ns = ?"
        " WHERE id = ? AND (state = 'running' OR json_extract(error, '$.code') = ?)",
        (
            report.state,
            report.progress,
            report.detail,
            None if report.result is None else msgspec.json.encode(report.result).decode(),
            None if report.error is None else msgspec.json.encode(report.error).decode(),
            now_ns,
            id_,
            JobGivenUpError.code,
        ),
    )
    return get(db, id_)


def fail_silent(db: sqlite3.Connection, heard_ns: dict[str, int], mono_ns: int, now_ns: int) -> list[JobView]:
    """End the jobs whose worker is gone; those that were ended. `heard_ns` says when each was heard, by the monotonic clock: one that is
    not in it yet (this server has just started) is heard now, and those that do not run are taken out."""
    running = [row["id"] for row in db.execute("SELECT id FROM jobs WHERE state = 'running'")]
    for id_ in heard_ns.keys() - set(running):
        del heard_ns[id_]
    silent = [id_ for id_ in running if mono_ns - heard_ns.setdefault(id_, mono_ns) > _SILENT_NS]
    error = JobGivenUpError("The job was given up")
    report = JobProgress(state=JobState.FAILED, error=Failure(**error.as_dict(), exit_code=error.exit_code))
    return [update(db, id_, report, now_ns) for id_ in silent]


def get(db: sqlite3.Connection, id_: str) -> JobView:
    """Raises JobNotFoundError."""
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
    if row is None:
        raise JobNotFoundError(f"Job '{id_}' was not found")
    return _view(row)


def newest(db: sqlite3.Connection, limit: int) -> list[JobView]:
    rows = db.execute("SELECT * FROM jobs ORDER BY rowid DESC LIMIT ?", (limit,))
    return [_view(row) for row in rows]


def _view(row: sqlite3.Row) -> JobView:
    return JobView(
        id=row["id"],
        kind=row["kind"],
        machine=row["machine"],
        state=JobState(row["state"]),
        progress=row["progress"],
        detail=row["detail"],
        args=decoding.decode(row["args"], type=Any),
        result=None if row["result"] is None else decoding.decode(row["result"], type=dict[str, Any]),
        error=None if row["error"] is None else decoding.decode(row["error"], type=Failure),
        created=rfc3339(row["created_ns"]),
        updated=rfc3339(row["updated_ns"]),
    )
