"""What an installation does with storage, each tried for real in a scratch container: may we, and does storage keep its word?

A trial returns what was wrong, "" if nothing, or raises what storage refused with. It tidies nothing up: the container goes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from shared.blob.check.findings import Aspect
from shared.blob.config import BlobConfig, read_key
from shared.blob.core import BlobCore, Retry
from shared.blob.policies import COUNTS_EVERYWHERE_S, token
from shared.blob.store import BlobStore
from shared.errors import (
    BlobExistsError,
    GrantEndedError,
    LeaseHeldError,
    LeaseLostError,
    PreconditionError,
    StorageRightsError,
)

_FIRST: Final = b"understudy: a check of this storage account. This may be deleted.\n"
_SECOND: Final = b"the second version\n"
_BLOCK: Final = "block"
_APPEND: Final = "append"
_PAGES: Final = "pages"
_COPY: Final = "copy"
_PAGES_B: Final = 1 << 20
_OLD: Final = b"o" * 4096
_NEW: Final = b"n" * 4096
_POLICY: Final = "check"
_POLICY_LIFE: Final = dt.timedelta(hours=1)
_POLL_S: Final = 0.25


class Bench(NamedTuple):
    """Where the trials are made: a scratch container of the account that `config` names."""

    config: BlobConfig
    core: BlobCore
    store: BlobStore


class Right(NamedTuple):
    aspect: Aspect
    attempt: Callable[[Bench], Awaitable[str]]
    done: str
    """Said when it worked."""
    needs: tuple[Aspect, ...] = (Aspect.CREATE_CONTAINER,)
    """Without these it cannot be tried."""


async def _block_blob(bench: Bench) -> str:
    with suppress(
        BlobExistsError
    ):  # the container is ours: so is the blob, and the answer to a first try was lost
        await bench.store.create(_BLOCK, _FIRST)
    return "" if await bench.store.read(_BLOCK) == _FIRST else "other bytes came back than were written"


async def _create_once(bench: Bench) -> str:
    try:
        await bench.store.create(_BLOCK, _SECOND)
    except BlobExistsError:
        return ""
    return (
        "a blob that exists was created a second time (If-None-Match): two daemons could begin the same epoch"
    )


async def _compare_and_swap(bench: Bench) -> str:
    etag = (await bench.store.properties(_BLOCK)).etag
    with suppress(PreconditionError):  # by itself: the answer to a first try was lost
        await bench.store.replace(_BLOCK, _SECOND, if_match=etag)
    if await bench.store.read(_BLOCK) != _SECOND:
        return "a write on the condition of the version that is there was refused"
    try:
        await bench.store.replace(_BLOCK, _FIRST, if_match=etag)
    except PreconditionError:
        return ""
    return "a write on the condition of an older version (If-Match) was not refused: two servers could undo each other's work"


async def _metadata(bench: Bench) -> str:
    await bench.store.set_metadata(_BLOCK, {"cursor": "1"})
    found = (await bench.store.properties(_BLOCK)).metadata
    return "" if found == {"cursor": "1"} else f"other metadata came back than were set: {found}"


async def _list(bench: Bench) -> str:
    names = [found.name async for found in bench.store.list(_BLOCK)]
    return "" if names == [_BLOCK] else f"the list does not have the blob that was written, but {names}"


async def _lease(bench: Bench) -> str:
    lease = await bench.store.leases.acquire(_BLOCK, 15)
    try:
        await bench.store.replace(_BLOCK, _FIRST)
    except LeaseHeldError:
        return ""
    finally:
        with suppress(LeaseLostError):  # the same
            await lease.release()
    return "a write without the lease of a leased blob was not refused: two master targets could write to one disk"


async def _append_blob(bench: Bench) -> str:
    with suppress(BlobExistsError):
        await bench.store.append_create(_APPEND)
    size_b = await bench.store.append(_APPEND, _FIRST, None, 0)
    await bench.store.append(_APPEND, _SECOND, None, size_b)
    try:
        await bench.store.append(_APPEND, _SECOND, None, size_b - 1)
    except PreconditionError:
        found = await bench.store.read(_APPEND)
        return "" if found == _FIRST + _SECOND else "other bytes came back than were appended"
    return "an append at another place than the end was not refused: two process servers could write one log"


async def _page_blob(bench: Bench) -> str:
    pages = bench.store.pages
    with suppress(BlobExistsError):
        await pages.create(_PAGES, _PAGES_B)
    await pages.write(_PAGES, 8192, _OLD)
    await pages.write(_PAGES, 16384, _OLD)
    await pages.clear(_PAGES, 16384, len(_OLD))
    if (found := await pages.ranges(_PAGES)) != [(8192, len(_OLD))]:
        return f"other pages are listed than were written: {found}"
    await pages.set_sequence_number(_PAGES, 2)
    try:
        await pages.write(_PAGES, 0, _NEW, sequence_number=1)
    except PreconditionError:
        return ""
    return "a write under an older sequence number was not refused: a delayed one could land over newer data"


async def _snapshot(bench: Bench) -> str:
    snapshot = await bench.store.snapshot(_PAGES)
    await bench.store.pages.write(_PAGES, 8192, _NEW)
    if await bench.store.pages.read(_PAGES, 8192, len(_OLD), snapshot) != _OLD:
        return "a snapshot does not have what the blob held when it was taken"
    return ""


async def _copy(bench: Bench) -> str:
    core, store = bench.core, bench.store
    snapshot = await store.snapshot(_PAGES)
    expected = await store.pages.read(_PAGES, 8192, len(_OLD), snapshot)
    source = core.blob(_PAGES, snapshot).url
    await core.call(
        "copy a snapshot to a page blob of its own", lambda: core.blob(_COPY).start_copy_from_url(source)
    )
    while (copied := await _copied(core)) != "success":
        if copied != "pending":
            return f"the copy ended as {copied}"
        await asyncio.sleep(_POLL_S)
    if await store.pages.read(_COPY, 8192, len(_OLD)) != expected:
        return "the copy does not have what the snapshot has"
    return ""


async def _copied(core: BlobCore) -> str:
    found: Any = await core.call("look up the copy", core.blob(_COPY).get_blob_properties)
    return str(found.copy.status)


async def _grant(bench: Bench) -> str:
    """As a restore gets it: a policy of the container, and a token under it, which reads. (Needs the account's key.)"""
    config, container = bench.config, bench.store.container
    assert config.account_key_file is not None
    await bench.store.policies.put(_POLICY, dt.datetime.now(dt.UTC) + _POLICY_LIFE)
    sas = token(config.account, read_key(config.account_key_file), container, _POLICY)
    bare = msgspec.structs.replace(config, account_key_file=None)
    async with BlobStore.connect(bare, sas=sas) as granted:
        counts_at = time.monotonic() + COUNTS_EVERYWHERE_S
        retry = Retry(deadline_s=COUNTS_EVERYWHERE_S, counts_at=counts_at)
        reader = granted.in_container(container).with_retry(retry)
        try:
            await reader.properties(_BLOCK)
            names = [found.name async for found in reader.list(_BLOCK)]
        except GrantEndedError as exc:
            action = "See that the account permits shared keys and SAS, and that its SAS policy and network rules admit this."
            raise StorageRightsError(exc.what, cause=exc.cause, action=action) from exc
    return "" if names == [_BLOCK] else f"the grant lists {names} in place of the blob that is there"


async def _delete(bench: Bench) -> str:
    for name in [found.name async for found in bench.store.list("")]:
        await bench.store.delete(name)
    left = [found.name async for found in bench.store.list("", snapshots=True)]
    return f"still there after they were deleted: {', '.join(left)}" if left else ""


_ON_BLOCK: Final = (Aspect.BLOCK_BLOB,)
_ON_PAGES: Final = (Aspect.PAGE_BLOB,)

RIGHTS: Final = (
    Right(Aspect.BLOCK_BLOB, _block_blob, "written, and read back"),
    Right(Aspect.CREATE_ONCE, _create_once, "a second create was refused", _ON_BLOCK),
    Right(Aspect.COMPARE_AND_SWAP, _compare_and_swap, "a write over an older version was refused", _ON_BLOCK),
    Right(Aspect.METADATA, _metadata, "set, and read back", _ON_BLOCK),
    Right(Aspect.LIST, _list, "what was written is listed", _ON_BLOCK),
    Right(Aspect.LEASE, _lease, "taken; a write without it was refused; given back", _ON_BLOCK),
    Right(Aspect.APPEND_BLOB, _append_blob, "appended; an append at another place was refused"),
    Right(
        Aspect.PAGE_BLOB,
        _page_blob,
        "written and cleared; a write under an older sequence number was refused",
    ),
    Right(Aspect.SNAPSHOT, _snapshot, "taken; it kept what was overwritten", _ON_PAGES),
    Right(Aspect.COPY, _copy, "copied to a page blob of its own", (Aspect.SNAPSHOT,)),
    Right(Aspect.GRANT, _grant, "a token under a stored access policy read and listed", _ON_BLOCK),
    Right(Aspect.DELETE, _delete, "blobs and snapshots are gone", _ON_BLOCK),
)
"""In this order."""


async def version(bench: Bench) -> str | None:
    """The version that storage gave to a blob which was just written; None if it gives none."""
    found: Any = await bench.core.call("look up a blob", bench.core.blob(_BLOCK).get_blob_properties)
    return None if found.version_id is None else str(found.version_id)
