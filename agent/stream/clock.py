"""The machine's two clocks. Moments are kept by the boot clock, which the kernel's records carry and nobody can set; on the wall clock,
which people read and may set at any time, they are shown as late as possible, as it stands then."""

from __future__ import annotations

import time


def boot_ns() -> int:
    """CLOCK_BOOTTIME: runs on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def unix_offset_ns() -> int:
    """What to add to the boot clock to get Unix time, as the wall clock is set now."""
    return time.time_ns() - boot_ns()
