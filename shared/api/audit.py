"""Who changed what."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Limit, Route


class AuditView(msgspec.Struct, kw_only=True):
    time: str
    who: str
    action: str
    object: str
    detail: dict[str, Any]


class AuditList(msgspec.Struct):
    entries: list[AuditView]


AUDIT = Route(
    "audit",
    "GET",
    "/v1/audit",
    Access.OPERATOR,
    Limit,
    AuditList,
    "Who changed what, newest first",
    needs=Permission.AUDIT_READ,
)
