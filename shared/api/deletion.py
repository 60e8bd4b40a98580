"""Deleting a machine."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.api.machines import DeletionView, MachineView
from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route
from shared.errors import ConfigError, DeadlineError


class DeletionRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Has a machine deleted, after a delay. Its agent stops at once."""

    after_s: Annotated[float, msgspec.Meta(ge=3600, le=10 * 366 * 86_400)]
    container: Annotated[str, msgspec.Meta(max_length=63)] | None = None
    """Which container is meant (`DeletionView.container`, empty for none); null: whichever is the machine's."""


class Kept(msgspec.Struct, kw_only=True):
    """A machine whose deletion was taken back."""

    machine: MachineView
    taken_back: bool
    """False: nobody wanted it deleted."""
    revoked: bool = False
    """Its agent's certificates are revoked, for the deletion or before: it has to be enrolled anew."""
    gone: bool = False
    """Storage has its container no more: the deletion was done, or somebody else did it. There was nothing left to keep."""


DELETION = Route(
    "deletion",
    "GET",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    Nothing,
    DeletionView,
    "What is lost when a machine is deleted, and when it is",
    needs=Permission.MACHINE_READ,
    errors=(ConfigError,),
)
DELETE = Route(
    "delete",
    "PUT",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    DeletionRequest,
    MachineView,
    "Stop a machine, and delete it after a delay",
    needs=Permission.MACHINE_DELETE,
    errors=(ConfigError, DeadlineError),
)
KEEP = Route(
    "keep",
    "DELETE",
    "/v1/machines/{machine}/deletion",
    Access.OPERATOR,
    Nothing,
    Kept,
    "Take a machine's deletion back",
    needs=Permission.MACHINE_DELETE,
    errors=(DeadlineError,),
)
