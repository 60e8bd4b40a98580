"""Restores: who may read a container, and for how long."""

from __future__ import annotations

import enum
from http import HTTPStatus
from typing import Annotated

import msgspec

from shared.api.keys import MachineKeyGrant
from shared.api.permissions import Permission
from shared.api.route import Access, Limit, Nothing, Route
from shared.errors import ConfigError, DeadlineError, KeyUsedError, NotFoundError, UsageError, WrongKeyError


class RestoreRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    point: str = "latest"
    to: str = ""
    host: str = ""
    dry_run: bool = False
    grant: str = ""
    """The grant that is there already and goes on to serve; empty: a new one is wanted."""
    request: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    """Random: when it is asked for again, since no answer came, the same id gets the same grant."""


class StorageGrant(msgspec.Struct, kw_only=True):
    """Access to the container that holds the machine: reading and listing, for a while. Without an `id` and a `sas`, the reader must
    use his own identity: the config server has no account key to grant with."""

    url: str
    container: str
    id: str = ""
    sas: str = ""
    """A shared access signature: a secret."""
    life_s: float = 0.0
    """From now on."""
    ca_pem: str = ""

    def __repr__(self) -> str:
        return f"StorageGrant(container={self.container!r}, id={self.id!r})"


class GrantState(enum.StrEnum):
    GIVEN = "given"
    EXPIRED = "expired"
    RETURNED = "returned"
    """By whoever had it."""
    REVOKED = "revoked"


class GrantView(msgspec.Struct, kw_only=True):
    """A grant as it is on record; never its token."""

    id: str
    machine: str
    who: str
    host: str
    """Where the reader runs, as he says."""
    state: GrantState
    given: str
    expires: str
    ended: str | None = None
    """When it was returned or revoked."""
    ended_by: str = ""
    life_s: float = 0.0
    """Left from now on; 0 when it is over."""


class GrantList(msgspec.Struct):
    grants: list[GrantView]


class GrantEnd(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    returned: bool = False
    """Whoever had it has done with it. Else it is revoked."""


class RestoreGrant(msgspec.Struct, kw_only=True):
    """What a restore needs, and the job under which it reports. The vault's master keys never leave the
    config server. `key` is the one that the machine's document names; what segments were sealed with earlier is asked for
    (`RESTORE_KEY`)."""

    job: str
    storage: StorageGrant
    key: MachineKeyGrant


RESTORE = Route(
    "restore",
    "POST",
    "/v1/machines/{machine}/restores",
    Access.OPERATOR,
    RestoreRequest,
    RestoreGrant,
    "Open a restore job, get access to the storage",
    needs=Permission.RESTORE_RUN,
    status=HTTPStatus.CREATED,
    errors=(ConfigError, UsageError, NotFoundError, KeyUsedError, WrongKeyError, DeadlineError),
)
GRANTS = Route(
    "grants",
    "GET",
    "/v1/machines/{machine}/grants",
    Access.OPERATOR,
    Limit,
    GrantList,
    "Who may read it, newest first",
    needs=Permission.RESTORE_READ,
)
GRANT_RENEW = Route(
    "grant_renew",
    "POST",
    "/v1/machines/{machine}/grants/{id}/renew",
    Access.OPERATOR,
    Nothing,
    GrantView,
    "Let a grant live on",
    needs=Permission.RESTORE_RUN,
    errors=(ConfigError, DeadlineError),
)
GRANT_END = Route(
    "grant_end",
    "POST",
    "/v1/machines/{machine}/grants/{id}/end",
    Access.OPERATOR,
    GrantEnd,
    GrantView,
    "End a grant at once",
    needs=Permission.RESTORE_RUN,
    errors=(ConfigError, DeadlineError),
)
