"""How a request to the container is made: the one retry layer.

Nothing else in the project retries storage requests. A request that fails for a passing reason is tried
again with growing, jittered pauses until its deadline; a *patient* store (see `BlobStore.patient`) never
gives up and tells its owner about the trouble meanwhile. Requests that were cut off may have happened:
callers make them idempotent (conditions, equal content), never this layer.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.blob.answers import translate
from shared.blob.config import BlobConfig, is_account_url, read_key, tls_context
from shared.blob.connection import open_service
from shared.errors import StorageError, StorageRefusedError, TransientError, UsageError

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient

T = TypeVar("T")

_ATTEMPT_S: Final = 30.0
_SLOWEST_B_PER_S: Final = 256 * 1024
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0


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
        self.container: ContainerClient = service.get_container_client(config.container)
        self._close = close
        self._retry = retry

    @classmethod
    def connect(cls, config: BlobConfig, *, account_key: str = "", ca_pem: str = "") -> Self:
        """A store over its own connection pool; call it inside a running event loop. No request is made yet.

        `account_key` and `ca_pem` stand for the files of `config` where they were granted: no secret needs a file.
        Raises UsageError for a URL, key file or CA file that cannot work.
        """
        if not is_account_url(config):
            raise UsageError(
                f"The storage account URL {config.url!r} is not valid",
                cause="it must look like https://ACCOUNT.blob.core.windows.net or https://HOST:PORT/ACCOUNT",
                action="Correct it: `url` in the blob section of the configuration, or the option --blob-url.",
            )
        key = account_key or (None if config.account_key_file is None else read_key(config.account_key_file))
        if key is None and urlsplit(config.url).scheme == "http":
            raise UsageError(
                f"The storage account URL {config.url!r} cannot be used without an account key",
                cause="Azure's credentials (a managed identity, say) may only be sent over HTTPS",
                action="Give the https:// URL of the account, or a file with its key.",
            )
        service, close = open_service(config, key, tls_context(config, ca_pem))
        return cls(config, service, close)

    async def close(self) -> None:
        await self._close()

    def with_retry(self, retry: Retry) -> Self:
        other = copy.copy(self)
        other._retry = retry
        return other

    def blob(self, name: str, snapshot: str | None = None) -> BlobClient:
        return self.container.get_blob_client(name, snapshot=snapshot)

    async def call(self, what: str, attempt: Callable[[], Awaitable[T]], *, size_b: int = 0) -> T:
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
