"""How a request to the container is made: the one retry layer.

Nothing else in the project retries storage requests. What becomes of a request that fails is decided by the class
of its error (the table in answers.py):

- For a passing reason it is tried again with growing, jittered pauses until its deadline; throttled storage also
  says when, and gets fewer requests at a time (lanes.py). Each attempt has a limit of its own that lets the deadline
  hold another: one request that stalls ends nothing.
- What an operator must mend is raised at once. A *patient* store (see `BlobStore.patient`) goes on trying, slowly,
  and tells its owner, or the log, from the first refusal on.
- Everything else is an answer, and the caller's.

Requests that were cut off may have happened: callers make them idempotent (conditions, equal content), never this
layer.
"""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.blob.answers import (
    ForeignAnswerError,
    MisshapenError,
    is_matter_of_time,
    judged,
    place,
    time_in,
    translate,
)
from shared.blob.config import BlobConfig, is_account_url, read_key, tls_context
from shared.blob.connection import Connection
from shared.daemon import logging
from shared.errors import (
    ContainerMissingError,
    GrantEndedError,
    StorageError,
    StorageKeyError,
    StorageRefusedError,
    StorageRightsError,
    ThrottledError,
    TransientError,
    UsageError,
)
from shared.http import clock_evidence

if TYPE_CHECKING:
    from azure.core.async_paging import AsyncItemPaged
    from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient

    from shared.http.proxies import Proxy

T = TypeVar("T")

_log = logging.get()

