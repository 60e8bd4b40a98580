"""One-time acts for daemons."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route


class CommandKind(enum.StrEnum):
    MARK = "mark"
    FLUSH = "flush"
    RESYNC = "resync"
    CHECK_SIDE = "check-side"


class CommandState(enum.StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"
    """Nobody waits for it any more, so it is not handed out."""


class Command(msgspec.Struct):
    """Something that a daemon shall do. It is repeated in every status reply until its result was
    reported."""

    id: str
    kind: str
    """A CommandKind, or one of a newer config server: whoever does not know it refuses this command, and not the whole answer."""
    args: dict[str, Any] = {}


class CommandView(msgspec.Struct):
    id: str
    target: str
    kind: CommandKind
    args: dict[str, Any]
    state: CommandState
    result: dict[str, Any]
    created: str


COMMAND = Route(
    "command",
    "GET",
    "/v1/commands/{id}",
    Access.OPERATOR,
    Nothing,
    CommandView,
    "A command and its result",
    needs=Permission.MACHINE_READ,
    waits=True,
)
