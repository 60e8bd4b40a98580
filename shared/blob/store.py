"""Blobs of a container, their leases and snapshots. See the package."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from shared.blob.config import BlobConfig
from shared.blob.core import BlobCore, Missing, Retry
from shared.blob.leases import Leases, existing_leased
from shared.blob.pages import PageBlobs
from shared.blob.policies import Policies
from shared.blob.reading import download
from shared.blob.retried import Retried
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    PreconditionError,
    RangeError,
    TransientError,
)

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties


_PER_PAGE: Final = 5000
"""The most that storage lists in one answer."""
_PAUSE_S: Final = 0.25
_CHANGES: Final = 20
"""In a second that takes one."""


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size_b: int
    etag: str
    metadata: dict[str, str]
    last_modified: dt.datetime
    snapshot: str | None
    sequence_number: int | None
    """Of page blobs."""
    leased: bool


class Content(NamedTuple):
    """What a blob is made of."""

    data: bytes
    metadata: Mapping[str, str]


class ContainerInfo(NamedTuple):
    metadata: dict[str, str]
    changed: dt.datetime
    """When it was made, or its metadata or policies were changed last: whole seconds of storage's clock. What is in it does not count."""


class BlobStore(Retried):
    """The container, as its callers see it: whole blobs, block blobs and append blobs here; page blobs in
    `pages`, leases in `leases`, access policies in `policies`, over the same connections.
    """

    pages: PageBlobs
    leases: Leases
    policies: Policies

    def __init__(self, core: BlobCore) -> None:
        self._use(core)

    @classmethod
    def connect(cls, config: BlobConfig, *, sas: str = "", ca_pem: str = "") -> Self:
        """See BlobCore.connect."""
        return cls(BlobCore.connect(config, sas=sas, ca_pem=ca_pem))

    async def close(self) -> None:
        await self._core.close()

    def with_retry(self, retry: Retry) -> Self:
        other = copy.copy(self)
        other._use(self._core.with_retry(retry))
        return other

    def _use(self, core: BlobCore) -> None:
        self._core = core
        self.pages = PageBlobs(core)
        self.leases = Leases(core)
        self.policies = Policies(core)

    def in_container(self, name: str, missing: Missing | None = None) -> Self:
        """A store over another container of the same account, over the same pool (close only the original). See BlobCore.in_container."""
        other = copy.copy(self)
        other._use(self._core.in_container(name, missing))
        return other

    @property
    def container(self) -> str:
        """The container's name."""
        return str(self._core.container.container_name)

    async def ensure_container(self, metadata: Mapping[str, str] | None = None) -> None:
        """Creates the container if it is not there; `metadata` are for a new one."""
        try:
            await self._core.call(
                f"create container {self.container}",
                lambda: self._core.container.create_container(metadata=dict(metadata or {})),
            )
        except BlobExistsError:
            return

    async def container_metadata(self) -> dict[str, str]:
        return (await self.container_info()).metadata

    async def container_info(self) -> ContainerInfo:
        found = await self._core.call(
            f"look up container {self.container}", self._core.container.get_container_properties
        )
        return ContainerInfo(dict(found.metadata or {}), found.last_modified)

    async def delete_container(self, unmodified_since: dt.datetime) -> None:
        """Deletes the container and all that is in it: the one that was `changed` last at that time (ContainerInfo). PreconditionError for
        one that was changed, or made anew, since; ContainerMissingError where there is none. For half a minute and more its name
        cannot be used again."""
        await self._core.call(
            f"delete container {self.container}",
            lambda: self._core.container.delete_container(if_unmodified_since=unmodified_since),
        )

    async def change_container(self, metadata: Mapping[str, str]) -> None:
        """Adds to the container's metadata, so that it `changed`. From then on storage refuses what was sent before on the condition that
        the container is as it was (`delete_container`, a write of policies), whenever that arrives. It counts these times in whole
        seconds, so this goes on until the time is a later one. Raises ContainerMissingError where there is none."""
        before = await self.container_info()
        for _ in range(_CHANGES):
            await self._core.call(
                f"change the metadata of container {self.container}",
                lambda: self._core.container.set_container_metadata({**before.metadata, **metadata}),
            )
            if (await self.container_info()).changed > before.changed:
                return
            await asyncio.sleep(_PAUSE_S)
        raise TransientError(
            f"Could not change the metadata of container {self.container}",
            cause=f"storage's clock does not go on: the last change is of {before.changed} still",
        )

    async def date(self) -> dt.datetime:
        """What time it is by storage's clock, to the second: the same for all that look."""
        return await self._core.date()

    async def list_containers(self, prefix: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """The account's containers whose names begin so, with their metadata."""
        listed = self._core.service.list_containers(name_starts_with=prefix, include_metadata=True)
        async for item in self._core.listed(f"list the containers {prefix}*", listed):
            yield str(item.name), dict(item.metadata or {})

    async def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """Writes a new block blob, all or nothing, and returns its ETag. BlobExistsError if one of this
        name exists.

        After a broken connection the blob that exists may be this call's own: compare content before
        drawing conclusions.
        """

        async def content() -> Content:
            return Content(data, metadata or {})

        return await self.create_from(name, content, len(data))

    async def create_from(self, name: str, content: Callable[[], Awaitable[Content]], size_b: int) -> str:
        """`create` with content that is fetched anew for each attempt: between two, however long storage is away,
        it is in nobody's memory. `size_b` is its size, about. What `content` raises is raised.
        """

        async def attempt() -> dict[str, Any]:
            data, metadata = await content()
            reply: dict[str, Any] = await self._core.blob(name).upload_blob(
                data, length=len(data), metadata=dict(metadata), overwrite=False
            )
            return reply

        with existing_leased():
            reply = await self._core.call(f"write {name}", attempt, size_b=size_b)
        return str(reply["etag"])

    async def replace(
        self, name: str, data: bytes, if_match: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Writes a block blob over what is there, and returns its ETag. With `if_match` only over that
        version.
        """
        reply: dict[str, Any] = await self._core.call(
            f"replace {name}",
            lambda: self._core.blob(name).upload_blob(
                data,
                length=len(data),
                metadata=dict(metadata or {}),
                overwrite=True,
                **_conditions(None, if_match),
            ),
            size_b=len(data),
        )
        return str(reply["etag"])

    async def read(
        self, name: str, offset: int = 0, length: int | None = None, snapshot: str | None = None
    ) -> bytes:
        """The bytes from `offset`, at most `length`; fewer where the blob ends, none at or behind its end."""
        if length == 0:
            return b""

        try:
            return await download(self._core, f"read {name}", name, offset, length, snapshot)
        except RangeError:
            return b""  # (of what storage says to a read, this alone means that there are no bytes)

    async def read_versioned(self, name: str, most_b: int | None = None) -> tuple[bytes, str] | None:
        """A small blob's content (its first `most_b` bytes) and ETag; None when there is no such blob. The ETag is of that content or of
        an older one: so what is swapped under it was seen.
        """
        try:
            etag = (await self.properties(name)).etag
            return await self.read(name, 0, most_b), etag
        except BlobNotFoundError:
            return None

    async def properties(self, name: str, snapshot: str | None = None) -> BlobInfo:
        found = await self._core.call(
            f"look up {name}", lambda: self._core.blob(name, snapshot).get_blob_properties()
        )
        return _info(found, name)

    async def list(self, prefix: str, *, snapshots: bool = False) -> AsyncIterator[BlobInfo]:
        """The blobs whose names begin with `prefix`, in the order of their names, with metadata."""
        include = ["metadata", "snapshots"] if snapshots else ["metadata"]
        listed = self._core.container.list_blobs(
            name_starts_with=prefix, include=include, results_per_page=_PER_PAGE
        )
        async for item in self._core.listed(f"list {prefix}*", listed):
            yield _info(item, item.name)

    async def list_folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders right below `prefix` (which ends in "/"), without the prefix, in order."""
        walked = self._core.container.walk_blobs(
            name_starts_with=prefix, delimiter="/", results_per_page=_PER_PAGE
        )
        found = self._core.listed(f"list the folders of {prefix}", walked)
        names = [str(item.name) async for item in found]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in names if name.endswith("/"))

    async def delete(
        self,
        name: str,
        snapshot: str | None = None,
        lease: str | None = None,
        if_match: str | None = None,
    ) -> bool:
        """Deletes a blob with its snapshots, or only the one snapshot. False if there was none. With `if_match` only the version that has
        this ETag: PreconditionError if it has another, and, as storage may say then, too, if there was none."""
        options = _conditions(lease, if_match)
        if snapshot is None:
            options["delete_snapshots"] = "include"
        try:
            await self._core.call(
                f"delete {name}", lambda: self._core.blob(name, snapshot).delete_blob(**options)
            )
        except BlobNotFoundError:
            return False
        return True

    async def set_metadata(
        self, name: str, metadata: Mapping[str, str], lease: str | None = None, if_match: str | None = None
    ) -> str:
        """Replaces all metadata; returns the new ETag."""
        reply: dict[str, Any] = await self._core.call(
            f"set the metadata of {name}",
            lambda: self._core.blob(name).set_blob_metadata(dict(metadata), **_conditions(lease, if_match)),
        )
        return str(reply["etag"])

    async def snapshot(
        self,
        name: str,
        lease: str | None = None,
        if_match: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Freezes the blob's content under the returned snapshot id. Without `metadata` it carries the
        blob's own.
        """
        options = _conditions(lease, if_match)
        reply: dict[str, Any] = await self._core.call(
            f"snapshot {name}",
            lambda: self._core.blob(name).create_snapshot(
                metadata=dict(metadata) if metadata else None, **options
            ),
        )
        return str(reply["snapshot"])

    async def append_create(self, name: str) -> None:
        """A new, empty append blob. BlobExistsError if there is a blob of this name."""
        from azure.core import MatchConditions

        with existing_leased():
            await self._core.call(
                f"create {name}",
                lambda: self._core.blob(name).create_append_blob(match_condition=MatchConditions.IfMissing),
            )

    async def append(self, name: str, data: bytes, lease: str | None, expected_size: int) -> int:
        """Appends if the blob is exactly `expected_size` long, and returns its size right behind `data`.

        PreconditionError if it is not: somebody else wrote, or it was lost. Idempotent: when these very
        bytes already stand at `expected_size` (the answer to a first try was lost), that is success.
        """
        options = _conditions(lease, None)
        try:
            await self._core.call(
                f"append to {name}",
                lambda: self._core.blob(name).append_block(
                    data, len(data), appendpos_condition=expected_size, **options
                ),
                size_b=len(data),
            )
        except PreconditionError:
            if await self.read(name, expected_size, len(data)) != data:
                raise
        return expected_size + len(data)


def _conditions(lease: str | None, if_match: str | None) -> dict[str, Any]:
    from azure.core import MatchConditions

    conditions: dict[str, Any] = {}
    if lease is not None:
        conditions["lease"] = lease
    if if_match is not None:
        conditions |= {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
    return conditions


def _info(found: BlobProperties, name: str) -> BlobInfo:
    sequence_number = found.page_blob_sequence_number
    return BlobInfo(
        name=name,
        size_b=int(found.size),
        etag=str(found.etag),
        metadata=dict(found.metadata or {}),
        last_modified=found.last_modified,
        snapshot=found.snapshot,
        sequence_number=None if sequence_number is None else int(sequence_number),
        leased=str(found.lease.status) == "locked",
    )
