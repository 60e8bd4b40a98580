"""What of the source could not be read, and is not in the target: named in batches, shown to people, and tried again. Pure.

A run is *declared* when the chunk that carries it goes out without it; the target keeps what it held there. It ceases to be when its
sectors are in the stream: read by a later round, or written by the machine.

Nothing else would ever read it again, for its granules are not to do any more. So now and then some declared sectors are asked for, of
one disk at a time and a few at once: a *trial*. What is given then is put to do: the next round reads it, by the rules of any other
(`catchup`). Who is given all that he asked for takes it that the disk was away and is back: everything declared of it is put to do, at the
price of one loss of order. A bad sector may hold up all of a drive for seconds, and the workload with it: so the time between two trials of
a disk doubles, from a minute, within which an outage is over, up to hours; also if what a trial was given fails again in the round.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.stream import unreadable_words
from shared.batch import Extents

FIRST_S: Final = 60.0
LIMIT_S: Final = 6 * 3600.0
AT_ONCE: Final = 512
"""Sectors of one trial."""

Runs = list[tuple[int, int]]
"""Sectors: (first, count) of each run."""


@dataclass(slots=True)
class Trial:
    """Sectors of a disk that could not be read once, and are asked for again."""

    disk: int
    runs: Runs
    behind: int
    """Up to where they have been asked for, or are being. The thread that asks moves it: one sector that hangs is not asked for first
    again, before all others."""


@dataclass(slots=True)
class _Turn:
    """When a disk is tried."""

    wait_s: float
    next: float = 0.0
    at: int = 0
    """The sector at which the next trial begins."""
    wait_before_s: float = 0.0
    given: Runs = field(default_factory=list)
    """What the last trial put to do, and how long it had been waited for."""


class Unreadable:
    def __init__(
        self, disk_sectors: Sequence[int], words: npt.NDArray[np.uint64] | None = None, claim: int = 0
    ) -> None:
        """`words`: where it is kept, for the epoch of this claim; by default nowhere. What another agent kept there is covered: it may
        have been less."""
        self._words = np.zeros(unreadable_words.WORDS, np.uint64) if words is None else words
        self._claim = claim
        self._runs: dict[int, list[tuple[int, int]]] = {}
        """Per disk, (first sector, end), apart and sorted."""
        self._turns: dict[int, _Turn] = {}
        for disk, first, end in unreadable_words.load(self._words, claim, disk_sectors):
            self._runs.setdefault(disk, []).append((first, end))

    @property
    def sectors(self) -> int:
        return sum(end - first for _, first, end in self._all())

    def ranges(self) -> list[tuple[int, int, int]]:
        """(disk, first sector, sectors) of each run."""
        return [(disk, first, end - first) for disk, first, end in self._all()]

    def declare(self, disk: int, runs: Iterable[tuple[int, int]], now: float) -> None:
        """The batch that is cut goes without these."""
        turn = self._turn(disk)
        for sector, sectors in runs:
            self._add(disk, sector, sector + sectors)
            again = any(first < sector + sectors and sector < first + n for first, n in turn.given)
            turn.wait_s = min(2 * turn.wait_before_s, LIMIT_S) if again else FIRST_S
            turn.next = now + turn.wait_s
        self._keep()

    def remove(self, disk: int, runs: Iterable[tuple[int, int]]) -> None:
        """These are in the stream."""
        if any([self._take_out(disk, sector, sector + sectors) for sector, sectors in runs]):
            self._keep()

    def written(self, extents: Extents) -> None:
        """The machine wrote these."""
        for disk, runs in self._runs.items():
            if not runs:
                continue
            first, end = extents["sector"], extents["sector"] + extents["sectors"]
            near = extents[(extents["disk"] == disk) & (first < runs[-1][1]) & (end > runs[0][0])]
            self.remove(disk, zip(near["sector"].tolist(), near["sectors"].tolist(), strict=True))

    def due(self, now: float) -> Trial | None:
        """What is to be tried now, of the disk that has waited longest."""
        waiting = [disk for disk, runs in self._runs.items() if runs and self._turn(disk).next <= now]
        if not waiting:
            return None
        disk = min(waiting, key=lambda disk: self._turn(disk).next)
        turn, runs = self._turn(disk), self._runs[disk]
        turn.next = float("inf")  # until `tried`
        start = turn.at if turn.at < runs[-1][1] else 0
        asked, room = [], AT_ONCE
        for first, end in runs:
            first = max(first, start)
            if first < end and room:
                asked.append((first, min(end - first, room)))
                room -= asked[-1][1]
        return Trial(disk, asked, asked[0][0])

    def tried(self, now: float, trial: Trial, given: Runs) -> Runs:
        """Which runs of its disk are to do now that a trial was given these."""
        turn = self._turn(trial.disk)
        turn.at = trial.behind
        if given == trial.runs:
            given = [(first, end - first) for first, end in self._runs.get(trial.disk, ())]
        turn.wait_before_s, turn.given = turn.wait_s, given
        turn.wait_s = FIRST_S if given else min(2 * turn.wait_s, LIMIT_S)
        turn.next = now + turn.wait_s
        return given

    def _turn(self, disk: int) -> _Turn:
        return self._turns.setdefault(disk, _Turn(FIRST_S))

    def _add(self, disk: int, first: int, end: int) -> None:
        self._take_out(disk, first, end)
        runs = self._runs.setdefault(disk, [])
        at = bisect.bisect_left(runs, (first, end))
        if at < len(runs) and runs[at][0] == end:
            end = runs.pop(at)[1]
        if at and runs[at - 1][1] == first:
            at -= 1
            first = runs.pop(at)[0]
        runs.insert(at, (first, end))

    def _take_out(self, disk: int, sector: int, end: int) -> bool:
        runs = self._runs.get(disk, [])
        first = bisect.bisect_right(runs, sector, key=lambda run: run[1])
        last = bisect.bisect_left(runs, end, lo=first, key=lambda run: run[0])
        if first < last:
            edges = (runs[first][0], sector), (end, runs[last - 1][1])
            runs[first:last] = [edge for edge in edges if edge[0] < edge[1]]
        return first < last

    def _keep(self) -> None:
        """Before the batch that goes without these leaves the agent."""
        unreadable_words.keep(self._words, self._claim, [*self._all()])

    def _all(self) -> Iterator[tuple[int, int, int]]:
        for disk in sorted(self._runs):
            for first, end in self._runs[disk]:
                yield disk, first, end


def runs_of(mask: npt.NDArray[np.bool_], first_sector: int) -> Iterable[tuple[int, int]]:
    """(first sector, sectors) of the runs that are set in a mask of sectors."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(first_sector + a, b - a) for a, b in edges.reshape(-1, 2).tolist()]
