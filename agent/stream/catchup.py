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

The four rules are methods of their own, `_rule_a` to `_rule_d`: the property tests remove each in turn and must see replicas go wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from shared.batch import EXTENT, SECTOR, Extents, Op

GRANULE_SECTORS: Final = 32
"""One bit of a dirty or to-do bitmap stands for 32 sectors (16 KiB): 8 MiB of bitmap per TiB."""
WORD_GRANULES: Final = 64

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


@dataclass(slots=True)
class _Pending:
    """Chunks that were sent in a batch whose segment is not uploaded yet; their to-do bits are still set."""

    number: int
    chunks: list[Chunk]


@dataclass(slots=True)
class Round:
    loss: int
    """L0: the loss count as read before the swap."""
    start_seq: int
    """P0: the ring's producer position after the swap."""
    wanted: list[Bitmap]
    carried: list[npt.NDArray[np.uint8]]
    """Per disk, one bit per sector, little-endian: sectors of records at or above P0 that have been emitted. Allocated by the
    kernel page by page as they are touched: 256 MiB per TiB if every 16 MiB of the disk is written during one round."""
    deferred: bool = False
    """Something had to be left to the next round, so this one cannot end ordered."""
    chunks: Iterator[Chunk] = field(default_factory=lambda: iter(()))
    blocked: deque[Chunk] = field(default_factory=deque)
    """Chunks that an open write kept from being read; they are tried again after the others."""
    again: dict[tuple[int, int], int] = field(default_factory=dict)
    """(disk, word) → granules that were put into the to-do since the round began: what it reads of them does not tick them off."""


