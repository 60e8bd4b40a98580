"""What a master target says of each machine, and how fast apply is."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import msgspec

from master_target.apply import Applied
from shared.status import ApplyReport

_WINDOW_S: Final = 60.0


class MachineReport(ApplyReport, kw_only=True):
    """`applied` and `indexed` are batch numbers of `epoch`."""

    machine: str = ""
    indexed: int = 0
    last_point: str = ""
    """Id of the newest point that was made here."""
    rates: dict[str, float] = msgspec.field(default_factory=dict)
    """Of the last minute: see `Rates`."""


class Rates:
    """Apply over the last minute, and since the start."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, Applied]] = deque()
        self.total = Applied()

    def add(self, done: Applied) -> None:
        self._recent.append((time.monotonic(), done))
        for field in Applied.__struct_fields__:
            setattr(self.total, field, getattr(self.total, field) + getattr(done, field))

    def report(self) -> dict[str, float]:
        """`apply_b_s`: payload applied while applying; `write_b_s`, `requests_s`: what that took; `busy`: share of the time spent
        applying; `amplification`: bytes written ÷ bytes that had to be written, since the start.
        """
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - _WINDOW_S:
            self._recent.popleft()
        seconds = sum(done.seconds for _, done in self._recent) or 1.0
        return {
            "apply_b_s": sum(done.payload_b for _, done in self._recent) / seconds,
            "write_b_s": sum(done.written_b for _, done in self._recent) / seconds,
            "requests_s": sum(done.requests for _, done in self._recent) / seconds,
            "busy": min(sum(done.seconds for _, done in self._recent) / _WINDOW_S, 1.0),
            "amplification": self.total.written_b / self.total.needed_b if self.total.needed_b else 1.0,
        }
