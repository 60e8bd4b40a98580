"""Reading a machine's log: what the index lists, and the batches of its segments, checked against each other.

One LogReader serves one machine and remembers the index, so that polling costs one small request per epoch.
Nothing here trusts storage: a segment must have the length and digest that the index says, and its batches
must be of the epoch that is meant, open with the segment's key and be what index and footer say of them. What is wrong is an
IntegrityError that names segment and batch.

Each segment's header has its key, wrapped: so the vault is all that is needed, and a machine document that was lost, or made anew with
another key, takes nothing away.
"""

from __future__ import annotations

import asyncio
import bisect
import os
from typing import Final

from shared.batch import Batch, StreamState
from shared.blob import BlobStore
from shared.errors import (
    BlobNotFoundError,
    IntegrityError,
    SegmentAlteredError,
    SegmentMissingError,
    SegmentTruncatedError,
)
from shared.keys.sealing import FileKey, MachineKey
from shared.keys.vault import Vault, machine_key_of
from shared.log import epochs, segment
from shared.log.chain import IndexChain
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochInfo
from shared.log.index import IndexEntry
from shared.log.segment import BatchRow, FileHeader

_TAIL_B: Final = 64 * 1024
"""Holds the footer of nearly every segment."""
_THREADS: Final = max(2, min(8, os.cpu_count() or 1))


