"""A seed disk in blob storage: one page blob, laid out as a fixed VHD (vhd.py), its state in the blob's
metadata (state.py).

One writer (I7). The owner holds the blob's lease, and every request that changes the blob carries its id:
once somebody else has the lease, nothing of an earlier owner lands. What remains are *strays*: requests of
this very owner that were given up (time-out) and repeated, and whose first try lands later.
- A stray page write or clear carries the sequence number of its interval. The next interval raises the
  number before its first write, so the stray fails. If it lands earlier, it repeats what it wrote already,
  since the runs of an interval are disjoint: harmless.
- A stray raise of the sequence number does nothing: it never lowers it.
- A stray change of metadata carries the ETag from before the change. The repeated try changed the ETag: the
  stray fails.
- A stray snapshot carries the ETag that was current when the metadata named the position. If it lands,
  nothing was written since: it is a second, valid snapshot; nobody refers to it, and it is removed as an
  orphan.

Order in `begin`: metadata (pending = end, new sequence number), then the blob's sequence number, then
pages. The number comes from the metadata, which change only forwards under If-Match; so a number is never
used twice, also over crashes between the two steps.
"""

from __future__ import annotations

import time
from typing import Final

from master_target.leases import KeptLease
from master_target.targets import vhd
from master_target.targets.base import Snapshot
from master_target.targets.state import DiskInterval, DiskState, decode
from shared.blob import BlobInfo, BlobStore, Retry
from shared.daemon import logging
from shared.daemon.limits import check_page_blob_target
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    LeaseLostError,
    PreconditionError,
    SeedDiskError,
)
from shared.recovery.position import parse_rfc3339
from shared.recovery.seed import SEED_DISKS, SUFFIX, seed_blob, shown_position

_log = logging.get()

_TRIES: Final = 5
_CLEAR_MAX_B: Final = 1 << 30


