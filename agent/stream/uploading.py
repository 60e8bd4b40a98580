"""Ordered batches that were sent and are not uploaded yet, with their captured times: what the agent's word on the RPO comes from. Pure.

After a long outage it remembers every second batch, then every fourth, and so on, and always the last one: meanwhile `captured_ns` may be a
little older than it could be.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LIMIT: Final = 4096


class Uploading:
    def __init__(self) -> None:
        self.captured_ns = 0
        """Of the newest one that is uploaded; 0: none is."""
        self._sent: deque[tuple[int, int]] = deque()
        self._last = (0, 0)
        self._every = 1
        self._skipped = 0

    def __len__(self) -> int:
        return len(self._sent)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def add(self, number: int, captured_ns: int) -> None:
        self._last = number, captured_ns
        self._skipped += 1
        if self._skipped < self._every:
            return
        self._skipped = 0
        self._sent.append(self._last)
        if len(self._sent) > LIMIT:
            self._sent = deque([*self._sent][::2])
            self._every *= 2

    def drop_behind(self, number: int) -> None:
        """The batches behind `number` were lost on the way."""
        while self._sent and self._sent[-1][0] > number:
            self._sent.pop()
        if self._last[0] > number:
            self._last = self._sent[-1] if self._sent else (0, 0)

    def uploaded(self, number: int) -> None:
        while self._sent and self._sent[0][0] <= number:
            self.captured_ns = self._sent.popleft()[1]
        if 0 < self._last[0] <= number:
            self.captured_ns = self._last[1]
        if not self._sent:
            self._every = 1
