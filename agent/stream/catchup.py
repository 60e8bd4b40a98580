"""Catch-up: brings a target that misses data level with a disk that is being written, and says from where on the stream is ordered.

One algorithm serves initial replication, overflow and resync. It works in rounds over a to-do bitmap (one bit per granule).
This module is pure: it is told positions, loss counts and data, and decides; `agent.stream.cutter` does the reading and sending.

The argument, for one sector s and the newest write W to it that the kernel was given before the round ends:

- W captured below P0: it was emitted before the round's first read (rule A) and had completed before s was read (`may_read`),
  so the data read contains it, and nothing older follows it.
- W captured at or above P0: whether emitted before or after the SYNC of s, it stands. Before: s is in *carried* and is left
  out of the SYNC (rule B). After: it overwrites the SYNC.
- W not captured: its granule was marked *before* the loss count moved. Marked before the swap: the granule is in this
  round's to-do. After the swap: the loss count is not L0 any more, so the round does not end ordered, and the next round has it.

Order: what a SYNC read saw was submitted before that read returned, hence captured below P1, which is sampled after the last
read. So at the first boundary at or after P1 the target holds exactly the writes below that boundary (rule C), provided that none
was lost, i.e. the loss count is still L0 (rule D). From there on the stream stays ordered up to the first record that was
captured under another loss count.

A sector of the chunk that could not be read says nothing: it is not emitted. So the target keeps what it has, be it a W that was emitted
before, and nothing newer is overwritten. Its granule is ticked off, for a round that waited for a bad sector would never end ordered; what
is missing so is declared (`missing`, agent/stream/unreadable.py), and is what an ordered image may lack. Should it be given later, its
granule is put to do while no round runs, and order is taken back: for the round that follows it is a granule like all others.

The four rules are methods of their own, `_rule_a` to `_rule_d`: the property tests remove each in turn and must see replicas go wrong.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.layout import GRANULE_SECTORS
from agent.stream.pending import Pending
from shared.batch import EXTENT, SECTOR, Extents, Op

WORD_GRANULES: Final = 64
SLICE_WORDS: Final = 1 << 16
"""No step here looks at more of a bitmap at once (64 GiB of disk), or allocates more: what takes longer is an iterator of steps."""
_ALL: Final = 2**64 - 1
_LONG_SECTORS: Final = 256
"""A range that is longer is set by itself, not sector by sector."""

Bitmap = npt.NDArray[np.uint64]
Payload = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The granules of one bitmap word that a round wants: what is read, emitted and ticked off as one (at most 1 MiB)."""

    disk: int
    word: int
    mask: int
    first_sector: int
    """The chunk's span on the disk, from its first wanted granule to its last."""
    sectors: int


class NoChunk(enum.Enum):
    YET = "nothing in this part of the bitmap: ask again"
    LEFT = "the round has no more of this disk"


@dataclass(slots=True)
class Round:
    loss: int
    """L0: the loss count as read before the swap."""
    start_seq: int
    """P0: the ring's producer position after the swap."""
    carried: list[npt.NDArray[np.uint8]]
    """Per disk, one bit per sector, little-endian: sectors of records at or above P0 that have been emitted. Allocated by the
    kernel page by page as they are touched: 256 MiB per TiB if every 16 MiB of the disk is written during one round."""
    chunks: list[Iterator[Chunk | NoChunk]]
    """Per disk, what is to do when the bitmap is looked at, part by part. That is at least what it was when the round began, without what
    was sent before and is pending; what came since is read as well, and once more in the next round."""
    blocked: list[deque[Chunk]]
    """Per disk, chunks that an open write kept from being read; they are tried again after the others."""
    again: list[Bitmap]
    """Per disk, granules that were put into the to-do since the round began: what it reads of them does not tick them off. Allocated by
    the kernel where it is touched."""
    deferred: bool = False
    """Something had to be left to the next round, so this one cannot end ordered."""


