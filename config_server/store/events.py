"""Events: what went wrong (open until it is over) and what happened.

A problem is one event as long as its reporter, object, code and key stay the same, however often it is reported:
it opens when it first appears, is updated when its words or its severity change, and is resolved when it is not reported any
more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from config_server.rules.clock import SECOND_NS, rfc3339
from shared.api.events import EventKind, EventView
from shared.status import Problem
from shared.vocabulary import Severity

_KEPT_NS: Final = 90 * 86_400 * SECOND_NS
_KEPT_ALWAYS: Final = 10_000
KEPT_OF_SOURCE: Final = 5000
"""Events of one source that are over: whoever makes more pushes out his own oldest, and nobody else's."""
_REFRESH_NS: Final = 60 * SECOND_NS
"""An open event's time of last sight is stored at most this often."""


def reconcile(
    db: sqlite3.Connection, source: str, problems: Iterable[Problem], now_ns: int
) -> list[EventView]:
    """Make the open events of `source` those that `problems` say; the events that were opened or resolved."""
    now_open = {(p.object, p.code, p.key): p for p in problems}
    changed: list[int] = []
    rows = db.execute("SELECT * FROM events WHERE source = ? AND resolved_ns IS NULL", (source,)).fetchall()
    for row in rows:
        problem = now_open.pop((row["object"], row["code"], row["key"]), None)
        if problem is None:
            db.execute("UPDATE events SET resolved_ns = ? WHERE id = ?", (now_ns, row["id"]))
            changed.append(row["id"])
        elif (problem.what, problem.cause, problem.severity) != (row["what"], row["cause"], row["severity"]):
            db.execute(
                "UPDATE events SET severity = ?, what = ?, cause = ?, action = ?, last_ns = ?, count = count + 1"
                " WHERE id = ?",
                (problem.severity, problem.what, problem.cause, problem.action, now_ns, row["id"]),
            )
        elif abs(now_ns - row["last_ns"]) > _REFRESH_NS:  # a clock that was ahead stops nothing
            db.execute("UPDATE events SET last_ns = ? WHERE id = ?", (now_ns, row["id"]))
    changed.extend(
        _insert(db, EventKind.PROBLEM, source, problem, now_ns, None) for problem in now_open.values()
    )
    if changed:
        _trim_source(db, source)
    return [_view(db.execute("SELECT * FROM events WHERE id = ?", (id_,)).fetchone()) for id_ in changed]


def note(db: sqlite3.Connection, kind: EventKind, source: str, happened: Problem, now_ns: int) -> None:
    """Something that happened and is over: a state that changed, a job that ended."""
    _insert(db, kind, source, happened, now_ns, now_ns)
    _trim_source(db, source)


def is_noted(db: sqlite3.Connection, source: str, code: str, key: str) -> bool:
    """Whether such an event is known, over or not."""
    found = db.execute(
        "SELECT 1 FROM events WHERE source = ? AND code = ? AND key = ?", (source, code, key)
    ).fetchone()
    return found is not None


def trim(db: sqlite3.Connection, now_ns: int) -> None:
    """What is over, old, and not among the newest: a clock that is years ahead must not wipe out the history."""
    db.execute(
        "DELETE FROM events WHERE resolved_ns < ? AND id <= (SELECT max(id) FROM events) - ?",
        (now_ns - _KEPT_NS, _KEPT_ALWAYS),
    )


def _trim_source(db: sqlite3.Connection, source: str) -> None:
    db.execute(
        "DELETE FROM events WHERE source = ?1 AND resolved_ns IS NOT NULL AND id <= (SELECT id FROM events"
        " WHERE source = ?1 AND resolved_ns IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        (source, KEPT_OF_SOURCE),
    )


def find(db: sqlite3.Connection, object_: str, only_open: bool, limit: int) -> list[EventView]:
    """Newest first. `object_` "" means all; "web1" also finds its disks ("web1/sda")."""
    rows = db.execute(
        "SELECT * FROM events WHERE (? = '' OR object = ? OR object LIKE ? ESCAPE '!')"
        " AND (NOT ? OR resolved_ns IS NULL) ORDER BY id DESC LIMIT ?",
        (object_, object_, f"{_escaped(object_)}/%", only_open, limit),
    )
    return [_view(row) for row in rows]


def _insert(
    db: sqlite3.Connection,
    kind: EventKind,
    source: str,
    problem: Problem,
    now_ns: int,
    resolved_ns: int | None,
) -> int:
    cursor = db.execute(
        "INSERT INTO events (kind, severity, source, object, code, key, what, cause, action, first_ns, last_ns,"
        " count, resolved_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
        (
            kind,
            problem.severity,
            source,
            problem.object,
            problem.code,
            problem.key,
            problem.what,
            problem.cause,
            problem.action,
            now_ns,
            now_ns,
            resolved_ns,
        ),
    )
    return int(cursor.lastrowid or 0)


def _view(row: sqlite3.Row) -> EventView:
    return EventView(
        id=row["id"],
        kind=EventKind(row["kind"]),
        severity=Severity(row["severity"]),
        object=row["object"],
        code=row["code"],
        what=row["what"],
        cause=row["cause"],
        action=row["action"],
        source=row["source"],
        first=rfc3339(row["first_ns"]),
        last=rfc3339(row["last_ns"]),
        count=row["count"],
        resolved=None if row["resolved_ns"] is None else rfc3339(row["resolved_ns"]),
    )


def _escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
