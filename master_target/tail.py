"""What the master target remembers of one epoch's index: its entries from the cursor on. Pure.

An epoch may last for months, and a segment is listed every few seconds. So what lies behind the cursor is forgotten, and nothing here
walks over the entries: they are found by bisection, and bytes are differences of running sums.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from shared.log.index import IndexEntry


class Rest(NamedTuple):
    first: IndexEntry
    newest: IndexEntry
    plain_b: int
    """Of all of them."""


class EpochTail:
    """Entries in log order, without gaps; the marks in them at which the stream was ordered."""

    def __init__(self) -> None:
        self.last = 0
        """The last indexed batch, 0 while there is none; known also when its entry is forgotten."""
        self._entries: list[IndexEntry] = []
        self._lasts: list[int] = []
        """The last batch of each entry."""
        self._sums_b: list[int] = []
        """Bytes of log from the epoch's begin to the end of each entry."""
        self._total_b = 0
        self._marks: list[int] = []

    def add(self, entries: Sequence[IndexEntry], marks: Sequence[int]) -> None:
        """The next entries, and the batches of their marks."""
        self._marks += marks
        for entry in entries:
            self._total_b += entry.plain_b
            self._entries.append(entry)
            self._lasts.append(entry.last)
            self._sums_b.append(self._total_b)
            self.last = entry.last

    def forget(self, batch: int) -> None:
        """Nobody will ask for what lies before `batch` any more. What holds `batch` itself is kept."""
        passed = bisect.bisect_left(self._lasts, batch)
        if (
            passed > len(self._lasts) // 2
        ):  # half at a time: so that each entry is moved once or so, whatever the steps
            del self._entries[:passed], self._lasts[:passed], self._sums_b[:passed]
        passed = bisect.bisect_left(self._marks, batch)
        if passed > len(self._marks) // 2:
            del self._marks[:passed]

    def forget_all(self) -> None:
        self.forget(self.last + 1)

    def is_mark(self, batch: int) -> bool:
        at = bisect.bisect_left(self._marks, batch)
        return at < len(self._marks) and self._marks[at] == batch

    def holding(self, batch: int) -> IndexEntry | None:
        """The entry that holds `batch`, or the first one behind it; None at the end of the log."""
        at = bisect.bisect_left(self._lasts, batch)
        return self._entries[at] if at < len(self._entries) else None

    def between(self, after: int, until: int) -> Sequence[IndexEntry]:
        """The entries that hold batches of (after, until]."""
        first = bisect.bisect_right(self._lasts, after)
        return self._entries[first : bisect.bisect_left(self._lasts, until) + 1]

    def behind(self, batch: int) -> Rest | None:
        """The segments that hold batches behind `batch`; None at the end of the log."""
        at = bisect.bisect_right(self._lasts, batch)
        if at == len(self._entries):
            return None
        first = self._entries[at]
        return Rest(first, self._entries[-1], self._total_b - self._sums_b[at] + first.plain_b)
