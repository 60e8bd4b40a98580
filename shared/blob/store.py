"""Blobs of the container, their leases and snapshots. See the package."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shared.blob.pages import PageBlobs
from shared.errors import BlobExistsError, BlobNotFoundError, LeaseLostError, PreconditionError

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties

FOR_EVER = -1
"""Duration of a lease that does not expire; only release or break ends it."""


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


class Lease(msgspec.Struct, frozen=True):
    """A lease that this process holds on a blob. `id` goes with each write to that blob."""

    store: BlobStore
    name: str
    id: str

    async def renew(self) -> None:
        """Raises LeaseLostError when it has expired and somebody else took it, or when it was broken."""
        await self.store._call(
            f"renew the lease of {self.name}", lambda: self.store._lease_client(self.name, self.id).renew()
        )

    async def release(self) -> None:
        """Gives it back. Raises LeaseLostError when it was not ours any more."""
        await self.store._call(
            f"release the lease of {self.name}",
            lambda: self.store._lease_client(self.name, self.id).release(),
        )


class BlobStore(PageBlobs):
    async def ensure_container(self) -> None:
        try:
            await self._call(f"create container {self.config.container}", self._container.create_container)
        except BlobExistsError:
            return

    async def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        """Writes a new block blob, all or nothing, and returns its ETag. BlobExistsError if one of this
        name exists.

        After a broken connection the blob that exists may be this call's own: compare content before
        drawing conclusions.
        """
        reply: dict[str, Any] = await self._call(
            f"write {name}",
            lambda: self._blob(name).upload_blob(
                data, length=len(data), metadata=dict(metadata or {}), overwrite=False
            ),
            size_b=len(data),
        )
        return str(reply["etag"])

    async def replace(
        self, name: str, data: bytes, if_match: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Writes a block blob over what is there, and returns its ETag. With `if_match` only over that
        version.
        """
        reply: dict[str, Any] = await self._call(
            f"replace {name}",
            lambda: self._blob(name).upload_blob(
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

        async def download() -> bytes:
            stream = await self._blob(name, snapshot).download_blob(offset=offset, length=length)
            data: bytes = await stream.readall()
            return data

        try:
            return await self._call(f"read {name}", download, size_b=length or 0)
        except PreconditionError:
            # The range begins at or behind the end. (An append blob that grew during a read of several
            # requests ends here as well; those stay far below the size of one request.)
            return b""

    async def properties(self, name: str, snapshot: str | None = None) -> BlobInfo:
        found = await self._call(f"look up {name}", lambda: self._blob(name, snapshot).get_blob_properties())
        return _info(found, name)

    async def list(self, prefix: str, *, snapshots: bool = False) -> AsyncIterator[BlobInfo]:
        """The blobs whose names begin with `prefix`, in the order of their names, with metadata."""
        include = ["metadata", "snapshots"] if snapshots else ["metadata"]
        token: str | None = None
        while True:

            async def page(token: str | None = token) -> tuple[list[BlobProperties], str | None]:
                pages = self._container.list_blobs(name_starts_with=prefix, include=include).by_page(token)
                async for items in pages:
                    return [item async for item in items], pages.continuation_token  # type: ignore[attr-defined]
                return [], None

            items, token = await self._call(f"list {prefix}*", page)
            for item in items:
                yield _info(item, item.name)
            if not token:
                return

    async def list_folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders right below `prefix` (which ends in "/"), without the prefix, in order."""

        async def walk() -> list[str]:
            found = self._container.walk_blobs(name_starts_with=prefix, delimiter="/")
            return [str(item.name) async for item in found]

        names = await self._call(f"list the folders of {prefix}", walk)
        return sorted(name.removeprefix(prefix).rstrip("/") for name in names if name.endswith("/"))

    async def delete(self, name: str, snapshot: str | None = None, lease: str | None = None) -> bool:
        """Deletes a blob with its snapshots, or only the one snapshot. False if there was none."""
        options: dict[str, Any] = {} if snapshot is not None else {"delete_snapshots": "include"}
        if lease is not None:
            options["lease"] = lease
        try:
            await self._call(f"delete {name}", lambda: self._blob(name, snapshot).delete_blob(**options))
        except BlobNotFoundError:
            return False
        return True

    async def set_metadata(
        self, name: str, metadata: Mapping[str, str], lease: str | None = None, if_match: str | None = None
    ) -> str:
        """Replaces all metadata; returns the new ETag."""
        reply: dict[str, Any] = await self._call(
            f"set the metadata of {name}",
            lambda: self._blob(name).set_blob_metadata(dict(metadata), **_conditions(lease, if_match)),
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
        reply: dict[str, Any] = await self._call(
            f"snapshot {name}",
            lambda: self._blob(name).create_snapshot(
                metadata=dict(metadata) if metadata else None, **options
            ),
        )
        return str(reply["snapshot"])

    async def acquire_lease(self, name: str, seconds: int = 60, lease_id: str | None = None) -> Lease:
        """Seconds: 15 to 60, or FOR_EVER. LeaseHeldError while somebody else holds it; BlobNotFoundError
        without the blob.
        """
        lease_id = lease_id or str(uuid.uuid4())
        # The id is ours, not the server's: a repeated request whose first answer was lost succeeds.
        await self._call(
            f"take the lease of {name}",
            lambda: self._lease_client(name, lease_id).acquire(lease_duration=seconds),
        )
        return Lease(self, name, lease_id)

    async def break_lease(self, name: str) -> None:
        """Ends whoever's lease at once. Nothing happens if there is none."""
        try:
            await self._call(
                f"break the lease of {name}",
                lambda: self._lease_client(name, None).break_lease(lease_break_period=0),
            )
        except LeaseLostError:
            return

    async def append_create(self, name: str) -> None:
        """A new, empty append blob. BlobExistsError if there is a blob of this name."""
        from azure.core import MatchConditions

        await self._call(
            f"create {name}",
            lambda: self._blob(name).create_append_blob(match_condition=MatchConditions.IfMissing),
        )

    async def append(self, name: str, data: bytes, lease: str | None, expected_size: int) -> int:
        """Appends if the blob is exactly `expected_size` long, and returns its size right behind `data`.

        PreconditionError if it is not: somebody else wrote, or it was lost. Idempotent: when these very
        bytes already stand at `expected_size` (the answer to a first try was lost), that is success.
        """
        options = _conditions(lease, None)
        try:
            await self._call(
                f"append to {name}",
                lambda: self._blob(name).append_block(
                    data, len(data), appendpos_condition=expected_size, **options
                ),
                size_b=len(data),
            )
        except PreconditionError:
            if await self.read(name, expected_size, len(data)) != data:
                raise
        return expected_size + len(data)

    def _lease_client(self, name: str, lease_id: str | None) -> Any:
        from azure.storage.blob.aio import BlobLeaseClient

        return BlobLeaseClient(self._blob(name), lease_id=lease_id)


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
