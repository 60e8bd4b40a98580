"""What daemons report (shared/status.py), what they are answered, and how people see them."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.api.certificates import Revocations, Trust
from shared.api.commands import Command
from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route
from shared.desired import Desired
from shared.vocabulary import Health, Role


class StatusReply(msgspec.Struct):
    commands: list[Command] = []
    received_ns: int = 0
    held_ns: int = 0
    """How long the server held this answer."""
    revoked: Revocations | None = None
    """For both ends of the stream: process servers, who admit agents, and agents, who trust process servers. None: nothing is said,
    and what was known holds."""
    trust: Trust | None = None
    """None: nothing is said, and what was known holds."""
    desired: Desired | None = None
    """For agents: what they are to do. None: no opinion."""
    kept: bool = True
    """Whether what the report said is remembered: else its results are to be sent again."""
    superseded: bool = False
    """Another config server is in force: this one tells nothing any more, and where the other is stands in storage
    (shared/trust/pointer.py)."""
    pointer: str = ""
    """What stands there, as far as this one has read it: for agents, who do not reach storage. \"\": it is in force, or does not know."""
    generation: int = 0
    """Of the config server, as storage has numbered it, if it is in force as far as it knows; 0: it does not know. (An older one says
    nothing.)"""
    deleted: list[str] = []
    """Of the containers that a process server or a master target named in its report: those that were deleted with their machines, because
    somebody wanted that. Of a container that is not among them nothing is said."""


class DaemonView(msgspec.Struct, kw_only=True):
    role: Role
    name: str
    state: str
    health: Health
    """The worst of what it reports, and of its silence and its clock."""
    connected: bool
    seen_s: float | None
    skew_s: float
    report: dict[str, Any]


class DaemonList(msgspec.Struct):
    daemons: list[DaemonView]


STATUS = Route(
    "status",
    "POST",
    "/v1/status",
    Access.DAEMON,
    msgspec.Struct,  # the struct in shared/status.py for the caller's role
    StatusReply,
    "Report status, fetch commands",
    (Role.AGENT, Role.PROCESS_SERVER, Role.MASTER_TARGET),
    only_tells=True,
    waits=True,
)
DAEMONS = Route(
    "daemons",
    "GET",
    "/v1/daemons",
    Access.OPERATOR,
    Nothing,
    DaemonList,
    "Daemons that reported",
    needs=Permission.DAEMON_READ,
)
