"""Disks that are there and counted, and that the audit says nothing of, look after look. Pure.

The audit of a busy disk needs a moment at which nothing is written. One that never has any is *in flight* at each look, which says nothing:
whether its driver counts at all, whether a write went past capture that is smaller than what is in flight. So that is said when it has
lasted. The stream loses nothing by it; but if a completion was not seen, order waits for such a moment, too (`settling`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agent.capture.audit import DRIVER, LACKING, UNTOLD, Outcome, Verdict
from shared.errors import NeverIdleError

UNAUDITED_S: Final = 600.0


class Unaudited:
    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        """By slot, since when (monotonic) no look said anything."""
        self._lacking: dict[int, int] = {}
        """By slot, at how many looks in a row the kernel had counted less than had completed before."""

    def judge(self, slot: int, verdict: Verdict, now: float) -> Verdict:
        """The verdict of this look, by those before."""
        if verdict.outcome is not Outcome.IN_FLIGHT and verdict.cause != UNTOLD:
            self._since.pop(slot, None)
            self._lacking.pop(slot, None)
            return verdict
        self._lacking[slot] = self._lacking.get(slot, 0) + 1 if verdict.lacks else 0
        if self._lacking[slot] >= LACKING:
            self._since.pop(slot, None)
            return replace(verdict, outcome=Outcome.UNVERIFIABLE, cause=DRIVER)
        self._since.setdefault(slot, now)
        return verdict

    def error(self, slot: int, disk: str, now: float) -> NeverIdleError | None:
        if now - self._since.get(slot, now) < UNAUDITED_S:
            return None
        minutes = f"{UNAUDITED_S / 60:.0f} minutes"
        return NeverIdleError(f"Capture of {disk} could not be audited for more than {minutes}")
