"""Events: what went wrong (open until it is over) and what happened.

A problem is one event as long as its reporter, object, code and key stay the same, however often it is reported:
it opens when it first appears, is updated when its words or its severity change, and is resolved when it is not reported any
more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, or_, select, update

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import OPEN, events
from config_server.store.statements import BEHIND_ALL, Prepared, Put
from shared.api.events import EventKind, EventView
from shared.status import Problem
from shared.vocabulary import Severity

_KEPT_NS: Final = 90 * 86_400 * SECOND_NS
_KEPT_ALWAYS: Final = 10_000
KEPT_OF_SOURCE: Final = 5000
"""Events of one source that are over: whoever makes more pushes out his own oldest, and nobody else's."""
_REFRESH_NS: Final = 60 * SECOND_NS
"""An open event's time of last sight is stored at most this often."""

_IS_OPEN: Final = events.c.resolved_ns.is_(None)
_IS_OVER: Final = events.c.resolved_ns.is_not(None)
_OF_SOURCE: Final = events.c.source == bindparam("of_source")
_IT: Final = events.c.id == bindparam("it")
_C: Final = events.c
_VIEWED: Final = select(
    *(_C.id, _C.kind, _C.severity, _C.object, _C.code, _C.what, _C.cause, _C.action),
    *(_C.source, _C.first_ns, _C.last_ns, _C.count, _C.resolved_ns),
)
_OPEN_OF_SOURCE: Final = Prepared(
    select(
        events.c.id, events.c.last_ns, events.c.severity, events.c.what, events.c.cause, events.c.object, events.c.code, events.c.key
    )
    .where(_OF_SOURCE, _IS_OPEN)
    .order_by(events.c.id)
)  # fmt: skip
_RESOLVE: Final = Prepared(
    update(events)
    .where(events.c.id.in_(bindparam("ids", expanding=True)))
    .values(resolved_ns=bindparam("now_ns"))
    .returning(*_VIEWED.selected_columns)
)
_REFRESH: Final = update(events).where(_IT).values(last_ns=bindparam("now_ns"))
_REWORD: Final = (
    update(events)
    .where(_IT)
    .values(
        last_ns=bindparam("now_ns"),
        count=events.c.count + 1,
        severity=bindparam("as_severity"),
        what=bindparam("as_what"),
        cause=bindparam("as_cause"),
        action=bindparam("as_action"),
    )
)
_NOTE: Final = Prepared(insert(events).inline())
_BEGIN: Final = Put(
    lambda into: (
        into(events)
        .on_conflict_do_nothing(index_elements=OPEN, index_where=_IS_OPEN)
        .returning(*_VIEWED.selected_columns)
    )
)
"""Nothing where another server has opened the same one meanwhile."""
_NOTED: Final = (
    select(events.c.id)
    .where(_OF_SOURCE, events.c.code == bindparam("of_code"), events.c.key == bindparam("of_key"))
    .limit(1)
)
_TRIM: Final = delete(events).where(
    events.c.resolved_ns < bindparam("until_ns"),
    events.c.id <= select(func.max(events.c.id)).scalar_subquery() - bindparam("kept"),
)
_TRIM_SOURCE: Final = Prepared(
    delete(events).where(
        _OF_SOURCE,
        _IS_OVER,
        events.c.id
        <= select(events.c.id)
        .where(_OF_SOURCE, _IS_OVER)
        .order_by(events.c.id.desc())
        .limit(1)
        .offset(bindparam("kept"))
        .scalar_subquery(),
    )
)


def reconcile(db: Connection, source: str, problems: Iterable[Problem], now_ns: int) -> list[EventView]:
    """Make the open events of `source` those that `problems` say; the events that were opened or resolved."""
    now_open = {(p.object, p.code, p.key): p for p in map(_storable, problems)}
    over: list[int] = []
    reworded: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    for row in _OPEN_OF_SOURCE(db, {"of_source": source}).all():
        problem = now_open.pop((row.object, row.code, row.key), None)
        if problem is None:
            over.append(row.id)
        elif (problem.what, problem.cause, problem.severity) != (row.what, row.cause, row.severity):
            words = {
                "as_severity": problem.severity,
                "as_what": problem.what,
                "as_cause": problem.cause,
                "as_action": problem.action,
            }
            reworded.append({"it": row.id, "now_ns": now_ns, **words})
        elif abs(now_ns - row.last_ns) > _REFRESH_NS:  # a clock that was ahead stops nothing
            seen.append({"it": row.id, "now_ns": now_ns})
    for statement, rows in ((_REWORD, reworded), (_REFRESH, seen)):
        if rows:
            db.execute(statement, rows)
    changed = _views(_RESOLVE(db, {"ids": over, "now_ns": now_ns})) if over else []
    if now_open:
        new = [_row(EventKind.PROBLEM, source, problem, now_ns, None) for problem in now_open.values()]
        changed += _views(_BEGIN(db, new))
    if changed:
        _trim_source(db, source)
    return changed


