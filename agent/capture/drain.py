"""Waiting until every write that a disk was given has completed.

Which writes are in flight cannot be asked for: /sys/block/*/inflight leaves out what is plugged or held by
a scheduler. But every bio that entered a request holds the queue, and freezing a queue waits for exactly
those. Since Linux 6.11 a write to the queue attribute `iostats`, even of the value that it has, freezes the
queue for a moment, and changes nothing else.

The price: while the queue freezes, new writes wait for the old ones, as they do when an administrator
changes the scheduler. On a healthy disk that is the time of its slowest request. A disk on which a request
hangs would stand still as long as that request, so nothing is asked of a disk that has an old write in
flight (`patience_s`), and nobody should call this more than about once per attachment or round.

Disks without requests (md, dm) hold their queue only during submission, and older kernels do not freeze
here: False.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.disks import SYSFS, Disk

_FREEZES_SINCE: Final = (6, 11)


def can_drain(disk: Disk, *, release: str | None = None) -> bool:
    """Whether `drain` works for this disk on this kernel (`release` as of uname)."""
    version = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return not disk.bio_based and version is not None and (int(version[1]), int(version[2])) >= _FREEZES_SINCE


def is_lively(open_writes: npt.NDArray[np.void], now_ns: int, patience_s: float = 1.0) -> bool:
    """Whether no write (`layout.OPEN_WRITE`, of one disk) has been in flight for longer than `patience_s`.
    Pure."""
    if not len(open_writes):
        return True
    return now_ns - int(open_writes["since_ns"].min()) <= patience_s * 1e9


def drain(disk: Disk, *, sysfs: Path = SYSFS) -> bool:
    """Returns True when every write that had entered a request before the call has completed, False where
    that cannot be had.

    Blocks for as long as the disk takes: call it in a thread, and see above. Also switches the disk's
    iostats on.
    """
    if not can_drain(disk):
        return False
    (sysfs / f"block/{disk.name.replace('/', '!')}/queue/iostats").write_text("1")
    return True
