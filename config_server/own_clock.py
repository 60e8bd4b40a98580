"""Whether this server's wall clock is to be believed. Pure, but for the two clocks.

Whatever this server signs carries its time, so one jump of its clock could leave it with certificates that nobody takes. A clock that was
set by more than a day since it was last believed is not believed again before a daemon's clock agrees with it, or it is set back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from config_server.clock import SECOND_NS
from config_server.presence import Seen
from shared.errors import HostClockError

STEP_S: Final = 86_400.0
AGREES_S: Final = 3600.0


class OwnClock:
    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()
        """Of the wall clock, when it was believed last."""

    def look(self, heard: Iterable[Seen], now_ns: int) -> HostClockError | None:
        """`heard`: the daemons' newest reports; `now_ns` is monotonic."""
        offset_s = self._wall() - self._monotonic()
        step_s = offset_s - self._offset_s
        # What they show now, and not what the difference was when they reported: that may have been before the jump.
        shown_s = [
            (seen.report.sent_ns + now_ns - seen.heard_ns) / SECOND_NS
            for seen in heard
            if seen.report.sent_ns and not seen.is_silent(now_ns)
        ]
        agree = any(abs(self._wall() - daemons_s) < AGREES_S for daemons_s in shown_s)
        if agree or abs(step_s) <= STEP_S:
            self._offset_s = offset_s if agree else self._offset_s
            return None
        return HostClockError(
            "The config server's clock was set, and no daemon's clock agrees with it",
            cause=f"by {abs(step_s) / 86_400:.0f} days {'ahead' if step_s > 0 else 'back'}",
            action="Set it right (NTP: timedatectl, chronyc tracking); then it goes on by itself. Until then it renews nothing of its own."
            " If it is right now, restart the config server.",
        )
