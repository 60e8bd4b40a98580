"""Which sectors are declared unreadable: a set of them, exact, in words of a pinned map (`Capture.unreadable`). Pure.

word 0     claim of the epoch of which the others tell; under another claim they tell nothing
others     0: free; else a *cell*, 16 sectors of which some are declared, in no particular order:
           6 bits disk, 42 bits number of the cell on it, 16 bits its sectors, the lowest first

So each change is of the words of the cells that it touches, whatever else is declared; and there is an end to it: `has_room`.

**A kill may fall between any two stores of a word**, and each leaves a set that is right by itself, for a cell has one word only and is
stored as one. It holds what it must:

- A sector is stored before the batch that goes without it leaves the agent (`cutter`), and its granule is ticked off no earlier than that
  batch is uploaded. Killed before the store, the granule is to do still.
- A sector is cleared before the batch that covers it leaves the agent. Killed in between, what covers it is where that batch had it from:
  a record in the ring, or a granule that is to do; both stay there until the batch is durable. The same when a connection loses the batch.
- Under another claim, all words are cleared before the claim is stored. Killed in between, the claim is another still, and whoever comes
  next clears them again.

Addresses: a disk's number and a sector on it in one integer, 6 and 46 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

CELL: Final = 16
_CELL_BITS: Final = 4
_SECTOR_BITS: Final = 46
_ALL: Final = (1 << CELL) - 1

Words = npt.NDArray[np.uint64]
Addresses = npt.NDArray[np.int64]


def address(disk: int, sector: int) -> int:
    return disk << _SECTOR_BITS | sector


def addresses(disk: int, runs: Iterable[tuple[int, int]]) -> Addresses:
    """Of each sector of the runs (first, count)."""
    parts = [np.arange(first, first + count) for first, count in runs]
    return (np.concatenate(parts) if parts else np.zeros(0, np.int64)) | disk << _SECTOR_BITS


def sectors_of(found: Addresses) -> Addresses:
    result: Addresses = found & (1 << _SECTOR_BITS) - 1
    return result


class Declared:
    def __init__(self, words: Words, claim: int) -> None:
        """`words`: at least two."""
        self._words = words
        self._claim = claim
        self.is_known = int(words[0]) == claim
        """Whether the words tell of the epoch of this claim. If not, nothing is declared yet, and `begin` comes before anything else."""
        used = np.flatnonzero(words[1:]) + 1 if self.is_known else np.zeros(0, np.int64)
        cells = _cells(words[used])
        order = np.argsort(cells)
        self._cells: Addresses = cells[order]
        """Sorted: the address of each, without its last bits…"""
        self._places: npt.NDArray[np.int64] = used[order]
        """…and where its word is."""

    @property
    def room(self) -> int:
        """How many words there are for cells, free or not."""
        return len(self._words) - 1

    def begin(self) -> None:
        """Nothing is declared in the epoch of this claim."""
        self._words[1:] = 0
        self._words[0] = self._claim
        self.is_known = True

    def __len__(self) -> int:
        """Sectors."""
        return self._count(0, len(self._cells))

    def on_disk(self, disk: int) -> int:
        """Sectors."""
        return self._count(*self._near(address(disk, 0), address(disk + 1, 0)))

    def between(self, first: int, end: int, most: int | None = None) -> Addresses:
        """Addresses of the sectors that are declared in [first, end), sorted; the `most` first ones."""
        lo, hi = self._near(first, end)
        if most is not None:
            hi = min(hi, lo + most + 1)  # each cell has one at least; of the first one they may lie before
        bits = self._masks(lo, hi)[:, None] >> np.arange(CELL, dtype=np.uint64) & np.uint64(1)
        every = (self._cells[lo:hi, None] << _CELL_BITS) + np.arange(CELL)
        found = every[bits.astype(np.bool_)]
        return found[np.searchsorted(found, first) : np.searchsorted(found, end)][:most]

    def those_in(self, asked: Addresses) -> npt.NDArray[np.bool_]:
        """Which of these are declared."""
        at, known = self._find(asked >> _CELL_BITS)
        masks = self._words[self._places[at[known]]]
        known[known] = masks >> (asked[known] % CELL).astype(np.uint64) & np.uint64(1) == 1
        return known

    def words_of(self, disks: int) -> npt.NDArray[np.int64]:
        """How many words each of the first disks takes."""
        borders = np.arange(disks + 1) << _SECTOR_BITS - _CELL_BITS
        return np.diff(np.searchsorted(self._cells, borders))

    def has_room(self, new: Addresses, gone: Addresses, kept: int = 0) -> bool:
        """Whether there are words for `new` once `gone`, which lies near it, is removed; `kept` words stay free."""
        if not len(new):
            return True
        touched = np.concatenate((new, gone)) >> _CELL_BITS
        first, end = int(touched.min()) << _CELL_BITS, int(touched.max()) + 1 << _CELL_BITS
        lo, hi = self._near(first, end)
        after = np.concatenate((np.setdiff1d(self.between(first, end), gone), new))
        more = len(np.unique(after >> _CELL_BITS)) - (hi - lo)
        return more <= max(self.room - len(self._cells) - kept, 0)

    def add(self, new: Addresses) -> None:
        """There is room for them."""
        cells, which = np.unique(new >> _CELL_BITS, return_inverse=True)
        masks: Words = np.zeros(len(cells), np.uint64)
        np.bitwise_or.at(masks, which, np.uint64(1) << (new % CELL).astype(np.uint64))
        at, known = self._find(cells)
        places = self._places[at[known]]
        self._words[places] = self._words[places] | masks[known]
        cells, at = cells[~known], at[~known]
        free = np.flatnonzero(self._words[1:] == 0)[: len(cells)] + 1
        self._words[free] = cells.astype(np.uint64) << np.uint64(CELL) | masks[~known]
        self._cells = np.insert(self._cells, at, cells)
        self._places = np.insert(self._places, at, free)

    def remove(self, ranges: npt.NDArray[np.int64]) -> None:
        """`ranges`: rows of (first address, end)."""
        lo = np.searchsorted(self._cells, ranges[:, 0] >> _CELL_BITS)
        hi = np.searchsorted(self._cells, (ranges[:, 1] - 1) >> _CELL_BITS, "right")
        touched = hi > lo
        if not touched.any():
            return
        for (first, end), a, b in zip(
            ranges[touched].tolist(), lo[touched].tolist(), hi[touched].tolist(), strict=True
        ):
            gone = np.full(b - a, _ALL, np.uint64)
            if self._cells[a] == first >> _CELL_BITS:
                gone[0] &= np.uint64(_ALL << first % CELL & _ALL)
            if self._cells[b - 1] == end - 1 >> _CELL_BITS:
                gone[-1] &= np.uint64(_ALL >> CELL - 1 - (end - 1) % CELL)
            places = self._places[a:b]
            left = self._words[places] & ~gone
            left[left & np.uint64(_ALL) == 0] = 0
            self._words[places] = left
        alive = self._words[self._places] != 0
        self._cells, self._places = self._cells[alive], self._places[alive]

    def _find(self, cells: Addresses) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where each of these is, or belongs; and whether it is there."""
        at = np.searchsorted(self._cells, cells)
        known = at < len(self._cells)
        known[known] = self._cells[at[known]] == cells[known]
        return at, known

    def _near(self, first: int, end: int) -> tuple[int, int]:
        """Which cells touch [first, end)."""
        lo, hi = np.searchsorted(self._cells, [first >> _CELL_BITS, -(-end >> _CELL_BITS)])
        return int(lo), int(hi)

    def _count(self, lo: int, hi: int) -> int:
        return int(np.bitwise_count(self._masks(lo, hi)).sum(dtype=np.int64))

    def _masks(self, lo: int, hi: int) -> Words:
        masks: Words = self._words[self._places[lo:hi]] & np.uint64(_ALL)
        return masks


def _cells(words: Words) -> Addresses:
    return (words >> np.uint64(CELL)).astype(np.int64)
