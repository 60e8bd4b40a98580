"""How long the others wait for a disk that does not answer, before they go on without it. Pure: the clock is handed in.

To give a disk up costs the others a copy of all that they hold, and all of them one more when it is back. To wait for it costs them their
points. Nobody knows how long it will be silent; so, as whoever does not know whether to rent or to buy, they wait until that has cost
what a mistake would. The first wait is `FIRST_S`: paths to storage fail over in less. A disk that is silent again within a day made the
last time a mistake, and is waited for twice as long, up to `LIMIT_S`. So one that hangs for two minutes every few minutes is given up once,
and from then on it is waited for. Whatever a disk does, the waits before its first n times sum up to FIRST_S * (2^n - 1), and behind the
limit each is an hour: that is some thirty times in the worst of days, and no epoch a minute for ever.

The same goes for disks that are found well, and fail when capture is fitted to them: each time ends the session (`Trials`).

**Kept in words of the pinned state** (`AgentState.patience_words`), so that neither a restart of the agent, nor a new fitting, begins anew:
what was waited already counts, and a disk that was given up is waited for no more until it answers. After a reboot nothing is known.
There is a word for each disk that a machine may have (for half of them where an older agent attached capture). More are met in the
course of time: when all words are in use, one makes room that counts for nothing, that was not given up for a day, or never. For one that
was never given up no other does, and it is waited for anew by whoever looks next. For one that is given up now another is forgotten: one
that is taken in again if any is, and of these the one that was given up least often, which is waited for as if it were the first time.

A word, from its highest bit: given up and not taken in since (1), how often (4), when last, in seconds of the monotonic clock, which is
one for all processes of a boot (27), for how long it was silent when that was last looked at, in seconds (12), which disk: a hash of
its id (20). 0 is nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

FIRST_S: Final = 60.0
LIMIT_S: Final = 3600.0
FORGET_S: Final = 86400.0
"""A disk that was not given up for so long counts as one that never was."""
_OUT_BITS, _TIMES_BITS, _AT_BITS, _SILENT_BITS, _TAG_BITS = 1, 4, 27, 12, 20


class Patience:
    def __init__(self, words: npt.NDArray[np.uint64] | None = None) -> None:
        """`words`: where it is kept; by default it is kept by this object alone."""
        self._words = np.zeros(64, np.uint64) if words is None else words

    @staticmethod
    def hand_over(before: npt.NDArray[np.uint64], after: npt.NDArray[np.uint64]) -> None:
        """What is kept in the words `before`, to those of another capture; there may be fewer or more."""
        kept = sorted(before.tolist(), reverse=True)[: len(after)]
        after[:] = np.array(kept + [0] * (len(after) - len(kept)), np.uint64)

    def wait_s(self, disk: str, now: float) -> float:
        """How long it is waited for, should it be silent now."""
        entry = self._entry(disk)
        return min(FIRST_S * 2.0 ** entry.times_within(now), LIMIT_S)

    def give_up(self, disks: Iterable[str], now: float) -> None:
        for disk in disks:
            entry = self._entry(disk)
            entry.times, entry.at, entry.is_out = entry.times_within(now) + 1, int(now), True
            self._keep(entry, now)

    def is_given_up(self, disk: str) -> bool:
        """And was not taken in since."""
        return self._entry(disk).is_out

    def take_in(self, disks: Iterable[str]) -> None:
        """They answered. How often they were given up stays known."""
        for disk in disks:
            entry = self._entry(disk)
            entry.is_out, entry.silent_s = False, 0
            self._keep(entry)

    def silent_s(self, disk: str) -> float:
        """For how long it was silent when `note` last said so."""
        return self._entry(disk).silent_s

    def note(self, silent: Mapping[str, float], answer: Iterable[str], now: float) -> None:
        """For how many seconds these are silent, and which others are not."""
        for disk, seconds in [*silent.items(), *((disk, 0.0) for disk in answer)]:
            entry = self._entry(disk)
            if entry.silent_s != int(seconds):
                entry.silent_s = int(seconds)
                self._keep(entry, now)

    def _entry(self, disk: str) -> _Entry:
        tag = _tag(disk)
        found = self._words[self._words % np.uint64(1 << _TAG_BITS) == tag]
        return _Entry.unpacked(int(found[0])) if len(found) else _Entry(tag)

    def _keep(self, entry: _Entry, now: float = 0.0) -> None:
        """In its own word; else in an empty one, or in that of one to forget. (`now` counts only for one that has none.)"""
        own = np.flatnonzero(self._words % np.uint64(1 << _TAG_BITS) == entry.tag)
        if len(own):
            self._words[own[0]] = entry.packed() if entry.times or entry.silent_s else 0
        elif entry.times or entry.silent_s:
            weights = [_Entry.unpacked(word).weight(now) for word in self._words.tolist()]
            place = weights.index(min(weights))
            if entry.is_out or entry.weight(now) > weights[place]:
                self._words[place] = entry.packed()


class Trials:
    """Of what was found well, and failed when capture was fitted to it: kept while the process lives. Each failure counts as one more
    time that it was given up, and it is not found again before its wait is over."""

    def __init__(self) -> None:
        self._patience = Patience()
        self._not_before: dict[str, float] = {}

    def failed(self, names: Iterable[str], now: float) -> Mapping[str, float]:
        """Until when each is not to be found (monotonic). One whose wait is not over was not tried: capture was fitted for another's
        sake."""
        for name in names:
            if now >= self._not_before.get(name, 0.0):
                self._not_before[name] = now + self._patience.wait_s(name, now)
                self._patience.give_up([name], now)
        return dict(self._not_before)


class _Entry:
    def __init__(self, tag: int) -> None:
        self.tag = tag
        self.silent_s = 0
        self.at = 0
        self.times = 0
        self.is_out = False

    def times_within(self, now: float) -> int:
        """How often it was given up, each time within a day of the one before, and the last one within a day of now."""
        return self.times if 0 <= now - self.at <= FORGET_S else 0

    def weight(self, now: float) -> tuple[bool, bool, int, int, int]:
        """What weighs least is forgotten first. One that is out is known as that for as long as it is out."""
        times = self.times if self.is_out else self.times_within(now)
        return times > 0, self.is_out, times, self.at if times else 0, self.silent_s

    def packed(self) -> int:
        """Each part no more than has room."""
        word = 0
        for value, bits in (
            (int(self.is_out), _OUT_BITS),
            (self.times, _TIMES_BITS),
            (self.at, _AT_BITS),
            (self.silent_s, _SILENT_BITS),
            (self.tag, _TAG_BITS),
        ):
            word = word << bits | min(value, (1 << bits) - 1)
        return word

    @classmethod
    def unpacked(cls, word: int) -> _Entry:
        entry = cls(word % (1 << _TAG_BITS))
        word >>= _TAG_BITS
        word, entry.silent_s = divmod(word, 1 << _SILENT_BITS)
        word, entry.at = divmod(word, 1 << _AT_BITS)
        entry.is_out, entry.times = bool(word >> _TIMES_BITS), word % (1 << _TIMES_BITS)
        return entry


def _tag(disk: str) -> int:
    """Never 0, which is nobody's."""
    return int.from_bytes(hashlib.blake2b(disk.encode(), digest_size=4).digest()) % ((1 << _TAG_BITS) - 1) + 1
