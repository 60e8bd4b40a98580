"""Machines' data keys."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route
from shared.errors import ConfigError, WrongKeyError
from shared.vocabulary import Role


class KeyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Names a machine's data key as the header of a segment or the machine's document does; `wrapped` is base64."""

    key_id: Annotated[str, msgspec.Meta(max_length=256)]
    wrapped: Annotated[bytes, msgspec.Meta(max_length=4096)]


class MachineKeyGrant(msgspec.Struct, kw_only=True):
    """A machine's data key, unwrapped; `wrapped` and `key` are base64."""

    key_id: str
    wrapped: str
    key: str

    def __repr__(self) -> str:
        return f"MachineKeyGrant(key_id={self.key_id!r})"


class VaultKeyView(msgspec.Struct, kw_only=True):
    id: str
    fingerprint: str
    """What only the same key gives, and what tells nothing of it."""
    is_current: bool
    """New machines' keys are wrapped under it."""
    is_recorded: bool
    """Storage knows it."""


class VaultView(msgspec.Struct, kw_only=True):
    """The keys under which machines' data keys are wrapped."""

    file: str
    """On the config server's host."""
    keys: list[VaultKeyView]
    missing: list[str]
    """Ids of keys that storage knows, and this file lacks: what is sealed under them cannot be opened."""
    problem: str | None = None
    """What is wrong with it, and why; null: nothing."""


VAULT = Route(
    "vault",
    "GET",
    "/v1/vault",
    Access.OPERATOR,
    Nothing,
    VaultView,
    "Which keys the vault has",
    needs=Permission.VAULT_READ,
    errors=(ConfigError,),
)
RESTORE_KEY = Route(
    "restore_key",
    "POST",
    "/v1/machines/{machine}/restores/keys",
    Access.OPERATOR,
    KeyRequest,
    MachineKeyGrant,
    "A key that a segment of the machine names, to restore it",
    needs=Permission.RESTORE_RUN,
    only_tells=True,
    errors=(ConfigError, WrongKeyError),
)
KEY_UNWRAP = Route(
    "key_unwrap",
    "POST",
    "/v1/machines/{machine}/keys/unwrap",
    Access.DAEMON,
    KeyRequest,
    MachineKeyGrant,
    "A machine's data key, for its wrapped form",
    (Role.PROCESS_SERVER, Role.MASTER_TARGET),
    only_tells=True,
    errors=(ConfigError, WrongKeyError),
)
KEY_CREATE = Route(
    "key_create",
    "POST",
    "/v1/machines/{machine}/keys",
    Access.DAEMON,
    Nothing,
    MachineKeyGrant,
    "A new data key for a machine",
    (Role.PROCESS_SERVER,),
    errors=(ConfigError,),
)
