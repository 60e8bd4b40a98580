"""Which disks of a machine are protected, and which could be."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.api.machines import MachineView
from shared.api.permissions import Permission
from shared.api.policies import POLICY_NAME_LENGTH, Policy
from shared.api.route import Access, Nothing, Route
from shared.errors import FewerDisksError, PolicyNotFoundError, SaidSinceError


class Protection(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Has a machine's agent protect these disks, and no others."""

    disks: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=4096)]], msgspec.Meta(min_length=1, max_length=256)
    ]
    """Device paths on the machine, or other names of its disks (`DiskCandidate.name`). A path means the disk that stands there now, by
    what the agent said last; where none does, the one that was named so."""
    process_servers: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=16)
    ] = []
    """`host:port`, the one to be preferred first; empty: that of the agent's configuration."""
    policy: Policy | None = None
    """One of the machine's own. Without it and `policy_name` the machine keeps the policy that it has."""
    policy_name: Annotated[str, msgspec.Meta(max_length=POLICY_NAME_LENGTH)] = ""
    force: bool = False
    """Take disks that its agent neither captures nor offers."""
    offline: bool = False
    """Record it although the machine's agent has never reported."""
    fewer: bool = False
    """Leave out disks that are protected now, whichever these are."""
    gone: (
        Annotated[
            list[Annotated[str, msgspec.Meta(max_length=4096)]],
            msgspec.Meta(max_length=256),
        ]
        | None
    ) = None
    """Leave out these (`DiskCandidate.name`, `Failure.names` of US129), and none that was added since somebody looked; null: as `fewer`
    says."""
    over: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """The act (`Mark.act`) over which it is said; empty: nothing was said yet. Refused where another holds by now (US133); null:
    whatever was said last."""


class DiskCandidate(msgspec.Struct, kw_only=True):
    """A disk of a machine that is protected, or could be, or why it cannot."""

    device: str
    size_b: int
    identity: str
    """As `python -m agent preflight` prints it; empty where it is not known."""
    id: str
    """The stable id of one that was captured at any time; else empty."""
    captured: bool
    """By the agent, now."""
    wanted: bool
    """It is to be protected, by what an operator said last, or, where nobody has said anything, by its agent's configuration."""
    why_not: str
    """Why it cannot be; empty: it can."""
    name: str
    """What means it in a request, wherever it stands: its id, else what it alone bears; its path where it has neither."""
    until: str = ""
    """When its protection ended with that of the machine, which has not been protected since; else empty."""


class DiskCandidates(msgspec.Struct, kw_only=True):
    machine: str
    seen_s: float | None
    """Age of what its agent said; null: it never reported."""
    disks: list[DiskCandidate]
    by_configuration: bool = False
    """Nobody has said what is wanted."""


PROTECT = Route(
    "protect",
    "PUT",
    "/v1/machines/{machine}/protection",
    Access.OPERATOR,
    Protection,
    MachineView,
    "Protect disks of a machine",
    needs=Permission.MACHINE_PROTECT,
    errors=(PolicyNotFoundError, FewerDisksError, SaidSinceError),
)
UNPROTECT = Route(
    "unprotect",
    "DELETE",
    "/v1/machines/{machine}/protection",
    Access.OPERATOR,
    Nothing,
    MachineView,
    "Stop protecting a machine",
    needs=Permission.MACHINE_PROTECT,
)
DISKS = Route(
    "disks",
    "GET",
    "/v1/machines/{machine}/disks",
    Access.OPERATOR,
    Nothing,
    DiskCandidates,
    "Which disks of a machine could be protected",
    needs=Permission.MACHINE_READ,
)
