"""The audit log: who changed what, who was given access and who was refused it. Entries are never changed or removed."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from config_server.rules.clock import rfc3339
from shared import decoding
from shared.api.audit import AuditView


def add(
    db: sqlite3.Connection, who: str, action: str, object_: str, detail: dict[str, Any], now_ns: int
) -> None:
    """`who` is an operator (`operator:admin`), a daemon (ROLE:NAME), or `unknown`. `detail` holds no secrets."""
    db.execute(
        "INSERT INTO audit (time_ns, who, action, object, detail) VALUES (?, ?, ?, ?, ?)",
        (now_ns, who, action, object_, msgspec.json.encode(detail).decode()),
    )


def newest(db: sqlite3.Connection, limit: int) -> list[AuditView]:
    rows = db.execute("SELECT * FROM audit ORDER BY id DESC LIMIT ?", (limit,))
    return [
        AuditView(
            time=rfc3339(row["time_ns"]),
            who=row["who"],
            action=row["action"],
            object=row["object"],
            detail=decoding.decode(row["detail"], type=Any),
        )
        for row in rows
    ]
