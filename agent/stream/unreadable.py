"""What of the source could not be read, and is not in the target: named in batches, shown to people, and tried again. Pure.

A run is *declared* when the chunk that carries it goes out without it; the target keeps what it held there. It ceases to be when its
sectors are in the stream: read by a later round, or written by the machine.

Nothing else would ever read it again, for its granules are not to do any more. So now and then some declared sectors are asked for, of
one disk at a time and a few at once. What is given then is put to do: the next round reads it, by the rules of any other (`catchup`). A bad
sector may hold up all of a drive for seconds, and the workload with it: so the time between two trials doubles, from a minute, within
which an outage is over, up to hours.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from shared.batch import Extents

FIRST_S: Final = 60.0
LIMIT_S: Final = 6 * 3600.0
AT_ONCE: Final = 512
"""Sectors of one trial."""
MORE: Final = 2**64 - 1
_SECTOR_BITS, _COUNT_BITS = 42, 16


class Unreadable:
    def __init__(self, words: npt.NDArray[np.uint64] | None = None) -> None:
        """`words`: where it is kept; by default nowhere."""
        self._words = np.zeros(0, np.uint64) if words is None else words
        self._runs: dict[int, list[tuple[int, int]]] = {}
        """Per disk, (first sector, end), disjoint and sorted."""
        self._wait_s = FIRST_S
        self._next = 0.0
        self._from = (0, 0)
        """Disk and sector at which the next trial begins."""
        self.is_more = MORE in self._words.tolist()
        """Whether an agent before this one declared more than is known now."""
        for word in filter(lambda word: word not in (0, MORE), self._words.tolist()):
            sector = word >> _COUNT_BITS & (1 << _SECTOR_BITS) - 1
            end = sector + word % (1 << _COUNT_BITS)
            bisect.insort(self._runs.setdefault(word >> _SECTOR_BITS + _COUNT_BITS, []), (sector, end))

    @property
    def sectors(self) -> int:
        return sum(end - first for _, first, end in self._all())

    def ranges(self) -> list[tuple[int, int, int]]:
        """(disk, first sector, sectors) of each run."""
        return [(disk, first, end - first) for disk, first, end in self._all()]

    def clear(self) -> None:
        """A new epoch: the target misses nothing that is not to do."""
        self._runs.clear()
        self.is_more = False
        self._keep()

    def declare(self, disk: int, sector: int, sectors: int, now: float) -> None:
        self.remove(disk, sector, sectors)
        bisect.insort(self._runs.setdefault(disk, []), (sector, sector + sectors))
        self._wait_s, self._next = FIRST_S, now + FIRST_S
        self._keep()

    def remove(self, disk: int, sector: int, sectors: int) -> None:
        """These are in the stream."""
        runs, end = self._runs.get(disk, []), sector + sectors
        first = bisect.bisect_right(runs, sector, key=lambda run: run[1])
        last = bisect.bisect_left(runs, end, lo=first, key=lambda run: run[0])
        if first < last:
            edges = (runs[first][0], sector), (end, runs[last - 1][1])
            runs[first:last] = [edge for edge in edges if edge[0] < edge[1]]
            self._keep()

    def written(self, extents: Extents) -> None:
        """The machine wrote these."""
        for disk, runs in self._runs.items():
            if not runs:
                continue
            first, end = extents["sector"], extents["sector"] + extents["sectors"]
            near = extents[(extents["disk"] == disk) & (first < runs[-1][1]) & (end > runs[0][0])]
            for sector, sectors in zip(near["sector"].tolist(), near["sectors"].tolist(), strict=True):
                self.remove(disk, sector, sectors)

    def due(self, now: float) -> tuple[int, list[tuple[int, int]]] | None:
        """A disk and runs of it that are to be tried now: each in turn."""
        if now < self._next or not (declared := [*self._all()]):
            return None
        self._next = float("inf")  # until `tried`
        ahead = [run for run in declared if (run[0], run[2]) > self._from]
        disk, first, _ = (ahead or declared)[0]
        start = max(first, self._from[1]) if ahead and disk == self._from[0] else first
        runs, room = [], AT_ONCE
        for a, b in self._runs[disk]:
            a = max(a, start)
            if a < b and room:
                runs.append((a, min(b - a, room)))
                room -= runs[-1][1]
        self._from = (disk, sum(runs[-1]))
        return disk, runs

    def tried(self, now: float, *, found: bool) -> None:
        self._wait_s = FIRST_S if found else min(2 * self._wait_s, LIMIT_S)
        self._next = now + self._wait_s

    def _keep(self) -> None:
        """Before the batch that goes without these leaves the agent. A kill between two of the stores leaves some of both states: what it
        names too much is tried and found to be read."""
        room = len(self._words)
        if not room:
            return
        kept = [
            disk << _SECTOR_BITS + _COUNT_BITS | first << _COUNT_BITS | end - first
            for disk, first, end in itertools.islice(self._all(), room + 1)
        ]
        if self.is_more or len(kept) > room:
            kept[room - 1 :] = [MORE]
        self._words[: len(kept)] = kept
        self._words[len(kept) :] = 0

    def _all(self) -> Iterator[tuple[int, int, int]]:
        for disk in sorted(self._runs):
            for first, end in self._runs[disk]:
                yield disk, first, end


def runs_of(mask: npt.NDArray[np.bool_], first_sector: int) -> Iterable[tuple[int, int]]:
    """(first sector, sectors) of the runs that are set in a mask of sectors."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(first_sector + a, b - a) for a, b in edges.reshape(-1, 2).tolist()]
