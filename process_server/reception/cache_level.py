"""How full the cache is, told before it throttles anybody (credit.py)."""

from __future__ import annotations

from typing import Final

from process_server.reception.credit import CacheSpace, CreditPolicy
from shared.daemon import logging
from shared.errors import CacheFillingError
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

_LEVELS: Final = {Severity.CRITICAL: 1 / 16, Severity.WARNING: 1 / 8}
"""Worst first, told when less than this part of what is above the floor is free: with the usual floor of 20 %, below 25 and 30 %."""
_HYSTERESIS: Final = 1 / 80
"""So much more of that part must be free until it is over."""


class CacheLevel:
    """What is to be said of the cache, over time; a change is a line in the log."""

    def __init__(self, policy: CreditPolicy) -> None:
        self._floor = policy.free_floor
        self._said: Severity | None = None

    def look(self, cache: CacheSpace) -> Problem | None:
        before = self._said
        free = cache.free_b / cache.total_b if cache.total_b else 0.0
        self._said = next((level for level in _LEVELS if free < self._limit(level, before)), None)
        if self._said is None:
            if before is not None:
                _log.info("the cache has room again", free=f"{free:.1%}")
            return None
        error = CacheFillingError(
            "The cache is filling",
            cause=f"less than {self._limit(self._said, None):.0%} of it is free; below {self._floor:.0%} no machine may send",
        )
        if before is not self._said:
            _log.warning("the cache is filling", free=f"{free:.1%}", **error.as_dict())
        return Problem(**error.as_dict(), severity=self._said)

    def _limit(self, level: Severity, before: Severity | None) -> float:
        held = before in (level, Severity.CRITICAL)
        return self._floor + (1 - self._floor) * (_LEVELS[level] + (_HYSTERESIS if held else 0.0))
