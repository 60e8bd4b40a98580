"""Copies of a machine, and which of two is the one."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from shared.api.machines import ErrorView
from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route

IDENTITY_LENGTH: Final = 255


class RebindRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Makes another machine the one of this name; without `identity`, the copy that was refused lately, if it can be but one."""

    identity: Annotated[str, msgspec.Meta(max_length=IDENTITY_LENGTH)] = ""


class CopyView(msgspec.Struct, kw_only=True):
    """Somebody who was refused as a copy of a machine."""

    identity: str
    """Empty for one that has none."""
    address: str
    refused_s: float
    """So long ago, the last time ..."""
    since_s: float
    """... and the first."""
    cause: str


class CopyList(msgspec.Struct, kw_only=True):
    machine: str
    identity: str
    """The active side's; empty when there is none, or it cannot be read."""
    generation: int
    copies: list[CopyView]
    """Refused lately, the last one first."""
    meant: str
    """Whom `rebind` takes that names nobody; empty when that is not clear, ..."""
    unclear: ErrorView | None = None
    """... and why."""


class SideView(msgspec.Struct, kw_only=True):
    machine: str
    identity: str
    generation: int
    """0 where the config server has no storage: who it is stands in its database alone."""
    repeated: bool = False
    """It was so before."""
    asked: dict[str, str] = {}
    """Process servers that have the machine, and the command by which each was told to look whose session it has; and the agent of the one
    that it is now, which was told to try again, if it was refused lately."""
    silent: list[str] = []
    """Those that do not report: they look by themselves within a minute, if they run."""
    job: str = ""
    """Which sees whether the new hardware takes it up; empty where it has."""


REBIND = Route(
    "rebind",
    "POST",
    "/v1/machines/{machine}/rebind",
    Access.OPERATOR,
    RebindRequest,
    SideView,
    "Make another machine the one of this name",
    needs=Permission.MACHINE_REBIND,
)
COPIES = Route(
    "copies",
    "GET",
    "/v1/machines/{machine}/copies",
    Access.OPERATOR,
    Nothing,
    CopyList,
    "Copies of a machine that were refused lately",
    needs=Permission.MACHINE_READ,
)
