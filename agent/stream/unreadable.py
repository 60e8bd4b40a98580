"""What of the source could not be read, and is not in the target: named in batches, shown to people, and tried again. Pure.

A sector is *declared* when the chunk that carries it goes out without it; the target keeps what it held there. It ceases to be when it is
in the stream: read by a later round, or written by the machine. Both survive a kill (`unreadable_words`).

Nothing else would ever read it again, for its granule is not to do any more. So now and then some declared sectors are asked for, of
one disk at a time and a few at once: a *trial*. What is given then is put to do: the next round reads it, by the rules of any other
(`catchup`), at the price of one loss of order.

**A disk that was away and is back** gives all that a trial asks for. Then more is put to do than was asked for: as much again as all the
trials before, that were given everything, had put to do. So a whole leg of a volume is back after some trials; and what is put to do
wrongly, because the trial happened to ask for the few sectors that are well again, is no more than what was rightly, and a trial's worth.

**How long a disk is left alone.** A bad sector may hold up all of a drive for seconds, and the workload with it: so the time between two
trials of a disk doubles, from a minute, within which an outage is over, up to hours. It doubles, too, where the round is refused what the
trial was given: each time takes order once more. It begins anew where a trial was given something and the round as well, and where
a round is refused what nobody knew to be bad. In the granules that the trial put to do nothing is new: sectors that fail by turns, one
beside the other, are refused again.

**No disk takes the room of another.** Half of the words is divided among the disks: of its part each is sure, whatever the others take, so
that a bad sector of one is named while another is bad all over. The other half is whoever's comes first. What keeps this: the sum over all
disks of the larger of what a disk takes and its part is never more than the words there are. A declaration that would break it is refused
(`has_room`); to remove one never makes the sum larger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.layout import GRANULE_SECTORS, UNREADABLE_WORDS
from agent.stream.unreadable_words import Declared, address, addresses, sectors_of
from shared.batch import Extents

FIRST_S: Final = 60.0
LIMIT_S: Final = 6 * 3600.0
AT_ONCE: Final = 512
"""Sectors that a trial asks for."""

Runs = list[tuple[int, int]]
"""Sectors: (first, count) of each run."""
Sectors = npt.NDArray[np.int64]


@dataclass(slots=True)
class Trial:
    """Sectors of a disk that could not be read once, and are asked for again."""

    disk: int
    runs: Runs
    behind: int
    """Up to where they have been asked for, or are being. The thread that asks moves it: one sector that hangs is not asked for first
    again, before all others."""
    given: deque[tuple[int, int]] = field(default_factory=deque)
    """Runs that were given and that nobody has used yet. The thread that asks appends them, and whoever uses them takes them out, each of
    which is one step: it may go on when the trial was let go."""

    def take(self) -> Runs:
        taken: Runs = []
        while self.given:
            taken.append(self.given.popleft())
        return taken


@dataclass(slots=True)
class _Turn:
    """When a disk is tried."""

    wait_s: float
    next: float = 0.0
    at: int = 0
    """The sector at which the next trial begins."""
    wait_before_s: float = 0.0
    """How long the last trial had been waited for."""
    given: Sectors = field(default_factory=lambda: np.zeros(0, np.int64))
    """What the last trial put to do, sorted."""
    found_new: bool = False
    """Whether sectors were declared since then that were not known."""
    put: int = 0
    """How many sectors were put to do since trials are given all that they ask for."""


class Unreadable:
    def __init__(self, disks: int, words: npt.NDArray[np.uint64] | None = None, claim: int = 0) -> None:
        """`words`: where it is kept, for the epoch of this claim; by default nowhere."""
        nowhere = np.zeros(UNREADABLE_WORDS, np.uint64)
        self._declared = Declared(nowhere, 0) if words is None else Declared(words, claim)
        self._disks = disks
        self._part = self._declared.room // (2 * disks)
        """So many words each disk is sure of."""
        self._turns = {disk: _Turn(FIRST_S) for disk in range(disks) if self._first_of(disk, 0, 1)}

    @property
    def is_known(self) -> bool:
        """Whether what is kept is of this epoch. If not, `begin`: nothing is declared."""
        return self._declared.is_known

    def begin(self) -> None:
        self._declared.begin()

    @property
    def sectors(self) -> int:
        return len(self._declared)

    def by_disk(self) -> dict[int, int]:
        """How many sectors, of each disk of which any are declared."""
        counts = {disk: self._declared.on_disk(disk) for disk in sorted(self._turns)}
        return {disk: sectors for disk, sectors in counts.items() if sectors}

    def is_none_of(self, disk: int) -> bool:
        """Whether surely nothing of the disk is declared. (Where something was until lately, that is not noticed at once.)"""
        return disk not in self._turns

    def ranges(self) -> list[tuple[int, int, int]]:
        """(disk, first sector, sectors) of each run."""
        return [
            (disk, *run)
            for disk in sorted(self._turns)
            for run in _runs(sectors_of(self._declared.between(address(disk, 0), address(disk + 1, 0))))
        ]

    def sample(self, disk: int, count: int) -> tuple[int, ...]:
        """Some declared sectors of the disk, spread over all of them: the first, the last, and what lies between."""
        declared = sectors_of(self._declared.between(address(disk, 0), address(disk + 1, 0)))
        at = np.linspace(0, len(declared) - 1, min(count, len(declared))).astype(np.int64)
        return tuple(int(sector) for sector in np.sort(declared)[at])

    def has_room(
        self, disk: int, missing: Sequence[tuple[int, int]], sent: Sequence[tuple[int, int]]
    ) -> bool:
        """Whether these can be declared, once those are removed. Who has no room must not let the batch go without them."""
        unused = np.maximum(self._part - self._declared.words_of(self._disks), 0)
        unused[disk] = 0
        return self._declared.has_room(addresses(disk, missing), addresses(disk, sent), int(unused.sum()))

    @property
    def fullest(self) -> int:
        """The disk that takes the most room."""
        return int(self._declared.words_of(self._disks).argmax())

    def declare(self, disk: int, runs: Sequence[tuple[int, int]], now: float) -> None:
        """The batch that is cut goes without these; there is room for them."""
        missing = addresses(disk, runs)
        if not len(missing):
            return
        turn = self._turns.setdefault(disk, _Turn(FIRST_S, now + FIRST_S))
        sectors, known = sectors_of(missing), self._declared.those_in(missing)
        granule = sectors - sectors % GRANULE_SECTORS
        beside = _any_within(turn.given, granule, granule + GRANULE_SECTORS)
        again = _any_within(turn.given, sectors, sectors + 1) | beside & ~known
        if not (known | beside).all():
            turn.found_new = True
            turn.wait_s = FIRST_S
        elif again.any() and not turn.found_new:
            turn.wait_s = min(2 * turn.wait_before_s, LIMIT_S)
        if turn.found_new or again.any():
            turn.next = now + turn.wait_s
        if again.any():
            turn.put = 0
        self._declared.add(missing)

    def remove(self, disk: int, runs: Iterable[tuple[int, int]]) -> None:
        """These are in the stream."""
        if self._turns:
            found = [(address(disk, first), address(disk, first + count)) for first, count in runs]
            self._declared.remove(np.array(found, np.int64).reshape(-1, 2))

    def written(self, extents: Extents) -> None:
        """The machine wrote these."""
        if self._turns:
            first = address(1, 0) * extents["disk"].astype(np.int64) + extents["sector"].astype(np.int64)
            self._declared.remove(np.stack((first, first + extents["sectors"]), axis=1))

    def due(self, now: float) -> Trial | None:
        """What is to be tried now, of the disk that has waited longest."""
        for disk in [disk for disk, turn in self._turns.items() if turn.next <= now]:
            if not self._first_of(disk, 0, 1):
                del self._turns[disk]
        waiting = [disk for disk, turn in self._turns.items() if turn.next <= now]
        if not waiting:
            return None
        disk = min(waiting, key=lambda disk: self._turns[disk].next)
        turn = self._turns[disk]
        turn.next = float("inf")  # until `tried`
        asked = self._first_of(disk, turn.at, AT_ONCE) or self._first_of(disk, 0, AT_ONCE)
        return Trial(disk, asked, asked[0][0])

    def tried(self, now: float, trial: Trial) -> Sectors:
        """The trial is over, or let go. Returns what of its disk is to do now."""
        turn = self._turns.setdefault(trial.disk, _Turn(FIRST_S))
        turn.at = trial.behind
        taken = trial.take()
        given = self._declared_of(trial.disk, taken)
        if len(given) and _count(taken) == _count(trial.runs):
            given = np.union1d(given, self._from(trial.disk, sum(trial.runs[-1]), turn.put))
            turn.put += len(given)
        else:
            turn.put = 0
        turn.wait_before_s, turn.found_new, turn.given = turn.wait_s, False, np.sort(given)
        turn.wait_s = FIRST_S if len(given) else min(2 * turn.wait_s, LIMIT_S)
        turn.next = now + turn.wait_s
        return given

    def came_late(self, trial: Trial) -> Sectors:
        """One that was let go is over: what is to do besides."""
        given = self._declared_of(trial.disk, trial.take())
        turn = self._turns.setdefault(trial.disk, _Turn(FIRST_S))
        turn.given = np.union1d(turn.given, given)
        return given

    def _declared_of(self, disk: int, runs: Runs) -> Sectors:
        """Some may be in the stream since they were asked for."""
        asked = addresses(disk, runs)
        return sectors_of(asked[self._declared.those_in(asked)])

    def _from(self, disk: int, first: int, count: int) -> Sectors:
        """So many declared sectors of a disk from this one on, and on from the disk's beginning."""
        begin, at, end = address(disk, 0), address(disk, first), address(disk + 1, 0)
        found = self._declared.between(at, end, count)
        more = self._declared.between(begin, at, count - len(found))
        return sectors_of(np.concatenate((found, more)))

    def _first_of(self, disk: int, first: int, count: int) -> Runs:
        return _runs(sectors_of(self._declared.between(address(disk, first), address(disk + 1, 0), count)))


def runs_of(mask: npt.NDArray[np.bool_], first_sector: int) -> Runs:
    """(first sector, sectors) of the runs that are set in a mask of sectors."""
    return _runs(np.flatnonzero(mask) + first_sector)


def _runs(sectors: Sectors) -> Runs:
    """Of sorted ones."""
    firsts = np.flatnonzero(np.diff(sectors, prepend=-2) != 1)
    counts = np.diff(firsts, append=len(sectors))
    return list(zip(sectors[firsts].tolist(), counts.tolist(), strict=True))


def _any_within(found: Sectors, first: Sectors, end: Sectors) -> npt.NDArray[np.bool_]:
    """In which of [first, end) some of these lies. `found` is sorted."""
    at = np.searchsorted(found, first)
    within = at < len(found)
    within[within] = found[at[within]] < end[within]
    return within


def _count(runs: Runs) -> int:
    return sum(count for _, count in runs)