class CatchUp:
    """State of catch-up and of order for one machine.

    `disk_sectors`: size of each disk, by disk number. `todo`: per disk, the to-do bitmap, which survives the agent (pinned map).
    Bits are set by harvests and cleared only when the batch that carries the granule has been uploaded.
    """

    def __init__(
        self, disk_sectors: Sequence[int], todo: Sequence[Bitmap], granule_sectors: int = GRANULE_SECTORS
    ) -> None:
        self._disk_sectors = list(disk_sectors)
        self._todo = list(todo)
        self._granule = granule_sectors
        self._pending: deque[_Pending] = deque()
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

    def mark_everything(self) -> None:
        """Initial replication and full resync: every granule of every disk is to do; nothing sent before counts."""
        self._pending.clear()
        self.round = None
        self.lose_order()
        for words, sectors in zip(self._todo, self._disk_sectors, strict=True):
            granules = -(-sectors // self._granule)
            words[:] = 0
            words[: granules // WORD_GRANULES] = np.uint64(2**64 - 1)
            if granules % WORD_GRANULES:
                words[granules // WORD_GRANULES] = np.uint64((1 << granules % WORD_GRANULES) - 1)

    def harvest(self, disk: int, marked: Bitmap) -> None:
        """Adds granules that the kernel marked to the to-do; chunks that are pending, or that the round may have read already, no
        longer tick them off, since they are older."""
        self._todo[disk] |= marked
        for entry in self._pending:
            entry.chunks = [
                _with_mask(c, c.mask & ~int(marked[c.word])) if c.disk == disk else c for c in entry.chunks
            ]
        if self.round is not None:
            for word in np.flatnonzero(marked).tolist():
                self.round.again[disk, word] = self.round.again.get((disk, word), 0) | int(marked[word])

    def mark_range(self, disk: int, sector: int, sectors: int) -> None:
        """Puts a range of sectors into the to-do; the next round reads it, whenever that is."""
        marked = np.zeros_like(self._todo[disk])
        for granule in range(sector // self._granule, -(-(sector + sectors) // self._granule)):
            marked[granule // WORD_GRANULES] |= np.uint64(1 << granule % WORD_GRANULES)
        self.harvest(disk, marked)

    def begin_round(self, loss: int, start_seq: int) -> None:
        """Starts a round over all that is to do. The caller has, in this order: read `loss`, swapped the dirty bitmaps, sampled
        the producer position `start_seq`, and harvested what the swap made inactive."""
        self.lose_order()
        wanted = [words.copy() for words in self._todo]
        for entry in self._pending:
            for c in entry.chunks:
                wanted[c.disk][c.word] &= ~np.uint64(c.mask)
        self.round = Round(
            loss=loss,
            start_seq=start_seq,
            wanted=wanted,
            carried=[np.zeros(-(-sectors // 8), np.uint8) for sectors in self._disk_sectors],
        )
        self.round.chunks = self._iterate(self.round)

    def may_begin_reading(self, emitted_to: int) -> bool:
        return self.round is not None and self._rule_a(emitted_to)

    def next_chunk(self) -> Chunk | None:
        """The next chunk to read (blocked ones come last, again), or None when the round has no more."""
        assert self.round is not None
        chunk = next(self.round.chunks, None)
        if chunk is None and self.round.blocked:
            return self.round.blocked.popleft()
        return chunk

    def may_read(self, chunk: Chunk, open_from_before: npt.NDArray[np.void]) -> bool:
        """Whether no write that was open at P0 (rows with disk, sector, sectors) overlaps the chunk.

        A write that is in flight while its sectors are read may land after the read; had it been emitted below P0, the SYNC would
        put old data over it.
        """
        w = open_from_before
        overlaps = (
            (w["disk"] == chunk.disk)
            & (w["sector"] < chunk.first_sector + chunk.sectors)
            & (w["sector"] + w["sectors"] > chunk.first_sector)
        )
        return not bool(overlaps.any())

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

    def emit(self, chunk: Chunk, data: Payload) -> tuple[Extents, list[Payload]]:
        """SYNC extents and payload for a chunk that was read, at the moment of emission: sector-exact, without *carried*.

        `data`: the bytes of the chunk's span, `chunk.sectors * 512` long.
        """
        assert self.round is not None
        first = chunk.first_sector
        end = first + chunk.sectors
        carried = np.unpackbits(
            self.round.carried[chunk.disk][first // 8 : -(-end // 8)], bitorder="little"
        ).view(np.bool_)
        send = ~carried[first % 8 : first % 8 + chunk.sectors] & self._wanted_sectors(chunk)
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

    def sent(self, number: int, chunks: Sequence[Chunk]) -> None:
        """The chunks went out in batch `number`. Not those that were read before `settled`, which may have missed a write from before
        capture was attached: `defer` these, so that a later round reads them again."""
        assert self.round is not None
        again = self.round.again
        done = [_with_mask(c, c.mask & ~again.get((c.disk, c.word), 0)) for c in chunks]
        self._pending.append(_Pending(number, done))

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
        while self._pending and self._pending[0].number <= number:
            for c in self._pending.popleft().chunks:
                self._todo[c.disk][c.word] &= ~np.uint64(c.mask)

    def resume(self, spooled: int) -> bool:
        """After a break: batches above `spooled` are lost. If any of them carried SYNC data, the round or the order built on it is void;
        the granules are still in the to-do. Returns whether that was so."""
        lost = False
        while self._pending and self._pending[-1].number > spooled:
            self._pending.pop()
            lost = True
        if lost:
            self.round = None
            self.lose_order()
        return lost

    def todo_by_disk(self) -> list[int]:
        """How many granules of each disk are to do or not uploaded yet."""
        return [int(np.bitwise_count(words).sum()) for words in self._todo]

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

    def _iterate(self, round_: Round) -> Iterator[Chunk]:
        for disk, words in enumerate(round_.wanted):
            for word in np.flatnonzero(words).tolist():
                yield self._chunk(disk, word, int(words[word]))

    def _chunk(self, disk: int, word: int, mask: int) -> Chunk:
        low = (mask & -mask).bit_length() - 1
        first = (word * WORD_GRANULES + low) * self._granule
        end = min((word * WORD_GRANULES + mask.bit_length()) * self._granule, self._disk_sectors[disk])
        return Chunk(disk, word, mask, first, end - first)

    def _wanted_sectors(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        bits = np.unpackbits(np.array([chunk.mask], "<u8").view(np.uint8), bitorder="little").view(np.bool_)
        low = (chunk.mask & -chunk.mask).bit_length() - 1
        return np.repeat(bits[low:], self._granule)[: chunk.sectors]


def _with_mask(chunk: Chunk, mask: int) -> Chunk:
    return Chunk(chunk.disk, chunk.word, mask, chunk.first_sector, chunk.sectors)


def _set_ranges(
    bits: npt.NDArray[np.uint8], sector: npt.NDArray[np.uint64], sectors: npt.NDArray[np.uint32]
) -> None:
    """Sets the bits of the ranges. Long ranges (a discard of gigabytes) are set slice by slice, short ones all at once."""
    start = sector.astype(np.int64)
    length = sectors.astype(np.int64)
    long = length > 65536
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