class PageBlobTarget:
    """Make it with `open`. See base.Target."""

    kind: Final = "page-blob"

    def __init__(self, store: BlobStore, machine: str, disk: str, lease: KeptLease, info: BlobInfo) -> None:
        self.name = disk
        self._store = store
        self._hasty = store.with_retry(Retry())
        """For what no disk's state depends on: nobody waits an outage out for it."""
        self._machine = machine
        self._blob = blob = seed_blob(disk)
        self._lease = lease
        self._etag = info.etag
        self._state = decode(info.metadata, blob)
        self._size_b = info.size_b

    @classmethod
    async def open(
        cls, store: BlobStore, machine: str, disk: str, disk_b: int, *, take: bool = False
    ) -> PageBlobTarget:
        """Take the disk's lease; create the blob, all zeroes, when there is none. Raises DiskTooLargeError, LeaseHeldError; with
        `take`, which is for the holder of the machine's claim, the lease of an earlier owner is broken instead.
        """
        check_page_blob_target(disk, disk_b)
        blob = seed_blob(disk)
        size_b = vhd.capacity_b(disk_b) + vhd.FOOTER_SIZE
        try:
            await store.pages.create(blob, size_b, DiskState(disk_b=disk_b).encode())
        except BlobExistsError:
            _log.debug("seed disk exists", blob=blob)
        lease = await KeptLease.take(store, blob, by_force=take)
        try:
            # Looked up under the lease: from here on nobody else changes it.
            return cls(store, machine, disk, lease, await store.properties(blob))
        except BaseException:
            await lease.release()
            raise

    @property
    def state(self) -> DiskState:
        return self._state

    @property
    def problem(self) -> None:
        return None

    async def begin(self, interval: DiskInterval) -> None:
        check_page_blob_target(self.name, interval.disk_b)
        await self._record(self._state.begin(interval))
        await self._store.pages.set_sequence_number(self._blob, self._state.sequence, self._lease.id)
        if interval.start.batch == 0:
            await self._shape()

    async def write(self, offset_b: int, data: memoryview) -> None:
        await self._store.pages.write(self._blob, offset_b, bytes(data), self._lease.id, self._state.sequence)

    async def clear(self, offset_b: int, length_b: int) -> None:
        for at in range(offset_b, offset_b + length_b, _CLEAR_MAX_B):
            length = min(_CLEAR_MAX_B, offset_b + length_b - at)
            await self._store.pages.clear(self._blob, at, length, self._lease.id, self._state.sequence)

    async def read(self, offset_b: int, length_b: int) -> bytes:
        parts: list[bytes] = []
        at, end = offset_b, offset_b + length_b
        while at < end:
            part = await self._store.pages.read(self._blob, at, end - at)
            if not part:
                raise SeedDiskError(
                    f"Seed disk {self._blob} could not be read", cause=f"it ends at byte {at}, before {end}"
                )
            parts.append(part[: end - at])
            at += len(parts[-1])
        return b"".join(parts)

    async def finish(self) -> None:
        await self._record(self._state.finish())

    async def snapshot(self) -> str:
        if not self._state.clean:
            raise SeedDiskError(
                f"No snapshot of {self._blob} was taken", cause="an interval is being applied to it"
            )
        for _ in range(_TRIES):
            try:
                return await self._store.snapshot(self._blob, self._lease.id, self._etag)
            except PreconditionError:
                # A stray page write of the finished interval (harmless), or something worse: look.
                await self._look_again(self._state)
        raise self._unstable()

    async def shows_as_it_is(self, snapshot: str) -> bool:
        try:
            metadata = (await self._store.properties(self._blob, snapshot)).metadata
        except BlobNotFoundError:
            return False
        return self._state.is_shown_by(metadata)

    async def snapshots(self) -> list[Snapshot]:
        return [
            Snapshot(
                disk=info.name.removeprefix(SEED_DISKS).removesuffix(SUFFIX),
                id=info.snapshot,
                position=shown_position(info.metadata),
                taken_s=_taken_s(info.snapshot),
            )
            async for info in self._hasty.list(SEED_DISKS, snapshots=True)
            if info.snapshot is not None and info.name.endswith(SUFFIX)
        ]

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        await self._hasty.delete(seed_blob(disk), snapshot)

    async def close(self) -> None:
        await self._lease.release()

    async def _record(self, new: DiskState) -> None:
        """Make `new` the blob's metadata. Afterwards ETag and state are known exactly."""
        metadata = new.encode()
        for _ in range(_TRIES):
            try:
                self._etag = await self._store.set_metadata(self._blob, metadata, self._lease.id, self._etag)
            except PreconditionError:
                # Page writes change the ETag; or this is the repetition of a try that had succeeded.
                if await self._look_again(self._state, new) != new:
                    continue
            self._state = new
            return
        raise self._unstable()

    async def _look_again(self, *expected: DiskState) -> DiskState:
        """Read ETag and state; the state must be one of `expected`, else there is another writer:
        LeaseLostError when it has our lease, SeedDiskError when nobody should have.
        """
        info = await self._store.properties(self._blob)
        found = decode(info.metadata, self._blob)
        if found not in expected:
            if not await self._lease.is_held():
                raise LeaseLostError(
                    f"Seed disk {self._blob} is not ours any more", cause="another master target took it"
                )
            raise SeedDiskError(
                f"Seed disk {self._blob} was changed by somebody else",
                cause=f"it says cursor {found.cursor}, pending {found.pending}; we left it at "
                f"{self._state.cursor}, {self._state.pending}",
            )
        self._etag = info.etag
        return found

    async def _shape(self) -> None:
        """Give the blob the size, padding and footer for the source disk's size. Idempotent; only at the
        start of an epoch.
        """
        disk_b = self._state.disk_b
        capacity_b = vhd.capacity_b(disk_b)
        size_b = capacity_b + vhd.FOOTER_SIZE
        if self._size_b != size_b:
            await self._store.pages.resize(self._blob, size_b, self._lease.id)
            self._size_b = size_b
        if capacity_b > disk_b:
            await self.clear(disk_b, capacity_b - disk_b)
        await self.write(capacity_b, memoryview(vhd.footer(capacity_b, f"{self._machine}/{self.name}")))

    def _unstable(self) -> SeedDiskError:
        return SeedDiskError(
            f"Seed disk {self._blob} could not be brought to a known state",
            cause="it changed again and again while we held its lease",
        )


def _taken_s(snapshot: str) -> float:
    """Snapshot ids are their times. One that is none counts as just taken, so that nobody removes it."""
    taken_ns = parse_rfc3339(snapshot)
    return time.time() if taken_ns is None else taken_ns / 1e9
