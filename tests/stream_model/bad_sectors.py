"""Sectors of the model's disks that cannot be read: they come and go, alone or as a part of a disk that is away, and most are well again
when they are written.
"""

from __future__ import annotations

import random

KINDS = 16
"""So many sectors are ever bad: the same ones again and again, for what is refused twice is what is hard."""


class BadSectors:
    def __init__(self, rng: random.Random, most: int, disks: int, sectors: int) -> None:
        """`most`: at once, but for moments."""
        self._rng = rng
        self._most = most
        self._all = [(rng.randrange(disks), rng.randrange(sectors)) for _ in range(KINDS if most else 0)]
        self._now: set[tuple[int, int]] = set()
        self.refused: set[tuple[int, int]] = set()
        """What rounds could not read since this epoch began. Nothing else may be declared in it."""

    def __contains__(self, sector: tuple[int, int]) -> bool:
        return sector in self._now

    def happen(self) -> None:
        if not self._most:
            return
        if len(self._now) < self._most and self._rng.random() < 0.02:
            self._now.add(self._rng.choice(self._all))
        if self._rng.random() < 0.01:
            self._now |= {*self._rng.sample(self._all, self._most)}
        if self._now and self._rng.random() < 0.02:
            self._now.discard(self._rng.choice(sorted(self._now)))
        if self._rng.random() < 0.01:
            self._now.clear()

    def written(self, sector: tuple[int, int]) -> None:
        if sector in self._now and self._rng.random() < 0.7:
            self._now.discard(sector)

    def heal(self) -> None:
        """For good."""
        self._most = 0
        self._now.clear()
