"""Coalescing: from the batches of an interval to the fewest non-overlapping writes and clears per disk.
Pure; numpy only.

What must hold: applying the runs of an interval, in any order, leaves every disk exactly as applying all
its extents in stream order would.

Why it does. The ends of all extents of a disk cut it into *cells*; an extent covers a cell whole or not at
all, so the cell's content after the interval is that of the last extent that covers it: its *owner*. Each
covered cell is emitted once, with its owner's data (or as a clear), and cells are disjoint: so the order of
runs is free, and applying any of them twice changes nothing.

Owners are found for n extents in O(n log n) without a loop over extents, whatever their lengths (a discard
may span terabytes): extent i covers cells [lo, hi), the union of two windows of 2**k cells with 2**k ≤ hi −
lo. Every window is noted at its level k with i; then levels are pushed down, from a window to its two
halves, keeping the larger number. At level 0 each cell holds the largest, hence last, i that covers it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.batch import SECTOR, Batch, Extents, has_payload, payload_offsets

MAX_RUN_SECTORS: Final = 4 * 1024 * 1024 // SECTOR
"""Azure takes at most 4 MiB in one page write."""

Ints = npt.NDArray[np.int64]
Sectors = npt.NDArray[np.uint8]
"""Disk data, one row of 512 bytes per sector."""


class Run(msgspec.Struct, frozen=True):
    """One contiguous write: `data` goes to byte `offset_b` of the disk."""

    offset_b: int
    data: memoryview


class DiskRuns(msgspec.Struct, frozen=True):
    """What an interval does to one disk. Rows of `writes` and `clears` are (first sector, sectors),
    ascending, disjoint.

    `data` holds the sectors of all writes back to back, in the order of `writes`.
    """

    disk: int
    writes: Ints
    clears: Ints
    data: Sectors

    def __iter__(self) -> Iterator[Run]:
        """The writes, each with its data (a view, no copy)."""
        view = self.data.reshape(-1).data
        at = 0
        for sector, sectors in self.writes.tolist():
            yield Run(sector * SECTOR, view[at : at + sectors * SECTOR])
            at += sectors * SECTOR

    @property
    def end_sector(self) -> int:
        """The first sector after everything that is written or cleared."""
        ends = [int(rows[-1].sum()) for rows in (self.writes, self.clears) if len(rows)]
        return max(ends, default=0)


def coalesce(batches: Sequence[Batch], max_run_sectors: int = MAX_RUN_SECTORS) -> dict[int, DiskRuns]:
    """The runs of each disk that `batches`, consecutive and in stream order, change. Disks without extents do not appear.

    Memory: the surviving sectors once, beside the batches.
    """
    if not any(len(b.extents) for b in batches):
        return {}
    extents: Extents = np.concatenate([b.extents for b in batches])
    payloads = [np.frombuffer(b.payload, np.uint8).reshape(-1, SECTOR) for b in batches]
    # Sectors of all payloads are numbered through, batch after batch.
    source = payload_offsets(extents) // SECTOR
    return {
        int(disk): _coalesce_disk(int(disk), extents, source, payloads, max_run_sectors)
        for disk in np.unique(extents["disk"])
    }


def _coalesce_disk(
    disk: int, extents: Extents, source: Ints, payloads: Sequence[Sectors], max_run_sectors: int
) -> DiskRuns:
    mine = (extents["disk"] == disk) & (extents["sectors"] > 0)
    extents, source = extents[mine], source[mine]
    first = extents["sector"].astype(np.int64)
    after = first + extents["sectors"].astype(np.int64)
    edges: Ints = np.unique(np.concatenate([first, after]))
    owner = _last_cover(np.searchsorted(edges, first), np.searchsorted(edges, after), max(len(edges) - 1, 0))

    covered = owner >= 0
    owner, start, length = owner[covered], edges[:-1][covered], (edges[1:] - edges[:-1])[covered]
    has_data = has_payload(extents)[owner]
    clears = merge(start[~has_data], length[~has_data])
    start, length, owner = start[has_data], length[has_data], owner[has_data]
    rows: Ints = expand(source[owner] + (start - first[owner]), length)
    return DiskRuns(disk, split(merge(start, length), max_run_sectors), clears, _gather(payloads, rows))


def _gather(payloads: Sequence[Sectors], rows: Ints) -> Sectors:
    """Sectors `rows` of the payloads, which are numbered through. Goes batch by batch, so that they need not be joined first."""
    gathered = np.empty((len(rows), SECTOR), np.uint8)
    order = np.argsort(rows, kind="stable")
    begin = 0
    numbers = rows[order]
    ends = np.cumsum([len(payload) for payload in payloads])
    cuts = np.searchsorted(numbers, ends)
    for payload, end, cut in zip(payloads, ends, cuts, strict=True):
        wanted = order[begin:cut]
        gathered[wanted] = payload[rows[wanted] - (end - len(payload))]
        begin = cut
    return gathered


def _last_cover(lo: Ints, hi: Ints, cells: int) -> Ints:
    """For each of `cells` cells the largest i with lo[i] <= cell < hi[i], or -1."""
    level_of = np.frexp(hi - lo)[1] - 1  # floor(log2), exact for integers below 2**53
    cover = np.full(cells, -1, np.int64)
    for level in range(int(level_of.max(initial=0)), -1, -1):
        i = np.flatnonzero(level_of == level)
        np.maximum.at(cover, lo[i], i)
        np.maximum.at(cover, hi[i] - (1 << level), i)
        if level:
            # A window's first half begins where the window does: nothing moves. Its second, `half` later.
            half = 1 << (level - 1)
            cover[half:] = np.maximum(cover[half:], cover[:-half])
    return cover


def merge(start: Ints, length: Ints) -> Ints:
    """Ascending disjoint ranges, with those that touch joined, as (first, length) rows."""
    if not len(start):
        return np.empty((0, 2), np.int64)
    heads = np.flatnonzero(np.concatenate([[True], start[1:] != (start + length)[:-1]]))
    return np.stack([start[heads], np.add.reduceat(length, heads)], axis=1)


def split(ranges: Ints, most: int) -> Ints:
    """The same ranges, cut so that none is longer than `most`."""
    pieces = -(-ranges[:, 1] // most)
    nth = expand(np.zeros_like(pieces), pieces)
    first = np.repeat(ranges[:, 0], pieces) + nth * most
    return np.stack([first, np.minimum(np.repeat(ranges.sum(axis=1), pieces) - first, most)], axis=1)


def expand(first: Ints, length: Ints) -> Ints:
    """first[0], first[0] + 1, … (length[0] numbers), first[1], …: the members of all ranges, one after the
    other.
    """
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    shift: Ints = np.repeat(first - (ends - length), length)
    return np.arange(total, dtype=np.int64) + shift
