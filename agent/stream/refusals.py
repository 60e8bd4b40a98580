"""What a disk refuses to give, and when that is believed. Pure.

What was refused on both sides of a read that the disk gave (`spans`) may be a bad sector, or lie on a part of the disk that is away: a leg
of a volume, a member of an array. The errors are the same. But a bad sector is alone, and whoever declares it at once lacks little; a part
that is away takes much with it, in pieces as large as its stripes, and comes back. So

- what is refused is declared at once only as long as it is little: `AT_ONCE` sectors of a disk. What goes beyond that is left to later
  rounds, and so is all that follows, until a round went through the whole disk and nothing is left behind: neither by it, nor by an earlier
  one where this one could not ask (a write that hangs, a read that has not come back).
- what was left to later is declared when that very word of the bitmap (1 MiB) was refused over `REFUSED_S`: at both ends of that time, that
  is, and never given in between when it was asked for. What is refused first in the fourth minute of an outage waits for five of its own.

A word is waited for until it is given or declared, and over rounds that are given up: a connection that breaks every minute must not keep
order away for ever. Nothing more is known of a disk that was left out: it begins anew.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agent.capture.layout import GRANULE_SECTORS
from agent.stream.catchup import WORD_GRANULES

AT_ONCE: Final = 2048
REFUSED_S: Final = 300.0
WORD_SECTORS: Final = WORD_GRANULES * GRANULE_SECTORS


class Refusals:
    """Of one disk. `now` is monotonic, and not 0."""

    def __init__(self, disk_sectors: int) -> None:
        self._since = np.zeros(-(-disk_sectors // WORD_SECTORS))
        """When each word was refused first; 0: it is not. Eight bytes a MiB of the disk at most: the kernel gives what is touched."""
        self._waiting = 0
        """How many words."""
        self._room = AT_ONCE
        self._declared: set[int] = set()
        """Words that were waited for, and are not any more when the round has ended."""
        self.is_full = False
        """Whether nothing is to be declared any more in this round."""
        self.is_left = False
        """Whether the round left anything to later."""

    @property
    def is_waiting(self) -> bool:
        """Whether a word was refused, and neither given nor declared since."""
        return self._waiting > 0

    def begin_round(self) -> None:
        self.is_full = self.is_left = False

    def may_lose(self, word: int, now: float) -> int:
        """How many sectors of the word may be declared now, so that it is worth while to find out which. Should there be more, none may."""
        if self.is_full:
            return 0
        return WORD_SECTORS if self._is_due(word, now) else self._room

    def declares(self, word: int, sectors: int, now: float) -> bool:
        """Whether these may be declared, which are all that was refused of a chunk of this word. If not, it is left to later."""
        if sectors > self.may_lose(word, now):
            self.leave(word, now)
            return False
        if not sectors:
            self._forget(word)
        elif self._since[word]:
            self._declared.add(word)
        if sectors and not self._is_due(word, now):
            self._room -= sectors
        return True

    def leave(self, word: int, now: float) -> None:
        """More was refused of the word than may be declared."""
        self.is_left = True
        if not self.is_full:
            self._waiting += not self._since[word]
            self._since[word] = self._since[word] or now
            self._room = 0

    def take_back(self, word: int, sectors: int) -> None:
        """These of a word, which were to be declared, are not, for a reason that is not the disk's; nor is anything else in this round.
        That says nothing of how much is refused."""
        if word in self._declared:
            self._declared.discard(word)
        else:
            self._room += sectors
        self.is_full = self.is_left = True

    def end_round(self, *, is_whole: bool) -> None:
        """`is_whole`: everything that the round wanted of the disk was asked for."""
        for word in self._declared:
            self._forget(word)
        self._declared.clear()
        if is_whole and not (self.is_left or self.is_waiting):
            self._room = AT_ONCE

    def _forget(self, word: int) -> None:
        self._waiting -= bool(self._since[word])
        self._since[word] = 0.0

    def _is_due(self, word: int, now: float) -> bool:
        return bool(self._since[word]) and now - float(self._since[word]) >= REFUSED_S