def _storable(problem: Problem) -> Problem:
    """As it is found again: PostgreSQL has no letter for NUL, and would have another one's words in the row."""
    words = msgspec.structs.asdict(problem)
    if not any("\0" in word for word in words.values()):
        return problem
    return Problem(
        **words | {name: word.replace("\0", "\ufffd") for name, word in words.items() if name != "severity"}
    )


def _views(changed: Iterable[Row[Any]]) -> list[EventView]:
    """By id: databases give them as it comes."""
    return sorted(map(_view, changed), key=lambda event: event.id)


def note(db: Connection, kind: EventKind, source: str, happened: Problem, now_ns: int) -> None:
    """Something that happened and is over: a state that changed, a job that ended."""
    _NOTE(db, _row(kind, source, happened, now_ns, now_ns))
    _trim_source(db, source)


def is_noted(db: Connection, source: str, code: str, key: str) -> bool:
    """Whether such an event is known, over or not."""
    return db.execute(_NOTED, {"of_source": source, "of_code": code, "of_key": key}).first() is not None


def trim(db: Connection, now_ns: int) -> None:
    """What is over, old, and not among the newest: a clock that is years ahead must not wipe out the history."""
    db.execute(_TRIM, {"until_ns": now_ns - _KEPT_NS, "kept": _KEPT_ALWAYS})


def _trim_source(db: Connection, source: str) -> None:
    _TRIM_SOURCE(db, {"of_source": source, "kept": KEPT_OF_SOURCE})


def find(
    db: Connection, object_: str, only_open: bool, limit: int, before: int = BEHIND_ALL
) -> list[EventView]:
    """Newest first. `before`: the id of the last one of the page before.
    `object_` "" means all; "web1" also finds its disks ("web1/sda")."""
    asked: dict[str, Any] = {"most": limit, "before": before}
    asked |= {"of_object": object_, "within": f"{object_}/"} if object_ else {}
    return [_view(row) for row in db.execute(_found(bool(object_), only_open), asked)]


@functools.cache
def _found(of_object: bool, only_open: bool) -> Select[Any]:
    found = _VIEWED.where(events.c.id < bindparam("before"))
    found = found.order_by(events.c.id.desc()).limit(bindparam("most"))
    if of_object:
        within = bindparam("within", type_=events.c.object.type)
        # (Of LIKE, each database takes other letters for the same.)
        begins = func.substr(events.c.object, 1, func.length(within)) == within
        found = found.where(or_(events.c.object == bindparam("of_object"), begins))
    return found.where(_IS_OPEN) if only_open else found


def _row(
    kind: EventKind, source: str, problem: Problem, now_ns: int, resolved_ns: int | None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "severity": problem.severity,
        "source": source,
        "object": problem.object,
        "code": problem.code,
        "key": problem.key,
        "what": problem.what,
        "cause": problem.cause,
        "action": problem.action,
        "first_ns": now_ns,
        "last_ns": now_ns,
        "count": 1,
        "resolved_ns": resolved_ns,
    }


def _view(row: Row[Any]) -> EventView:
    # Taken apart in the order of _VIEWED: to ask a row for each by its name takes as long as all the rest.
    id_, kind, severity, object_, code, what, cause, action, source, first_ns, last_ns, count, resolved_ns = (
        row
    )
    return EventView(
        id=id_,
        kind=EventKind(kind),
        severity=Severity(severity),
        object=object_,
        code=code,
        what=what,
        cause=cause,
        action=action,
        source=source,
        first=rfc3339(first_ns),
        last=rfc3339(last_ns),
        count=count,
        resolved=None if resolved_ns is None else rfc3339(resolved_ns),
    )
