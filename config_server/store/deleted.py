"""The containers that were deleted with their machines, for daemons that still have something of them. Functions of a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

import msgspec

from config_server.store import incarnations


def note(db: sqlite3.Connection, container: str, machine: str, now_ns: int) -> None:
    row = container, machine, incarnations.history(db)[-1], now_ns
    db.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?, ?, ?)", row)


def among(db: sqlite3.Connection, containers: Collection[str]) -> dict[str, str]:
    """Of these, those that were deleted in this incarnation of the database; and with which machine."""
    found = db.execute(
        "SELECT container, machine FROM deleted WHERE incarnation = ?"
        " AND container IN (SELECT value FROM json_each(?)) ORDER BY container",
        (incarnations.history(db)[-1], msgspec.json.encode(list(containers)).decode()),
    )
    return {row["container"]: row["machine"] for row in found}


def forget(db: sqlite3.Connection, container: str) -> None:
    db.execute("DELETE FROM deleted WHERE container = ?", (container,))
