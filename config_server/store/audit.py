"""The audit log: who changed what, who was given access and who was refused it. Entries are never changed or removed."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, insert, select

from config_server.rules.clock import rfc3339
from config_server.store.schema import audit
from config_server.store.statements import BEHIND_ALL
from shared import decoding
from shared.api.audit import AuditView

_ADD: Final = insert(audit).inline()
_DETAILS: Final = select(audit.c.detail).where(
    audit.c.action == bindparam("of_action"), audit.c.object == bindparam("of_object")
)
_NEWEST: Final = (
    select(audit).where(audit.c.id < bindparam("before")).order_by(audit.c.id.desc()).limit(bindparam("most"))
)


def add(db: Connection, who: str, action: str, object_: str, detail: dict[str, Any], now_ns: int) -> None:
    """`who` is an operator (`operator:admin`), a daemon (ROLE:NAME), or `unknown`. `detail` holds no secrets."""
    plain = msgspec.json.encode(detail).decode()
    db.execute(_ADD, {"time_ns": now_ns, "who": who, "action": action, "object": object_, "detail": plain})


def details(db: Connection, action: str, object_: str) -> list[dict[str, Any]]:
    """Of all entries about this."""
    found = db.scalars(_DETAILS, {"of_action": action, "of_object": object_})
    return [decoding.decode(detail, type=dict[str, Any]) for detail in found]


def newest(db: Connection, limit: int, before: int = BEHIND_ALL) -> list[AuditView]:
    """`before`: the id of the last entry of the page before."""
    return [
        AuditView(
            id=row.id,
            time=rfc3339(row.time_ns),
            who=row.who,
            action=row.action,
            object=row.object,
            detail=decoding.decode(row.detail, type=Any),
        )
        for row in db.execute(_NEWEST, {"most": limit, "before": before})
    ]
