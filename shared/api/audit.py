"""Who changed what."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Page, Paged, Route


class AuditView(msgspec.Struct, kw_only=True):
    id: int = 0
    """0: of a server that does not tell it."""
    time: str
    who: str
    action: str
    object: str
    detail: dict[str, Any]


class AuditList(Paged):
    entries: list[AuditView]


AUDIT = Route(
    "audit",
    "GET",
    "/v1/audit",
    Access.OPERATOR,
    Page,
    AuditList,
    "Who changed what, newest first",
    needs=Permission.AUDIT_READ,
)