class CatchUp:
    """State of catch-up and of order for one machine.

    `disk_sectors`: size of each disk, by disk number. `todo`: per disk, the to-do bitmap, which survives the agent (pinned map).
    Bits are set by harvests and cleared only when the batch that carries the granule has been uploaded.
    """

    def __init__(
        self, disk_sectors: Sequence[int], todo: Sequence[Bitmap], granule_sectors: int = GRANULE_SECTORS
    ) -> None:
        self.disk_sectors = tuple(disk_sectors)
        self._todo = list(todo)
        self._granule = granule_sectors
        self._todo_count = [0] * len(self._todo)
        self._pending = Pending()
        self.round: Round | None = None
        self.loss_at_order: int | None = None
        """The loss count under which the stream is ordered, or will be from `ordered_from` on; None while it is not."""
        self.ordered_from = 0
        self.settled = False
        """True once no write from before capture was attached can still be in flight."""

    # -- order ---------------------------------------------------------------------------------------------

    def is_ordered(self, emitted_to: int) -> bool:
        """Whether a batch boundary at which everything below `emitted_to` is emitted is an ordered one."""
        return self.loss_at_order is not None and self._rule_c(emitted_to)

    def lose_order(self) -> None:
        """A record was captured under another loss count, or the count moved: the stream is not ordered any more."""
        self.loss_at_order = None

    @property
    def needs_round(self) -> bool:
        return self.loss_at_order is None and self.round is None

    # -- rounds --------------------------------------------------------------------------------------------

    def recount(self) -> Iterator[None]:
        """Counts what is to do, in steps: once, after a start."""
        for disk, words in enumerate(self._todo):
            self._todo_count[disk] = 0
            for first in range(0, len(words), SLICE_WORDS):
                self._todo_count[disk] += _count(words[first : first + SLICE_WORDS])
                yield

    def mark_everything(self) -> Iterator[None]:
        """Initial replication and full resync, in steps: every granule of every disk is to do; nothing sent before counts."""
        self._pending.clear()
        self.round = None
        self.lose_order()
        for disk, sectors in enumerate(self.disk_sectors):
            yield from self._mark(disk, 0, -(-sectors // self._granule))

    def harvest(self, disk: int, marked: Bitmap, first_word: int = 0) -> None:
        """Adds granules that the kernel marked (words from `first_word` on) to the to-do; chunks that are pending, or that the round may
        have read already, no longer tick them off, since they are older."""
        words = self._todo[disk][first_word : first_word + len(marked)]
        self._todo_count[disk] += _count(marked & ~words)
        words |= marked
        self._pending.unmark(disk, first_word, marked)
        if self.round is not None:
            self.round.again[disk][first_word : first_word + len(marked)] |= marked

    def mark_range(self, disk: int, sector: int, sectors: int) -> None:
        """Puts a range of sectors into the to-do; the next round reads it, whenever that is."""
        for _ in self._mark(disk, sector // self._granule, -(-(sector + sectors) // self._granule)):
            pass

    def mark_sectors(self, disk: int, sectors: npt.NDArray[np.int64]) -> None:
        """Puts sectors into the to-do, wherever they lie."""
        granules = np.unique(sectors // self._granule)
        slices = granules // (SLICE_WORDS * WORD_GRANULES)
        for at in np.unique(slices).tolist():
            first = at * SLICE_WORDS
            mine = granules[slices == at]
            marked = np.zeros(min(SLICE_WORDS, len(self._todo[disk]) - first), np.uint64)
            bits = np.uint64(1) << (mine % WORD_GRANULES).astype(np.uint64)
            np.bitwise_or.at(marked, mine // WORD_GRANULES - first, bits)
            self.harvest(disk, marked, first)

    def _mark(self, disk: int, first: int, end: int) -> Iterator[None]:
        """Puts the granules [first, end) into the to-do, in steps."""
        last_word = -(-end // WORD_GRANULES)
        for at in range(first // WORD_GRANULES, last_word, SLICE_WORDS):
            stop = min(at + SLICE_WORDS, last_word)
            marked = np.full(stop - at, _ALL, np.uint64)
            if (before := first - at * WORD_GRANULES) > 0:
                marked[0] = _ALL << before & _ALL
            if (behind := stop * WORD_GRANULES - end) > 0:
                marked[-1] &= np.uint64(_ALL >> behind)
            self.harvest(disk, marked, at)
            yield

    def begin_round(self, loss: int, start_seq: int) -> None:
        """Starts a round over all that is to do. The caller has, in this order: read `loss`, swapped the dirty bitmaps, sampled
        the producer position `start_seq`, and harvested what the swap made inactive."""
        self.lose_order()
        disks = range(len(self.disk_sectors))
        self.round = Round(
            loss=loss,
            start_seq=start_seq,
            carried=[np.zeros(-(-sectors // 8), np.uint8) for sectors in self.disk_sectors],
            chunks=[self._scan(disk) for disk in disks],
            blocked=[deque() for _ in disks],
            again=[np.zeros(len(words), np.uint64) for words in self._todo],
        )

    def may_begin_reading(self, emitted_to: int) -> bool:
        return self.round is not None and self._rule_a(emitted_to)

    def next_chunk(self, disk: int) -> Chunk | NoChunk:
        """The disk's next chunk to read; blocked ones come last, again."""
        assert self.round is not None
        chunk = next(self.round.chunks[disk], NoChunk.LEFT)
        if chunk is NoChunk.LEFT and self.round.blocked[disk]:
            return self.round.blocked[disk].popleft()
        return chunk

    def block(self, chunk: Chunk) -> None:
        """An open write overlaps it: it is tried again after the others."""
        assert self.round is not None
        self.round.blocked[chunk.disk].append(chunk)

    def may_read(self, chunk: Chunk, open_from_before: npt.NDArray[np.void]) -> bool:
        """Whether no write that was open at P0 (rows with disk, sector, sectors) overlaps the chunk.

        A write that is in flight while its sectors are read may land after the read; had it been emitted below P0, the SYNC would
        put old data over it.
        """
        return not len(open_over(chunk, open_from_before))

    def defer(self, chunk: Chunk) -> None:
        """Leaves a chunk to the next round (its to-do bits stay set)."""
        assert self.round is not None
        self.round.deferred = True

    def records_emitted(self, extents: Extents, stands: npt.NDArray[np.int64]) -> None:
        """Notes records that were just emitted; `stands` is the ring position of each extent's last piece."""
        if self.round is None or not len(extents):
            return
        extents = extents[self._rule_b(stands)]
        for disk in np.unique(extents["disk"]):
            mine = extents[extents["disk"] == disk]
            _set_ranges(self.round.carried[int(disk)], mine["sector"], mine["sectors"])

    def emit(
        self, chunk: Chunk, data: Payload, unreadable: Sequence[tuple[int, int]] = ()
    ) -> tuple[Extents, list[Payload]]:
        """SYNC extents and payload for a chunk that was read, at the moment of emission: sector-exact, without *carried*.

        `data`: the bytes of the chunk's span, `chunk.sectors * 512` long. `unreadable`: runs (first sector, sectors) of which it holds
        nothing.
        """
        first = chunk.first_sector
        send = self._needed_sectors(chunk) & ~_mask(chunk, unreadable)
        zero = ~data.reshape(chunk.sectors, SECTOR).any(axis=1)
        kind = np.where(send, np.where(zero, Op.SYNC_ZERO, Op.SYNC), 0).astype(np.uint8)
        edges = np.flatnonzero(np.diff(kind)) + 1
        starts = np.concatenate(([0], edges))
        stops = np.concatenate((edges, [chunk.sectors]))
        keep = kind[starts] != 0
        starts, stops = starts[keep], stops[keep]
        extents = np.zeros(len(starts), EXTENT)
        extents["disk"] = chunk.disk
        extents["sector"] = first + starts
        extents["sectors"] = stops - starts
        extents["op"] = kind[starts]
        payload = [
            data[a * SECTOR : b * SECTOR]
            for a, b, k in zip(starts.tolist(), stops.tolist(), kind[starts].tolist(), strict=True)
            if k == Op.SYNC
        ]
        return extents, payload

    def missing(self, chunk: Chunk, unreadable: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """Which sectors of the chunk's span would be emitted now, had they been read: they go missing from the target."""
        return self._needed_sectors(chunk) & _mask(chunk, unreadable)

    def sent(self, number: int, chunks: Sequence[Chunk]) -> None:
        """The chunks went out in batch `number`. Not those that were read before `settled`, which may have missed a write from before
        capture was attached: `defer` these, so that a later round reads them again."""
        assert self.round is not None
        again = self.round.again
        self._pending.add(number, ((c.disk, c.word, c.mask & ~int(again[c.disk][c.word])) for c in chunks))

    def finish_reading(self, end_seq: int, loss: int) -> bool:
        """Ends the round. The caller sampled, after the last read returned, the producer position `end_seq` (P1) and then `loss`.

        Returns whether the stream will be ordered from the first boundary at or after P1.
        """
        ended, self.round = self.round, None
        assert ended is not None
        if ended.deferred or not self._rule_d(ended, loss):
            return False
        self.loss_at_order = loss
        self.ordered_from = end_seq
        return True

    # -- acknowledgements ------------------------------------------------------------------------------------

    def uploaded(self, number: int) -> None:
        """Batches up to `number` are uploaded: their chunks are done for good."""
        done = self._pending.take_up_to(number)
        for disk in np.unique(done["disk"]).tolist():
            mine = done[done["disk"] == disk]
            words, todo = np.unique(mine["word"]), self._todo[disk]
            before = _count(todo[words])
            np.bitwise_and.at(todo, mine["word"], ~mine["mask"])
            self._todo_count[disk] += _count(todo[words]) - before

    def resume(self, spooled: int) -> bool:
        """After a break: batches above `spooled` are lost. If any of them carried SYNC data, the round or the order built on it is void;
        the granules are still in the to-do. Returns whether that was so."""
        lost = self._pending.drop_behind(spooled)
        if lost:
            self.round = None
            self.lose_order()
        return lost

    def todo_by_disk(self) -> list[int]:
        """How many granules of each disk are to do or not uploaded yet."""
        return [*self._todo_count]

    # -- the rules -------------------------------------------------------------------------------------------

    def _rule_a(self, emitted_to: int) -> bool:
        """SYNC reads begin only when everything below P0 has been emitted."""
        assert self.round is not None
        return emitted_to >= self.round.start_seq

    def _rule_b(self, stands: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Only records at or above P0 enter *carried*."""
        assert self.round is not None
        result: npt.NDArray[np.bool_] = stands >= self.round.start_seq
        return result

    def _rule_c(self, emitted_to: int) -> bool:
        """Ordered only from the first boundary at or after P1."""
        return emitted_to >= self.ordered_from

    def _rule_d(self, ended: Round, loss: int) -> bool:
        """Ordered only if nothing was lost since the round began."""
        return loss == ended.loss

    # -- helpers ---------------------------------------------------------------------------------------------

    def _scan(self, disk: int) -> Iterator[Chunk | NoChunk]:
        words = self._todo[disk]
        for first in range(0, len(words), SLICE_WORDS):
            part = words[first : first + SLICE_WORDS]
            wanted = part & ~self._pending.masks(disk, first, len(part))
            for word in np.flatnonzero(wanted).tolist():
                yield self._chunk(disk, first + word, int(wanted[word]))
            yield NoChunk.YET

    def _chunk(self, disk: int, word: int, mask: int) -> Chunk:
        low = (mask & -mask).bit_length() - 1
        first = (word * WORD_GRANULES + low) * self._granule
        end = min((word * WORD_GRANULES + mask.bit_length()) * self._granule, self.disk_sectors[disk])
        return Chunk(disk, word, mask, first, end - first)

    def _needed_sectors(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """What of the chunk is wanted, without *carried*."""
        assert self.round is not None
        first, end = chunk.first_sector, chunk.first_sector + chunk.sectors
        carried = np.unpackbits(
            self.round.carried[chunk.disk][first // 8 : -(-end // 8)], bitorder="little"
        ).view(np.bool_)
        needed: npt.NDArray[np.bool_] = ~carried[first % 8 : first % 8 + chunk.sectors] & self.wanted_sectors(
            chunk
        )
        return needed

    def wanted_sectors(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Which sectors of the chunk's span the round wants."""
        bits = np.unpackbits(np.array([chunk.mask], "<u8").view(np.uint8), bitorder="little").view(np.bool_)
        low = (chunk.mask & -chunk.mask).bit_length() - 1
        return np.repeat(bits[low:], self._granule)[: chunk.sectors]


def open_over(chunk: Chunk, open_writes: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Those of the writes (rows with disk, sector, sectors) that overlap the chunk."""
    w = open_writes
    overlaps = (
        (w["disk"] == chunk.disk)
        & (w["sector"] < chunk.first_sector + chunk.sectors)
        & (w["sector"] + w["sectors"] > chunk.first_sector)
    )
    over: npt.NDArray[np.void] = w[overlaps]
    return over


def _mask(chunk: Chunk, runs: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Sectors of the chunk's span that lie in these runs."""
    mask = np.zeros(chunk.sectors, np.bool_)
    for sector, sectors in runs:
        mask[max(0, sector - chunk.first_sector) : max(0, sector + sectors - chunk.first_sector)] = True
    return mask


def _count(words: Bitmap) -> int:
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def _set_ranges(
    bits: npt.NDArray[np.uint8], sector: npt.NDArray[np.uint64], sectors: npt.NDArray[np.uint32]
) -> None:
    """Sets the bits of the ranges. Long ranges (discards, up to gigabytes) are set one by one, short ones all at once."""
    start = sector.astype(np.int64)
    length = sectors.astype(np.int64)
    long = length > _LONG_SECTORS
    for a, n in zip(start[long].tolist(), length[long].tolist(), strict=True):
        first_full, last_full = -(-a // 8), (a + n) // 8
        bits[first_full:last_full] = 0xFF
        edges = np.concatenate((np.arange(a, first_full * 8), np.arange(last_full * 8, a + n)))
        np.bitwise_or.at(bits, edges >> 3, (1 << (edges & 7)).astype(np.uint8))
    start, length = start[~long], length[~long]
    if ((start | length) & 7 == 0).all():
        bits[_expand(start >> 3, length >> 3)] = 0xFF
    else:
        every = _expand(start, length)
        np.bitwise_or.at(bits, every >> 3, (1 << (every & 7)).astype(np.uint8))


def _expand(start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All integers of the ranges [start, start + length), one after the other."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()), dtype=np.int64)