SLOWEST_B_PER_S: Final = 256 * 1024
"""An attempt, and the deadline, may take longer by what a transfer of its size takes at this speed."""
_LEAST_ATTEMPT_S: Final = 3.0
"""No attempt is cut shorter for its deadline's sake."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_FIRST_SLOW_PAUSE_S: Final = 2.0
_LONGEST_SLOW_PAUSE_S: Final = 30.0


Missing = Callable[[ContainerMissingError], Awaitable[StorageError]]
"""What is to be made of a container that is not there: this error, or one that says more. It may ask storage."""


class Retry(msgspec.Struct, frozen=True):
    deadline_s: float = 75.0
    """After so long (attempts and pauses; waiting for a turn does not count) the last error is raised. 0: one attempt, of whatever size."""
    attempt_s: float = 30.0
    """An attempt without an answer for so long is given up."""
    also_refused: bool = False
    """Keep trying also when storage refuses the request: an operator can put that right while we run."""
    counts_at: float = 0.0
    """Until then (monotonic) a refusal may only mean that what we were granted does not count everywhere yet: it is waited for."""
    report: Callable[[StorageError | None], None] | None = None
    """Called with each error that will be retried, and after such ones with None when the request is over:
    storage gave its answer, whichever, or nobody waits for it any more."""


class BlobCore:
    """One container, and how a request to it is made."""

    def __init__(self, config: BlobConfig, connection: Connection, retry: Retry = Retry()) -> None:  # noqa: B008 (frozen)
        self.config = config
        self._connection = connection
        self.container: ContainerClient = connection.service.get_container_client(config.container)
        self._retry = retry
        self._missing: Missing | None = None

    @classmethod
    def connect(cls, config: BlobConfig, *, sas: str = "", ca_pem: str = "") -> Self:
        """A store over its own connection pool; call it inside a running event loop. No request is made yet.

        `sas` (a token that was granted, policies.py) and `ca_pem` stand for the files of `config`: no secret needs a file.
        Raises UsageError for a URL, key file or CA file that cannot work.
        """
        if not is_account_url(config):
            raise UsageError(
                f"The storage account URL {config.url!r} is not valid",
                cause="it must look like https://ACCOUNT.blob.core.windows.net or https://HOST:PORT/ACCOUNT",
                action="Correct it: `url` in the blob section of the configuration, or the option --blob-url.",
            )
        key = None if sas or config.account_key_file is None else read_key(config.account_key_file)
        if key is None and urlsplit(config.url).scheme == "http":
            raise UsageError(
                f"The storage account URL {config.url!r} cannot be used without an account key",
                cause="Azure's credentials (a managed identity, a grant) may only be sent over HTTPS",
                action="Give the https:// URL of the account, or a file with its key.",
            )
        return cls(config, Connection(config, key, sas, tls_context(config, ca_pem)))

    async def close(self) -> None:
        await self._connection.close()

    def with_retry(self, retry: Retry) -> Self:
        other = copy.copy(self)
        other._retry = retry
        return other

    def in_container(self, name: str, missing: Missing | None = None) -> Self:
        """The same for another container of the account. `missing` is asked what it means that the container is not there."""
        other = copy.copy(self)
        other.container = self._connection.service.get_container_client(name)
        other._missing = missing
        return other

    @property
    def service(self) -> BlobServiceClient:
        """For what goes beyond one container."""
        return self._connection.service

    def blob(self, name: str, snapshot: str | None = None) -> BlobClient:
        return self.container.get_blob_client(name, snapshot=snapshot)

    async def call(self, what: str, attempt: Callable[[], Awaitable[T]], *, size_b: int = 0) -> T:
        """The result of `attempt`, tried again as the module says. `what` completes "Could not …"; `size_b` is
        what travels, at most: it decides about the lane, and about the time that is given.
        """
        retry, lane = self._retry, self._connection.lane(size_b)
        allowance_s = size_b / SLOWEST_B_PER_S
        left_s = retry.deadline_s + 2 * allowance_s if retry.deadline_s else 0.0
        pauses = _Pauses()
        trouble = _Trouble(what, retry.report)
        try:
            while True:
                limit_s = min(retry.attempt_s + allowance_s, max(left_s, _LEAST_ATTEMPT_S + allowance_s))
                async with lane.turn():
                    began = time.monotonic()
                    try:
                        async with self._translated(what, limit_s):
                            result = await attempt()
                    except StorageError as exc:
                        error = exc
                        if isinstance(error, ThrottledError):
                            lane.throttled(began)
                    else:
                        lane.width.succeeded()
                        return result
                if self._missing is not None and isinstance(error, ContainerMissingError):
                    error = await self._missing(error)
                pause_s = pauses.after(error)
                left_s -= time.monotonic() - began + pause_s
                passing = isinstance(error, TransientError)
                new_grant = time.monotonic() < retry.counts_at
                awaited = (retry.also_refused or new_grant) and isinstance(error, StorageRefusedError)
                if not (passing or awaited) or left_s < 0:
                    try:
                        raise error
                    finally:
                        del error  # or it would be its own traceback's, until a collection
                _forget_frames(error)
                trouble.tell(error)
                await asyncio.sleep(pause_s)
        finally:
            # Whatever the answer: a repeated create that finds its own blob fails, and all is well.
            trouble.over()

    async def date(self) -> dt.datetime:
        """What time it is by storage's clock, to the second."""

        async def attempt() -> dt.datetime:
            answers: list[Any] = []
            await self.container.get_container_properties(raw_response_hook=answers.append)
            return time_in(answers, "Date")

        return await self.call(f"look up container {self.container.container_name}", attempt)

    async def listed(self, what: str, items: AsyncItemPaged[T]) -> AsyncIterator[T]:
        """The items of one of the SDK's listings. Each page is a call of its own, with its own attempts and
        deadline: a long listing takes as long as it takes, and trouble repeats one page, not all.
        """
        token: str | None = None
        while True:

            async def page(token: str | None = token) -> tuple[list[T], str | None]:
                pages = items.by_page(token)
                async for found in pages:
                    return [item async for item in found], pages.continuation_token  # type: ignore[attr-defined]
                return [], None

            found, token = await self.call(what, page)
            for item in found:
                yield item
            if not token:
                return

    @asynccontextmanager
    async def _translated(self, what: str, limit_s: float) -> AsyncIterator[None]:
        """An attempt that fails, or takes longer than this, raises a StorageError."""
        from aiohttp import ClientError
        from azure.core.exceptions import AzureError, DeserializationError

        foreign = (AzureError, DeserializationError, ClientError, OSError, ForeignAnswerError, MisshapenError)
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as exc:
            _empty_frames(exc)
            where = place(self.config, self._connection.proxy)
            cause = f"no answer within {limit_s:.0f} s from {where}"
            raise TransientError(f"Could not {what}", cause=cause) from exc
        except foreign as exc:
            _empty_frames(exc)
            # Not by a local name: this frame is in the error's traceback, and would keep it until a collection.
            raise self._as_granted(
                await explained(f"Could not {what}", exc, self.config, self._connection.proxy)
            ) from exc

    def _as_granted(self, error: StorageError) -> StorageError:
        if self._connection.granted and isinstance(error, StorageKeyError | StorageRightsError):
            ended = GrantEndedError(error.what, cause=error.cause)
            ended.is_refusal = error.is_refusal
            return ended
        return error


