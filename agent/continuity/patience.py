"""How long the others wait for a disk that does not answer, before they go on without it. Pure: the clock is handed in.

To give a disk up costs the others a copy of all that they hold, and all of them one more when it is back. To wait for it costs them their
points. Nobody knows how long it will be silent; so, as whoever does not know whether to rent or to buy, they wait until that has cost
what a mistake would. The first wait is `FIRST_S`: paths to storage fail over in less. A disk that is silent again within a day made the
last time a mistake, and is waited for twice as long, up to `LIMIT_S`. So one that hangs for two minutes every few minutes is given up once,
and from then on it is waited for. Whatever a disk does, the waits before its first n times sum up to FIRST_S * (2^n - 1), and behind the
limit each is an hour: that is some thirty times in the worst of days, and no epoch a minute for ever.

It is kept by the process: an agent that is restarted begins with the first wait again, since somebody may have repaired something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

FIRST_S: Final = 60.0
LIMIT_S: Final = 3600.0
FORGET_S: Final = 86400.0
"""A disk that was not given up for so long counts as one that never was."""


class Patience:
    def __init__(self) -> None:
        self._given_up: dict[str, tuple[float, float]] = {}
        """By disk: how long it was waited for, and when it was given up (monotonic)."""

    def wait_s(self, disk: str, now: float) -> float:
        """How long it is waited for, should it be silent now."""
        if disk not in self._given_up:
            return FIRST_S
        waited_s, at = self._given_up[disk]
        return FIRST_S if now - at > FORGET_S else min(2 * waited_s, LIMIT_S)

    def give_up(self, disks: Iterable[str], now: float) -> None:
        self._given_up.update({disk: (self.wait_s(disk, now), now) for disk in disks})
