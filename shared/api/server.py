"""The server itself."""

from __future__ import annotations

import msgspec

from shared.api.route import Access, Nothing, Route
from shared.errors import ServerNotReadyError


class ServerInfo(msgspec.Struct, kw_only=True):
    name: str
    version: str
    api: int = 1
    """The server's API_VERSION."""


HEALTH = Route(
    "health", "GET", "/v1/health", Access.PUBLIC, Nothing, ServerInfo, "Is it up, and which version"
)
READY = Route(
    "ready", "GET", "/v1/ready", Access.PUBLIC, Nothing, ServerInfo,
    "Should a load balancer send somebody here: its database answers, no other server is in force, and its CA is the daemons'",
    errors=(ServerNotReadyError,),
)  # fmt: skip
