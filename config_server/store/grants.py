"""The record of grants: who may read which machine's container, given when, ended how. What makes a grant count is its policy in
storage (granting.py).
"""

from __future__ import annotations

import sqlite3

import msgspec

from config_server.rules.clock import SECOND_NS, rfc3339
from shared import decoding
from shared.api.restores import GrantState, GrantView
from shared.errors import NotFoundError

_KEPT_NS = 90 * 86_400 * SECOND_NS
"""Older ones are in the audit log only."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    machine: str
    container: str
    """Where its policy is, also when the machine has another one since."""
    who: str
    host: str
    given_ns: int
    expires_ns: int
    ended_ns: int | None = None
    ended_by: str = ""
    returned: bool = False
    request: str = ""
    """The id with which it was asked for; empty when there was none."""

    def lives(self, now_ns: int) -> bool:
        return self.ended_ns is None and self.expires_ns > now_ns


def add(db: sqlite3.Connection, grant: Grant) -> None:
    db.execute("DELETE FROM grants WHERE expires_ns < ?", (grant.given_ns - _KEPT_NS,))
    db.execute(
        "INSERT INTO grants (id, machine, container, who, host, given_ns, expires_ns, request)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            grant.id,
            grant.machine,
            grant.container,
            grant.who,
            grant.host,
            grant.given_ns,
            grant.expires_ns,
            grant.request,
        ),
    )


def forget(db: sqlite3.Connection, id_: str) -> None:
    """It was never given."""
    db.execute("DELETE FROM grants WHERE id = ?", (id_,))


def get(db: sqlite3.Connection, machine: str, id_: str) -> Grant:
    """Raises NotFoundError."""
    row = db.execute("SELECT * FROM grants WHERE id = ? AND machine = ?", (id_, machine)).fetchone()
    if row is None:
        raise NotFoundError(
            f"Grant '{id_}' of machine '{machine}' was not found",
            cause="none was given under this id, or it ended long ago",
            action=f"`understudy grant list {machine}` shows those that were.",
        )
    return _grant(row)


def extend(db: sqlite3.Connection, id_: str, expires_ns: int) -> None:
    db.execute("UPDATE grants SET expires_ns = ? WHERE id = ?", (expires_ns, id_))


def end(db: sqlite3.Connection, id_: str, who: str, now_ns: int, *, returned: bool) -> None:
    """Of one that has ended, how it ended stays."""
    db.execute(
        "UPDATE grants SET ended_ns = ?, ended_by = ?, returned = ? WHERE id = ? AND ended_ns IS NULL",
        (now_ns, who, returned, id_),
    )


def living(db: sqlite3.Connection, container: str, now_ns: int) -> list[Grant]:
    rows = db.execute(
        "SELECT * FROM grants WHERE container = ? AND ended_ns IS NULL AND expires_ns > ?",
        (container, now_ns),
    )
    return [_grant(row) for row in rows]


def asked_for(db: sqlite3.Connection, request: str) -> Grant | None:
    """What was given when it was asked for with this id."""
    row = db.execute("SELECT * FROM grants WHERE request = ? AND request != ''", (request,)).fetchone()
    return None if row is None else _grant(row)


def newest(db: sqlite3.Connection, machine: str, limit: int) -> list[Grant]:
    rows = db.execute(
        "SELECT * FROM grants WHERE machine = ? ORDER BY given_ns DESC, id LIMIT ?", (machine, limit)
    )
    return [_grant(row) for row in rows]


def view(grant: Grant, now_ns: int) -> GrantView:
    if grant.ended_ns is not None:
        state = GrantState.RETURNED if grant.returned else GrantState.REVOKED
    else:
        state = GrantState.GIVEN if grant.lives(now_ns) else GrantState.EXPIRED
    return GrantView(
        id=grant.id,
        machine=grant.machine,
        who=grant.who,
        host=grant.host,
        state=state,
        given=rfc3339(grant.given_ns),
        expires=rfc3339(grant.expires_ns),
        ended=None if grant.ended_ns is None else rfc3339(grant.ended_ns),
        ended_by=grant.ended_by,
        life_s=(grant.expires_ns - now_ns) / SECOND_NS if grant.lives(now_ns) else 0.0,
    )


def _grant(row: sqlite3.Row) -> Grant:
    return decoding.convert({**dict(row), "returned": bool(row["returned"])}, Grant)
