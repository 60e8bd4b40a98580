"""Whether the kernel counts the disks' sectors, without which the audit is blind. Never blocks.

What says so is an attribute of the disk's queue, and reading it may hang with the disk (`disks.Queue`): a thread reads it, once a second,
since a pause of counting that nobody noticed leaves the audit blind. While it hangs the last word is believed. (It is a thread as those of
`disk_threads` are: rarely, and with the disk, it keeps a process that was killed from being over; `lock` is made for that.) Counting is
not switched on from here: since Linux 6.11 that freezes the queue, and all writes wait for its slowest request.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from agent.capture.disks import SYSFS, read_queue, still_stands
from agent.capture.maps import Capture
from shared.errors import AuditBlindError

LOOK_S: Final = 1.0
_SWITCH_ON: Final = "Switch it on: echo 1 > {}/queue/iostats (since Linux 6.11 writes wait meanwhile for the disk's slowest request)."


class Counting:
    def __init__(self, capture: Capture) -> None:
        self._disks = capture.disks
        self._names = [disk.name.replace("/", "!") for disk in capture.disks]
        self._ids = [disk.id for disk in capture.disks]
        self._counts = [disk.iostats for disk in capture.disks]
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def counts(self, slot: int) -> bool:
        return self._counts[slot]

    def look(self) -> None:
        """Has it read if that is due."""
        if time.monotonic() >= self._next and (self._thread is None or not self._thread.is_alive()):
            self._next = time.monotonic() + LOOK_S
            self._thread = threading.Thread(target=self._ask, name="counting", daemon=True)
            self._thread.start()

    def error(self, slot: int) -> AuditBlindError | None:
        if self._counts[slot]:
            return None
        action = _SWITCH_ON.format(SYSFS / "block" / self._names[slot])
        return AuditBlindError(f"Capture of {self._ids[slot]} cannot be audited", action=action)

    def _ask(self) -> None:
        for slot, name in enumerate(self._names):
            counts = read_queue(SYSFS / "block" / name).counts
            if still_stands(self._disks[slot]):
                self._counts[slot] = counts