class LogReader:
    """Methods raise StorageErrors of the store; StorageForgotError when the index became shorter; and
    IntegrityErrors.
    """

    def __init__(self, store: BlobStore, machine: str) -> None:
        self._store = store
        self.machine = machine
        self._keys: dict[str, MachineKey] = {}
        """By what wraps them; as a rule a machine has one, for ever."""
        self._epochs: dict[int, EpochInfo] = {}  # documents never change
        self._chains: dict[EpochId, tuple[IndexChain, list[IndexEntry]]] = {}
        """Of each epoch, its index and the segments that count in it so far."""
        self._digests: dict[tuple[str, int], str] = {}
        """By the segment's own digest and the batch; of those that were asked for, which are those of points."""

    async def epochs(self, damaged: dict[int, IntegrityError] | None = None) -> list[EpochInfo]:
        """All epochs of the machine, oldest first. The last one is the machine's current one.

        Raises IndexDamagedError for one whose document cannot be read, or is gone; with `damaged` it is left out and noted there.
        """
        found = []
        for number in await epochs.epoch_numbers(self._store):
            if number not in self._epochs:
                try:
                    self._epochs[number] = await epochs.read_epoch(self._store, number)
                except IntegrityError as exc:
                    if damaged is None:
                        raise
                    damaged[number] = exc
                    continue
            found.append(self._epochs[number])
        return found

    async def entries(self, epoch: EpochId, after: int = 0) -> list[IndexEntry]:
        """The segments that count and hold batches behind `after`, in order, without gaps."""
        if epoch not in self._chains:
            self._chains[epoch] = IndexChain(self._store, self.machine, epoch), []
        chain, found = self._chains[epoch]
        async for entries in chain.read_on():
            found += entries
        return found[bisect.bisect_right(found, after, key=lambda entry: entry.last) :]

    def before_damage(self, epoch: EpochId) -> list[IndexEntry]:
        """When `entries` has raised an IntegrityError: the segments that the index lists before what is damaged."""
        return self._chains[epoch][1]

    async def footer(self, entry: IndexEntry) -> list[BatchRow]:
        """What the segment's footer says of its batches, compared with the index entry."""
        at = max(0, entry.bytes - _TAIL_B)
        tail = await self._read(entry, at, entry.bytes - at)
        body_b, _ = segment.decode_trailer(tail, entry.bytes, entry.blob)
        if body_b < at:
            tail = await self._read(entry, body_b, entry.bytes - body_b)
        rows = list(segment.decode_footer(tail, entry.bytes, entry.blob).rows)
        _check_rows(entry, rows)
        return rows

    async def digest(self, entry: IndexEntry, batch: int) -> str:
        """Of a batch of the segment (hex). Of one that is not its last the footer is read, once."""
        if batch == entry.last:
            return entry.last_digest
        known = self._digests.get((entry.digest, batch))
        if known is None:
            known = (await self.footer(entry))[batch - entry.first].digest
            self._digests[entry.digest, batch] = known
        return known

    async def check_key(self, epoch: EpochId, entry: IndexEntry, vault: Vault) -> None:
        """Raises WrongKeyError when `vault` does not hold the key of this segment, OtherEpochSegmentError when it is not of that epoch.
        Reads its header only.
        """
        data = await self._read(entry, 0, min(entry.bytes, _TAIL_B))
        header, _ = segment.decode_file_header(data, entry.blob)
        segment.check_epoch(header, epoch, entry.blob)
        await self._key(header, vault)

    async def batches(
        self,
        epoch: EpochId,
        entry: IndexEntry,
        vault: Vault,
        first: int | None = None,
        last: int | None = None,
    ) -> list[Batch]:
        """The segment's batches from number `first` to `last` (inclusive; None: all), in order. It must be of `epoch`.

        All of them are in memory at a time: `entry.plain_b` bytes, which the writer bounds to a few times
        the segment's size.
        """
        data = await self._read(entry, 0, entry.bytes)
        header, rows = await asyncio.to_thread(_verify, epoch, entry, data)
        file_key = (await self._key(header, vault)).file_key(header.salt_bytes)
        wanted = [r for r in rows if (first or 0) <= r.number and (last is None or r.number <= last)]
        size = -(-len(wanted) // _THREADS) or 1
        groups = [wanted[i : i + size] for i in range(0, len(wanted), size)]
        opened = await asyncio.gather(
            *(asyncio.to_thread(_open_all, data, group, file_key, header, entry) for group in groups)
        )
        found = [batch for group in opened for batch in group]
        _check_chain(entry, rows, found)
        return found

    async def _key(self, header: FileHeader, vault: Vault) -> MachineKey:
        """Raises WrongKeyError."""
        if header.wrapped not in self._keys:
            key = await machine_key_of(vault, self.machine, header.key_id, header.wrapped_key)
            self._keys[header.wrapped] = key
        return self._keys[header.wrapped]

    async def _read(self, entry: IndexEntry, offset: int, length: int) -> bytes:
        try:
            data = await self._store.read(entry.blob, offset, length)
        except BlobNotFoundError as exc:
            raise SegmentMissingError(
                f"Segment {entry.blob} is missing",
                cause=f"the index lists it with batches {entry.first} to {entry.last}, but storage has no such blob",
            ) from exc
        if len(data) < min(length, entry.bytes - offset):
            raise SegmentTruncatedError(
                f"Segment {entry.blob} is truncated",
                cause=f"the index says {entry.bytes} bytes, storage has {offset + len(data)}",
            )
        return data


async def listed_digest(store: BlobStore, machine: str, epoch: EpochId, number: int) -> str:
    """The digest (hex) of a batch, by the index or the footer of its segment; empty if no segment with it is listed.
    Remembers nothing: the index is read up to there.
    """
    async for entries in IndexChain(store, machine, epoch).read_on():
        for entry in entries:
            if entry.first <= number <= entry.last:
                return await LogReader(store, machine).digest(entry, number)
    return ""


def _verify(epoch: EpochId, entry: IndexEntry, data: bytes) -> tuple[FileHeader, tuple[BatchRow, ...]]:
    """Header and rows of a whole segment that is what its entry says, as far as one can say without opening it."""
    header, _ = segment.decode_file_header(data, entry.blob)
    segment.check_epoch(header, epoch, entry.blob)
    footer = segment.check_body(data, entry.blob)
    body_b, digest = segment.decode_trailer(data, len(data), entry.blob)
    if digest.hex() != entry.digest:
        raise SegmentAlteredError(
            f"Segment {entry.blob} was altered", cause="its bytes are not those that the index names"
        )
    _check_rows(entry, footer.rows)
    if footer.rows[-1].offset + footer.rows[-1].length != body_b:
        raise SegmentAlteredError(f"Segment {entry.blob} was altered", cause="its batches do not fill it")
    return header, footer.rows


def _check_rows(entry: IndexEntry, rows: list[BatchRow] | tuple[BatchRow, ...]) -> None:
    numbers = [row.number for row in rows]
    if numbers != list(range(entry.first, entry.last + 1)):
        raise SegmentAlteredError(
            f"Segment {entry.blob} was altered",
            cause=f"its footer does not list batches {entry.first} to {entry.last}",
        )
    if tuple(segment.ordered_ranges(rows)) != entry.ordered or rows[-1].digest != entry.last_digest:
        raise SegmentAlteredError(
            f"Segment {entry.blob} was altered", cause="its footer and the index contradict each other"
        )


def _open_all(
    data: bytes,
    rows: list[BatchRow],
    file_key: FileKey,
    header: FileHeader,
    entry: IndexEntry,
) -> list[Batch]:
    view = memoryview(data)
    opened = []
    for row in rows:
        batch = segment.open_frame(file_key, header, view[row.offset : row.offset + row.length], entry.blob)
        if (batch.number, batch.state) != (row.number, row.state):
            raise SegmentAlteredError(
                f"Segment {entry.blob} was altered", cause=f"batch {row.number} is not what the footer says"
            )
        opened.append(batch)
    return opened


def _check_chain(entry: IndexEntry, rows: tuple[BatchRow, ...], found: list[Batch]) -> None:
    """Each batch names the one before it, also across segments. (Rows before the first opened one are not
    authenticated.)
    """
    digests = {row.number: row.digest for row in rows} | {entry.first - 1: entry.predecessor}
    for batch in found:
        if batch.predecessor.hex() != digests[batch.number - 1]:
            raise SegmentAlteredError(
                f"Segment {entry.blob} was altered",
                cause=f"batch {batch.number} does not continue batch {batch.number - 1}",
            )


__all__ = ["BatchRow", "EpochInfo", "IndexEntry", "LogReader", "StreamState", "listed_digest"]
