"""Whether the kernel counts the disks' sectors, without which the audit is blind. Never blocks.

What says so is an attribute of the disk's queue, and reading it hangs with a hung disk (`answer.queues`): a thread has it asked for now and
then. Of a disk that does not answer the last word is believed. It is not switched on from here: since Linux 6.11 that freezes the queue,
and all writes wait for its slowest request.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from agent.capture import answer
from agent.capture.disks import SYSFS, UNKNOWN_QUEUE
from agent.capture.maps import Capture
from shared import logging
from shared.errors import AuditBlindError, DeviceError

_log = logging.get()

LOOK_S: Final = 30.0
_SWITCH_ON: Final = "Switch it on: echo 1 > {}/queue/iostats (since Linux 6.11 writes wait meanwhile for the disk's slowest request)."


class Counting:
    def __init__(self, capture: Capture) -> None:
        self._names = [disk.name.replace("/", "!") for disk in capture.disks]
        self._ids = [disk.id for disk in capture.disks]
        self._counts = [disk.iostats for disk in capture.disks]
        self._next = time.monotonic() + LOOK_S
        self._thread: threading.Thread | None = None

    def counts(self, slot: int) -> bool:
        return self._counts[slot]

    def look(self) -> None:
        """Has them asked if that is due."""
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
        try:
            found = answer.queues(self._names)
        except DeviceError as exc:
            _log.warning("whether the kernel counts could not be asked", **exc.as_dict())
            return
        for slot, name in enumerate(self._names):
            if found[name] is not UNKNOWN_QUEUE:
                self._counts[slot] = found[name].counts
