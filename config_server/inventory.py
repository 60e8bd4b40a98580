"""Machines, their disks and policies, and the last report of every daemon."""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from shared import decoding
from shared.errors import MachineNotFoundError
from shared.messages import Policy
from shared.vocabulary import Role

_DEFAULT_POLICY: Final = "default-policy"


class Machine(msgspec.Struct, frozen=True):
    name: str
    protected: bool
    disks: tuple[str, ...]
    """Device paths on the machine that shall be protected."""
    policy: Policy
    created_ns: int
    ended: bool = False
    """Its protection was: whoever is silent then is not missed."""


class StoredReport(msgspec.Struct, frozen=True):
    role: Role
    name: str
    received_ns: int
    report: bytes
    """JSON as the daemon sent it."""


def default_policy(db: sqlite3.Connection) -> Policy:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (_DEFAULT_POLICY,)).fetchone()
    return decoding.decode(row["value"], type=Policy) if row else Policy()


def set_default_policy(db: sqlite3.Connection, policy: Policy) -> None:
    db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_DEFAULT_POLICY, _json(policy)))


def machines(db: sqlite3.Connection) -> list[Machine]:
    default = default_policy(db)
    return [_machine(row, default) for row in db.execute("SELECT * FROM machines ORDER BY name")]


def machine(db: sqlite3.Connection, name: str) -> Machine:
    """Raises MachineNotFoundError."""
    row = db.execute("SELECT * FROM machines WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise MachineNotFoundError(f"Machine '{name}' was not found")
    return _machine(row, default_policy(db))


def ensure_machine(db: sqlite3.Connection, name: str, now_ns: int) -> None:
    """A machine whose agent reports is known, protected or not."""
    db.execute(
        "INSERT OR IGNORE INTO machines (name, protected, disks, policy, created_ns) VALUES (?, 0, '[]', NULL, ?)",
        (name, now_ns),
    )


def protect(
    db: sqlite3.Connection, name: str, disks: list[str], policy: Policy | None, now_ns: int
) -> Machine:
    """Record that `disks` of `name` shall be protected; a `policy` of None means the default one."""
    ensure_machine(db, name, now_ns)
    db.execute(
        "UPDATE machines SET protected = 1, ended = 0, disks = ?, policy = ? WHERE name = ?",
        (_json(disks), None if policy is None else _json(policy), name),
    )
    return machine(db, name)


def unprotect(db: sqlite3.Connection, name: str) -> Machine:
    machine(db, name)
    db.execute("UPDATE machines SET protected = 0, ended = 1 WHERE name = ?", (name,))
    return machine(db, name)


def save_report(db: sqlite3.Connection, stored: StoredReport) -> None:
    db.execute(
        "INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?)",
        (stored.role, stored.name, stored.received_ns, stored.report.decode()),
    )


def reports(db: sqlite3.Connection) -> list[StoredReport]:
    return [
        StoredReport(Role(row["role"]), row["name"], row["received_ns"], row["report"].encode())
        for row in db.execute("SELECT * FROM reports")
    ]


def _machine(row: sqlite3.Row, default: Policy) -> Machine:
    return Machine(
        name=row["name"],
        protected=bool(row["protected"]),
        disks=decoding.decode(row["disks"], type=tuple[str, ...]),
        policy=default if row["policy"] is None else decoding.decode(row["policy"], type=Policy),
        created_ns=row["created_ns"],
        ended=bool(row["ended"]),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