async def explained(what: str, exc: Exception, config: BlobConfig, proxy: Proxy | None) -> StorageError:
    """What `translate` makes of it; where a certificate seems out of date, whoever answers there is looked at once more."""
    error = translate(what, exc, config, proxy)
    if is_matter_of_time(exc):
        url = urlsplit(config.url)
        seen = await clock_evidence.look(url.hostname or "", url.port or 443, web=True)
        return judged(error, place(config, proxy), clock_evidence.judge(seen))
    return error


def _empty_frames(error: BaseException) -> None:
    """Whatever the frames held that an error, and those that led to it, came through: what was to be written, megabytes. Some of those
    frames hold the error itself (aiohttp's connector does), so each failed attempt would be kept until a collection, which may be minutes.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        traceback.clear_frames(found.__traceback__)
        waiting += [found.__cause__, found.__context__, getattr(found, "inner_exception", None)]


def _forget_frames(error: BaseException) -> None:
    """An error that is retried is shown for as long as the trouble lasts. The frames that it came through hold what was to be
    written, megabytes; they must not be kept with it.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


class _Pauses:
    """How long to wait before the next attempt: growing, jittered, each kind of trouble by its own measure."""

    def __init__(self) -> None:
        self._passing_s = _FIRST_PAUSE_S
        self._refused_s = _FIRST_SLOW_PAUSE_S

    def after(self, error: StorageError) -> float:
        if isinstance(error, StorageRefusedError):
            pause_s, self._refused_s = self._refused_s, min(2 * self._refused_s, _LONGEST_SLOW_PAUSE_S)
        else:
            pause_s, self._passing_s = self._passing_s, min(2 * self._passing_s, _LONGEST_PAUSE_S)
        pause_s *= random.uniform(0.5, 1.0)
        if isinstance(error, ThrottledError) and error.retry_after_s:
            # Not before storage said; and not all at once at that moment.
            return error.retry_after_s + pause_s
        return pause_s


class _Trouble:
    """Tells whoever wants to hear of errors that are retried; the log, where nobody does and an operator should."""

    def __init__(self, what: str, report: Callable[[StorageError | None], None] | None) -> None:
        self._what = what
        self._report = report
        self._last: StorageError | None = None

    def tell(self, error: StorageError) -> None:
        if self._report is not None:
            self._report(error)
        elif isinstance(error, StorageRefusedError) and type(error) is not type(self._last):
            _log.error("storage refuses; trying again", **error.as_dict())
        self._last = error

    def over(self) -> None:
        if self._last is None:
            return
        if self._report is not None:
            self._report(None)
        elif isinstance(self._last, StorageRefusedError):
            _log.info("storage refuses no more, or nobody waits for it", request=self._what)
