"""Replication policies: by name, one of them the default, and those that machines have had of their own since before policies had names.

What a policy does not say, an agent's own configuration does: a threshold alone sets no interval, and whoever has a machine follow the
default policy again, which nobody ever set, takes back what another one said. So agents are told settings with every answer, also none.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from config_server.rules.machine import Assigned
from shared import decoding
from shared.api.policies import Policy, PolicyView
from shared.desired import Settings
from shared.errors import PolicyNotFoundError, RequestError

UNCHOSEN_S: Final = 300.0
"""The interval of earlier versions' policies where nobody set one."""
DEFAULT: Final = "default"
"""Of machines that have no other. It is always there, and need not have been set."""


def find(db: sqlite3.Connection, name: str) -> Policy | None:
    row = db.execute("SELECT body FROM policies WHERE name = ?", (name,)).fetchone()
    return None if row is None else decoding.decode(row["body"], type=Policy)


def get(db: sqlite3.Connection, name: str) -> Policy:
    """Raises PolicyNotFoundError."""
    found = find(db, name)
    if found is None and name != DEFAULT:
        raise PolicyNotFoundError(f"Policy '{name}' was not found")
    return found or Policy()


def put(db: sqlite3.Connection, name: str, policy: Policy) -> None:
    """Creates or changes it."""
    db.execute("INSERT OR REPLACE INTO policies VALUES (?, ?)", (name, msgspec.json.encode(policy).decode()))


def delete(db: sqlite3.Connection, name: str) -> None:
    """Raises RequestError while it holds for a machine, PolicyNotFoundError."""
    get(db, name)
    what = f"Policy '{name}' was not deleted"
    if name == DEFAULT:
        raise RequestError(
            what,
            cause="it is that of all machines that have no other",
            action="Change it: understudy policy set default …",
        )
    if machines := users(db, name):
        shown = ", ".join(machines[:10]) + (f" and {len(machines) - 10} more" if len(machines) > 10 else "")
        raise RequestError(
            what,
            cause=f"it is assigned to {shown}",
            action="Assign another policy to them first: understudy policy assign default MACHINE.",
        )
    db.execute("DELETE FROM policies WHERE name = ?", (name,))


def users(db: sqlite3.Connection, name: str) -> list[str]:
    """The machines for which it holds."""
    if name == DEFAULT:
        return [
            row["name"]
            for row in db.execute(
                "SELECT name FROM machines WHERE policy_name IS NULL AND policy IS NULL ORDER BY name"
            )
        ]
    return [
        row["name"]
        for row in db.execute("SELECT name FROM machines WHERE policy_name = ? ORDER BY name", (name,))
    ]


def views(db: sqlite3.Connection) -> list[PolicyView]:
    """All, by name; the default one first."""
    names = [row["name"] for row in db.execute("SELECT name FROM policies ORDER BY name")]
    return [view(db, name) for name in (DEFAULT, *(name for name in names if name != DEFAULT))]


def view(db: sqlite3.Connection, name: str) -> PolicyView:
    """Raises PolicyNotFoundError."""
    policy = get(db, name)
    return PolicyView(
        name=name,
        machines=users(db, name),
        point_interval_s=settings(policy).point_interval_s,
        rpo_threshold_s=policy.rpo_threshold_s,
    )


def assign(db: sqlite3.Connection, machine: str, name: str) -> None:
    """From now on it holds for the machine, and follows its changes. Raises PolicyNotFoundError."""
    get(db, name)
    db.execute(
        "UPDATE machines SET policy = NULL, policy_name = ? WHERE name = ?",
        (None if name == DEFAULT else name, machine),
    )


def give_own(db: sqlite3.Connection, machine: str, policy: Policy) -> None:
    """One of the machine's own, without a name."""
    db.execute(
        "UPDATE machines SET policy = ?, policy_name = NULL WHERE name = ?",
        (msgspec.json.encode(policy).decode(), machine),
    )


def default(db: sqlite3.Connection) -> Assigned:
    return Assigned(get(db, DEFAULT), DEFAULT)


def of_row(db: sqlite3.Connection, row: sqlite3.Row) -> Assigned:
    """Of a machine's row."""
    if row["policy"] is not None:
        return Assigned(decoding.decode(row["policy"], type=Policy), "")
    name = row["policy_name"] or DEFAULT
    return Assigned(find(db, name) or Policy(), name)


def settings(policy: Policy) -> Settings:
    """For the agent."""
    interval_s = policy.point_interval_s
    return Settings(point_interval_s=None if interval_s is msgspec.UNSET else interval_s)
