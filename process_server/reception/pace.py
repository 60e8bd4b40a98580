"""How often somebody may have what costs us storage requests, log lines or a task, and costs him a frame. Pure: a bucket of tokens for each
key, which fills slowly. Honest agents never find it empty: they pause of themselves (agent/stream/sender.py)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_KEYS: Final = 4096
"""So many are remembered: a forgotten one begins with a full bucket."""


class Pace:
    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By key: tokens, and when they were counted; the one that was used least recently first."""

    def wait_s(self, key: str, now_s: float) -> float:
        """0: it may, and that is counted. Else so long it has to wait until it may."""
        left, at_s = self._left.get(key, (self._burst, now_s))
        left = min(self._burst, left + max(0.0, now_s - at_s) * self._per_s)
        may = left >= 1.0
        self._left[key] = left - may, now_s
        self._left.move_to_end(key)
        if len(self._left) > _KEYS:
            self._left.popitem(last=False)
        return 0.0 if may else (1.0 - left) / self._per_s
