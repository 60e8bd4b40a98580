"""Disks that are there and do not answer. Never blocks: what the kernel counts is looked at, no disk is asked.

A disk hangs when requests of anybody are in flight and none has completed for `HANGS_S`. It is said, and nothing follows from it: the disk
may answer at any moment, and to go on without it would copy the others anew, and all of them once more when it is back. That is a
person's choice, who has a way to it. A stream that is in order goes on; one that is not waits for the disk, since what it holds has to be
read. Requests that a driver holds back before it counts them (a suspended device-mapper disk) do not show here; catch-up's reads do
(`sync_reader`).
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from agent.capture.disks import SYSFS, Disk
from agent.capture.maps import Capture
from shared import logging
from shared.errors import DiskHangsError
from shared.status import Problem

_log = logging.get()

HANGS_S: Final = 20.0
_COMPLETED: Final = (0, 4, 11, 15)
"""Fields of `stat`: reads, writes, discards, flushes that completed."""


class Hanging:
    def __init__(self, capture: Capture) -> None:
        self._disks = capture.disks
        self._silent: dict[int, tuple[tuple[int, ...], float]] = {}
        """By slot: what had completed, and since when (monotonic) requests are in flight and nothing more does."""
        self.problems: dict[int, Problem] = {}
        """By slot."""

    def look(self, gone: Collection[int], *, sysfs: Path = SYSFS) -> None:
        now = time.monotonic()
        problems = {}
        for slot, disk in enumerate(self._disks):
            completed = () if slot in gone else _completed_while_in_flight(disk, sysfs)
            if not completed:
                self._silent.pop(slot, None)
                continue
            if self._silent.setdefault(slot, (completed, now))[0] != completed:
                self._silent[slot] = completed, now
            if now - self._silent[slot][1] >= HANGS_S:
                problems[slot] = self.problems.get(slot) or _told(disk)
        for slot in self.problems.keys() - problems.keys():
            _log.info("a disk answers again, or is gone", disk=self._disks[slot].id)
        self.problems = problems


def _told(disk: Disk) -> Problem:
    error = DiskHangsError(
        f"Protected disk {disk.path} does not answer",
        cause=f"requests wait for it, and none completed for {HANGS_S:.0f} s",
    )
    _log.error("disk hangs", disk=disk.id, **error.as_dict())
    return Problem(**error.as_dict(), severity="critical", object=disk.id)


def _completed_while_in_flight(disk: Disk, sysfs: Path) -> tuple[int, ...]:
    """Empty when nothing is in flight, or nothing can be told."""
    folder = sysfs / "block" / disk.name.replace("/", "!")
    try:
        if not any(int(count) for count in (folder / "inflight").read_text().split()):
            return ()
        fields = (folder / "stat").read_text().split()
    except OSError as exc:  # it is gone, which `presence` finds
        _log.debug("requests in flight: not known", path=exc.filename, cause=exc.strerror)
        return ()
    return tuple(int(fields[at]) for at in _COMPLETED if at < len(fields))
