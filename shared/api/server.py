"""The server itself."""

from __future__ import annotations

import msgspec

from shared.api.route import Access, Nothing, Route


class ServerInfo(msgspec.Struct, kw_only=True):
    name: str
    version: str
    api: int = 1
    """The server's API_VERSION."""


HEALTH = Route(
    "health", "GET", "/v1/health", Access.PUBLIC, Nothing, ServerInfo, "Is it up, and which version"
)
