"""How hard to compress. Pure.

Bytes that compress better get through a slow uplink sooner, and take less of the cache while they wait; but sealing is on the way to an
acknowledgement, and the process server's cores are also for everything else. So level 1, which hardly costs anything, unless closed
segments wait for upload *and* cores are idle; one step at a time, so that what the last step cost is seen before the next; and back at
once when nothing waits. The gap between the two bounds of idleness keeps it from swinging. Batches of any level are the same format.

Measured on machine code and text (one core): level 1 leaves 40 and 22 % of the size at some 440 MB/s, 3 leaves 35 and 20 % at 230 to
300, 5 leaves 34 and 19 % at 100 to 130; above, next to nothing is gained.
"""

from __future__ import annotations

from typing import Final

LEVELS: Final = (1, 3, 5)
_IDLE_ENOUGH: Final = 0.5
_TOO_BUSY: Final = 0.2
"""Parts of all cores that are idle."""


def next_level(level: int, *, waits: bool, idle: float) -> int:
    """The level from now on, of LEVELS. `waits`: whether closed segments wait although as many are being uploaded as may be."""
    at = LEVELS.index(level)
    if not waits:
        return LEVELS[0]
    if idle < _TOO_BUSY:
        return LEVELS[max(0, at - 1)]
    if idle >= _IDLE_ENOUGH:
        return LEVELS[min(len(LEVELS) - 1, at + 1)]
    return level


def idle_part(before: str, after: str) -> float:
    """The part of all cores that was idle between two readings of /proc/stat; 0 when they do not say it."""
    first, second = _cpu(before), _cpu(after)
    total = sum(second) - sum(first)
    if len(first) < 5 or len(second) < 5 or total <= 0:
        return 0.0
    waited = sum(second[3:5]) - sum(first[3:5])  # idle, and idle for want of I/O
    return min(1.0, max(0.0, waited / total))


def _cpu(stat: str) -> list[int]:
    fields = stat.partition("\n")[0].split()
    # user nice system idle iowait irq softirq steal; what follows is in user and nice already
    return [int(field) for field in fields[1:9]] if fields[:1] == ["cpu"] else []
