"""Foreign errors made ours: what storage, the SDK and the network answer, by name.

Messages name operation, blob, HTTP status and Azure's error code; never a header, a key or a signed URL.
"""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import urlsplit

from shared.blob.config import BlobConfig
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    PreconditionError,
    StorageError,
    StorageRefusedError,
    TransientError,
)

_BY_CODE: Final[dict[str, tuple[type[StorageError], str]]] = {
    "BlobAlreadyExists": (BlobExistsError, "a blob of this name exists already"),
    "ContainerAlreadyExists": (BlobExistsError, "the container exists already"),
    "BlobNotFound": (BlobNotFoundError, "there is no such blob"),
    "ContainerNotFound": (StorageRefusedError, "the container does not exist"),
    "ContainerBeingDeleted": (TransientError, "a container of this name is being deleted"),
    "LeaseAlreadyPresent": (LeaseHeldError, "somebody else holds its lease"),
    "LeaseIsBreakingAndCannotBeAcquired": (LeaseHeldError, "its lease is being broken"),
    "LeaseIdMissing": (LeaseHeldError, "somebody else holds its lease"),
    "LeaseIdMismatchWithBlobOperation": (LeaseLostError, "somebody else holds its lease"),
    "LeaseIdMismatchWithLeaseOperation": (LeaseLostError, "somebody else holds its lease"),
    "LeaseIsBrokenAndCannotBeRenewed": (LeaseLostError, "the lease was broken by a newer owner"),
    "LeaseIsBreakingAndCannotBeChanged": (LeaseLostError, "the lease was broken by a newer owner"),
    "LeaseLost": (LeaseLostError, "the lease has expired or was broken"),
    "LeaseNotPresentWithBlobOperation": (LeaseLostError, "the lease has expired or was broken"),
    "LeaseNotPresentWithLeaseOperation": (LeaseLostError, "the lease has expired or was broken"),
}


def translate(what: str, exc: Exception, config: BlobConfig) -> StorageError:
    """Our error for one of the SDK's or the network's."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    where = f"{config.account} at {urlsplit(config.url).netloc}"
    if isinstance(exc, HttpResponseError) and exc.status_code is not None:
        code = str(getattr(getattr(exc, "error_code", ""), "value", getattr(exc, "error_code", "")) or "")
        if code in _BY_CODE:
            kind, cause = _BY_CODE[code]
            return kind(what, cause=cause)
        if exc.status_code == 404:
            return BlobNotFoundError(what, cause="there is no such blob")
        if exc.status_code in (304, 412, 416):
            return PreconditionError(what, cause=f"it is not as expected ({code or exc.status_code})")
        said = f"storage account {where} answered HTTP {exc.status_code} {code}".rstrip()
        if exc.status_code in (401, 403):
            return StorageRefusedError(what, cause=said)
        if exc.status_code in (408, 429) or exc.status_code >= 500:
            return TransientError(what, cause=said)
        return StorageError(what, cause=said)
    if isinstance(exc, ClientAuthenticationError):
        return StorageRefusedError(what, cause=f"no Azure credential worked for storage account {where}")
    inner = _innermost(exc)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return StorageRefusedError(
            what, cause=f"the certificate of {where} is not trusted: {inner.verify_message}"
        )
    return TransientError(what, cause=f"storage account {where} does not answer ({inner})")


def _innermost(exc: BaseException) -> BaseException:
    """The operating system's or TLS's word on it, when there is one below the SDK's and aiohttp's."""
    seen: BaseException = exc
    while True:
        below = getattr(seen, "certificate_error", None) or seen.__cause__ or seen.__context__
        if below is None:
            return seen
        seen = below
