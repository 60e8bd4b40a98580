"""Whether the kernel counts the disks' sectors, without which the audit is blind. Never blocks.

What says so is an attribute of the disk's queue, and reading it may hang with the disk (`disks.Queue`): a thread reads it, at each look,
since a pause of counting that nobody noticed leaves the audit blind. While it cannot be read the last word is believed. (It is a thread as
those of `disk_threads` are: rarely, and with the disk, it keeps a process that was killed from being over; `lock` is made for that.)
Counting is not switched on from here: since Linux 6.11 that freezes the queue, and all writes wait for its slowest request.

The same thread looks for a device over the disk that hides its writes (`disks.hider`), since that depends on attributes of queues, too;
or that has other paths for them (`disks.multipath_holder`).

**How many threads.** One asks about all disks, one after another, and ends when nobody wants to know any more (`IDLE_S`): a session
ends without a word. Where it hangs at a disk there is another in its place for the others. That disk's lock stays with the one that hangs,
and who does not get it passes the disk over. So besides one of each session there is at most one a disk, whatever number of sessions come.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Final

from agent.capture.disks import SYSFS, Disk, hider, multipath_holder, read_queue, still_stands
from agent.capture.maps import Capture
from shared.daemon import logging
from shared.daemon.threads import start
from shared.errors import AuditBlindError, NoThreadError, UnderstudyError

_log = logging.get()

HANGS_S: Final = 5.0
"""Who is at one disk for longer is not waited for."""
IDLE_S: Final = 10.0
_SWITCH_ON: Final = "Switch it on: echo 1 > {}/queue/iostats (since Linux 6.11 writes wait meanwhile for the disk's slowest request)."
_UNKNOWN: Final = (
    "Capture goes on, and what was known last is believed. It is tried again each second; the log says more."
)
_LOCKS: Final[dict[tuple[str, int], threading.Lock]] = {}
"""Of this process, by a disk's name and diskseq: held by the thread that is at it."""


class Counting:
    def __init__(self, capture: Capture) -> None:
        self.disks = capture.disks
        self._counts = [disk.iostats for disk in capture.disks]
        self.hidden_by = [disk.hidden_by for disk in capture.disks]
        """By slot, the device over the disk whose writes capture does not see; empty where there is none."""
        self._asker: _Asker | None = None
        self.trouble: AuditBlindError | None = None
        """Why it could not be found out at the last look; None: it could, or somebody hangs."""

    def counts(self, slot: int) -> bool:
        return self._counts[slot]

    def look(self) -> None:
        """Has it read."""
        if self._asker is None or not self._asker.is_of_use:
            asker = _Asker(self)
            try:
                start(asker)
            except NoThreadError as exc:
                self.note([exc])
                return
            self._asker = asker
        self._asker.due.set()

    def error(self, slot: int) -> AuditBlindError | None:
        if self._counts[slot]:
            return None
        disk = self.disks[slot]
        return AuditBlindError(
            f"Capture of {disk.id} cannot be audited", action=_SWITCH_ON.format(_folder_of(disk))
        )

    def ask(self, slot: int) -> None:
        """May hang."""
        disk = self.disks[slot]
        folder = _folder_of(disk)
        counts, hidden_by = read_queue(folder).counts, hider(folder) or multipath_holder(folder)
        if still_stands(disk):
            self._counts[slot], self.hidden_by[slot] = counts, hidden_by

    def note(self, failed: list[Exception]) -> None:
        """What a look at all disks failed with."""
        trouble = None
        if failed:
            what = "Whether the kernel counts what is written cannot be found out"
            first = failed[0]
            cause = first.cause if isinstance(first, UnderstudyError) else repr(first)
            trouble = AuditBlindError(what, cause=cause, action=_UNKNOWN)
            if self.trouble is None or self.trouble.as_dict() != trouble.as_dict():
                _log.error("the kernel's counting is not known", exc_info=failed[0])
        self.trouble = trouble


class _Asker(threading.Thread):
    def __init__(self, counting: Counting) -> None:
        super().__init__(name="counting", daemon=True)
        self._counting = counting
        self.due = threading.Event()
        self._since = math.inf
        """Since when (monotonic) it is at one disk."""

    @property
    def is_of_use(self) -> bool:
        return self.is_alive() and time.monotonic() - self._since <= HANGS_S

    def run(self) -> None:
        while self.due.wait(IDLE_S):
            self.due.clear()
            failed = []
            for slot, disk in enumerate(self._counting.disks):
                lock = _LOCKS.setdefault((disk.name, disk.diskseq), threading.Lock())
                if not lock.acquire(blocking=False):
                    continue  # another hangs there
                self._since = time.monotonic()
                try:
                    self._counting.ask(slot)
                except Exception as exc:  # noqa: BLE001 - nobody waits for this thread: said by `note`, or never
                    failed.append(exc)
                finally:
                    self._since = math.inf
                    lock.release()
            self._counting.note(failed)


def _folder_of(disk: Disk) -> Path:
    return SYSFS / "block" / disk.name.replace("/", "!")
