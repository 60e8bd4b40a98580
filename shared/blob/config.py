"""Where a container is, and the files that its connection needs."""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError, UsageError, cause_of

VAULT_CONTAINER_MAX: Final = 46
"""Of Azure's 63 characters, "-" and the 16 digits of a machine's id are needed behind it (shared/machine/storage.py)."""
_CONTAINER: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class BlobConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the vault's container is, and beside it those of the machines (shared/machine/storage.py). Without a key file, Azure's
    default credential chain (managed identity…) is used. Raises ConfigError for a container name that cannot be.
    """

    url: str
    """The storage account: `https://ACCOUNT.blob.core.windows.net`, or `https://HOST:PORT/ACCOUNT` for an emulator."""
    container: str = "understudy"
    """The installation's container; those of the machines stand beside it, and their names begin with this one. 3 to 46 characters:
    lower-case letters, digits, single hyphens between them."""
    account_key_file: Path | None = None
    """A file with the account's key and nothing else, which nobody else may read. Without it the identity that the host has in Azure is
    used (managed identity, environment variables of a service principal)."""
    ca_file: Path | None = None
    """The CA certificate of the storage server, PEM, where it is no public one."""

    def __post_init__(self) -> None:
        if not (3 <= len(self.container) <= VAULT_CONTAINER_MAX and _CONTAINER.fullmatch(self.container)):
            raise ConfigError(
                f"The container name {self.container!r} cannot be used",
                cause=f"it must have 3 to {VAULT_CONTAINER_MAX} characters: lower-case letters, digits and single hyphens between them",
                action="Correct it: `container` in the blob section of the configuration, or the option --blob-container.",
            )

    @property
    def account(self) -> str:
        parts = urlsplit(self.url)
        path = parts.path.strip("/")
        return path.split("/")[0] if path else (parts.hostname or "").split(".")[0]


def is_account_url(config: BlobConfig) -> bool:
    try:
        parts = urlsplit(config.url)
        return (
            parts.scheme in ("https", "http") and parts.port != 0 and bool(parts.hostname and config.account)
        )
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


def read_key(path: Path) -> str:
    try:
        key = path.read_text("ascii").strip()
        if not base64.b64decode(key, validate=True):
            raise ValueError
    except OSError as exc:
        raise UsageError(
            f"The storage account key file {path} could not be read",
            cause=cause_of(exc),
            action="Create it with the account key in it, readable by this service only.",
        ) from exc
    except (ValueError, binascii.Error) as exc:
        raise UsageError(
            f"The storage account key file {path} does not hold an account key",
            cause="it must hold the base64 key of the account and nothing else",
            action="Copy one of the account's two access keys into it.",
        ) from exc
    return key


def tls_context(config: BlobConfig, ca_pem: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.ca_file, cadata=ca_pem or None)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"The storage CA {config.ca_file or 'that was granted'} could not be used",
            cause=str(exc),
            action="Give the PEM file of the CA that signed the storage server's certificate.",
        ) from exc
