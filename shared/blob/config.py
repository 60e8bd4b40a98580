"""Where a container is, and the files that its connection needs."""

from __future__ import annotations

import base64
import binascii
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from shared.errors import UsageError


class BlobConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the vault's container is. Without a key file, Azure's default credential chain (managed
    identity…) is used.
    """

    url: str
    """Account URL: `https://ACCOUNT.blob.core.windows.net`, or path-style `https://HOST:PORT/ACCOUNT`."""
    container: str = "understudy"
    account_key_file: Path | None = None
    ca_file: Path | None = None
    """CA certificate of the storage server, when it is not a public one."""

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
            cause=exc.strerror or str(exc),
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
