"""The connection to a storage account: one HTTPS pool, the one retry layer, and foreign errors made ours.

Nothing else in the project retries storage requests. A request that fails for a passing reason is tried
again with growing, jittered pauses until its deadline; a *patient* store (see `BlobCore.patient`) never
gives up and tells its owner about the trouble meanwhile. Requests that were cut off may have happened:
callers make them idempotent (conditions, equal content), never this layer.

Azure's SDK is imported when a connection is made, not when this module is: the command line must start fast.
Messages name operation, blob, HTTP status and Azure's error code; never a header, a key or a signed URL.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import logging
import math
import random
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    PreconditionError,
    StorageError,
    StorageRefusedError,
    TransientError,
    UsageError,
)

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential
    from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient

T = TypeVar("T")

CONNECTIONS: Final = 32
_ATTEMPT_S: Final = 30.0
_SLOWEST_B_PER_S: Final = 256 * 1024
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_TLS_CLOSE_LEAKS: Final = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
"""asyncio keeps a TLS connection for ever whose peer closes it at the same time (CPython issue 118950)."""
_SINGLE_REQUEST_B: Final = 256 * 1024 * 1024
"""Below this size, a blob is written and read in one request."""


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


class Retry(msgspec.Struct, frozen=True):
    deadline_s: float = 30.0
    also_refused: bool = False
    """Keep trying also when storage refuses the request: an operator can put that right while we run."""
    report: Callable[[StorageError | None], None] | None = None
    """Called with each error that will be retried, and after such ones with None when the request is over:
    storage gave its answer, whichever, or nobody waits for it any more."""


class BlobCore:
    """One container, and how a request to it is made."""

    def __init__(
        self,
        config: BlobConfig,
        service: BlobServiceClient,
        close: Callable[[], Awaitable[None]],
        retry: Retry = Retry(),  # noqa: B008 (frozen)
    ) -> None:
        self.config = config
        self._service = service
        self._container: ContainerClient = service.get_container_client(config.container)
        self._close = close
        self._retry = retry

    @classmethod
    def connect(cls, config: BlobConfig, *, account_key: str = "", ca_pem: str = "") -> Self:
        """A store over its own connection pool; call it inside a running event loop. No request is made yet.

        `account_key` and `ca_pem` stand for the files of `config` where they were granted: no secret needs a file.
        Raises UsageError for a URL, key file or CA file that cannot work.
        """
        if not _is_account_url(config):
            raise UsageError(
                f"The storage account URL {config.url!r} is not valid",
                cause="it must look like https://ACCOUNT.blob.core.windows.net or https://HOST:PORT/ACCOUNT",
                action="Correct it: `url` in the blob section of the configuration, or the option --blob-url.",
            )
        key = account_key or (None if config.account_key_file is None else _read_key(config.account_key_file))
        if key is None and urlsplit(config.url).scheme == "http":
            raise UsageError(
                f"The storage account URL {config.url!r} cannot be used without an account key",
                cause="Azure's credentials (a managed identity, say) may only be sent over HTTPS",
                action="Give the https:// URL of the account, or a file with its key.",
            )
        service, close = _open(config, key, _tls_context(config, ca_pem))
        return cls(config, service, close)

    async def close(self) -> None:
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def patient(self, report: Callable[[StorageError | None], None] | None = None) -> Self:
        """The same store (same pool; close only the original) with requests that retry for ever.

        Conditional failures are still raised at once. `report` hears of every error that is being retried.
        """
        return self.with_retry(Retry(deadline_s=math.inf, also_refused=True, report=report))

    def with_retry(self, retry: Retry) -> Self:
        other = copy.copy(self)
        other._retry = retry
        return other

    def _blob(self, name: str, snapshot: str | None = None) -> BlobClient:
        return self._container.get_blob_client(name, snapshot=snapshot)

    async def _call(self, what: str, attempt: Callable[[], Awaitable[T]], *, size_b: int = 0) -> T:
        """The result of `attempt`, tried again after passing failures. `what` completes "Could not …"."""
        from aiohttp import ClientError
        from azure.core.exceptions import AzureError

        started = time.monotonic()
        pause = _FIRST_PAUSE_S
        troubled = False
        try:
            while True:
                limit_s = _ATTEMPT_S + size_b / _SLOWEST_B_PER_S
                try:
                    async with asyncio.timeout(limit_s):
                        return await attempt()
                except TimeoutError as exc:
                    error: StorageError = TransientError(
                        f"Could not {what}", cause=f"no answer within {limit_s:.0f} s"
                    )
                    origin: Exception = exc
                except (AzureError, ClientError, OSError) as exc:
                    error, origin = translate(f"Could not {what}", exc, self.config), exc
                again = isinstance(error, TransientError) or (
                    self._retry.also_refused and type(error) in (StorageError, StorageRefusedError)
                )
                if not again or time.monotonic() - started + pause > self._retry.deadline_s:
                    raise error from origin
                troubled = True
                if self._retry.report is not None:
                    self._retry.report(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            # Whatever the answer: a repeated create that finds its own blob fails, and all is well.
            if troubled and self._retry.report is not None:
                self._retry.report(None)


def _is_account_url(config: BlobConfig) -> bool:
    try:
        parts = urlsplit(config.url)
        return (
            parts.scheme in ("https", "http") and parts.port != 0 and bool(parts.hostname and config.account)
        )
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


def _read_key(path: Path) -> str:
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


def _tls_context(config: BlobConfig, ca_pem: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=config.ca_file, cadata=ca_pem or None)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"The storage CA {config.ca_file or 'that was granted'} could not be used",
            cause=str(exc),
            action="Give the PEM file of the CA that signed the storage server's certificate.",
        ) from exc


def _open(
    config: BlobConfig, key: str | None, tls: ssl.SSLContext
) -> tuple[BlobServiceClient, Callable[[], Awaitable[None]]]:
    import aiohttp
    from azure.storage.blob.aio import BlobServiceClient

    from shared.blob.transport import PiecewiseTransport

    # The SDK logs each request's URL and headers, and warns on every retry: our errors say it better, once.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    # Our own session: the SDK would build a TLS context for every request, and so never reuse a connection.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=CONNECTIONS, enable_cleanup_closed=_TLS_CLOSE_LEAKS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    )
    identity: DefaultAzureCredential | None = None
    if key is None:
        from azure.identity.aio import DefaultAzureCredential

        identity = DefaultAzureCredential()
    service = BlobServiceClient(
        config.url,
        credential=identity or {"account_name": config.account, "account_key": key or ""},
        transport=PiecewiseTransport(session=session, session_owner=False),
        retry_total=0,
        connection_timeout=10,
        read_timeout=60,
        connection_data_block_size=1024 * 1024,
        max_single_put_size=_SINGLE_REQUEST_B,
        max_single_get_size=_SINGLE_REQUEST_B,
        max_chunk_get_size=16 * 1024 * 1024,
    )

    async def close() -> None:
        await service.close()
        if identity is not None:
            await identity.close()
        await session.close()
        await asyncio.sleep(0)  # one turn of the loop, in which aborted connections give their sockets back

    return service, close


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
