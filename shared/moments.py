"""Moments as people read them, in errors."""

from __future__ import annotations

import datetime as dt
import time
from typing import Final

_HOUR_S: Final = 3600


def shown(time_s: float) -> str:
    """A moment (Unix seconds), also one that no calendar has."""
    try:
        return f"{dt.datetime.fromtimestamp(time_s, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{time_s:.0f} s since 1970"


def coarse(time_s: float | None = None) -> str:
    """What a clock shows (None: this host's), to the hour: an error's words must not change with every try."""
    time_s = time.time() if time_s is None else time_s
    begin_s = time_s // _HOUR_S * _HOUR_S
    return f"a time in the hour from {shown(begin_s)}"


def apart_s(before_s: float, after_s: float, theirs_s: float) -> float:
    """How far a clock is ahead of another (negative: behind), at least: it showed `before_s` when the other was asked and `after_s` when
    the answer had come, whose date (whole seconds) is `theirs_s`. 0: they may agree. Pure."""
    least_s, most_s = before_s - theirs_s - 1.0, after_s - theirs_s
    if least_s <= 0.0 <= most_s:
        return 0.0
    return least_s if least_s > 0.0 else most_s
