"""Disks that are there and do not answer: they are named, and given up where the others wait for them. Never blocks.

*A disk does not answer* while somebody asks and nothing comes. There are three witnesses; the look itself asks nobody:

    the kernel's counts   requests of anybody are in flight, and none has completed for `HANGS_S`
    catch-up's reads      something of the disk has to be read, and when it was asked last it gave nothing: it hangs, or all reads fail
                          (`sync_reader`)
    the question          a child was to read anything at all of it, and could not (`capture.answer`; `watch` asks while reads give nothing)

**To name it** (US592, state `hangs`) the counts or the reads suffice: the counts see a hang of which the stream needs nothing, the reads
one that a driver holds back before it counts (a suspended device-mapper disk). Nothing follows: what was captured of it stays true.

**To give it up** the reads and the question have to agree, all the time for as long as `Patience` says, in a stream that is not ordered
and could be: a new epoch begins without it, as without one that is gone. The reads say that something of it is wanted: an ordered stream
has nothing to read, and goes on. The question says that it will not be taken in again at once, since it is by this question that it
would be: of a disk that answers it, and of which only a part cannot be read, the fitting finds nothing to leave out. The counts decide
nothing here: requests of others may complete on a disk that fails each read, and none need be in flight on one that is not asked.

What was waited counts, whoever looks: an agent that is started again goes on with the wait, and leaves a disk that was given up before and
does not answer out at once (`patience`).

**A write that hangs**, or one sector that takes minutes, on a disk that answers the question, is named for what it is (US587, US586): the
disk is not given up for it, for it would be taken in again at once.

All that are silent are given up together, or none: an epoch without one of two would come into order no sooner. None, too, if nobody
would be left.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from agent.capture.disks import SYSFS, Disk
from agent.capture.maps import Capture
from agent.capture.watch import Watch
from agent.continuity.patience import Patience
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Word
from shared.daemon import logging
from shared.errors import DeviceError, DiskHangsError, SlowReadError, WriteHangsError, cause_of
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

HANGS_S: Final = 20.0
_COMPLETED: Final = (0, 4, 11, 15)
"""Fields of `stat`: reads, writes, discards, flushes that completed."""


class Hanging:
    def __init__(
        self, capture: Capture, state: AgentState, rounds: Rounds, watch: Watch, patience: Patience
    ) -> None:
        self._disks = capture.disks
        self._may_be_ordered = capture.mode == "ordered"
        self._state = state
        self._rounds = rounds
        self._watch = watch
        self._patience = patience
        self._still: dict[int, tuple[tuple[int, ...], float]] = {}
        """By slot: what had completed, and since when (monotonic) requests are in flight and nothing more does."""
        self._silent_since: dict[int, float] = {}
        """By slot, while the reads and the question agree."""
        self.unread: dict[int, DeviceError] = {}
        """By slot, what catch-up's reads say of disks of which something has to be read."""
        self.problems: dict[int, Problem] = {}
        """By slot."""

    def look(self, gone: Collection[int], *, sysfs: Path = SYSFS) -> None:
        now = time.monotonic()
        unread = {} if self._state[Word.ORDERED] else self._rounds.unread()
        self.unread = {slot: error for slot, error in unread.items() if slot not in gone}
        silent = {slot for slot in self.unread if self._disks[slot].id in (self._watch.silent or ())}
        self._silent_since = {
            slot: self._silent_since.get(slot, now - self._patience.silent_s(self._disks[slot].id))
            for slot in silent
        }
        self._note(now)
        problems = {}
        for slot, disk in enumerate(self._disks):
            read = self.unread.get(slot)
            error: DeviceError | None = read if isinstance(read, DiskHangsError) else None
            if self._stands_still(slot, now, sysfs, is_gone=slot in gone):
                is_known = isinstance(read, (SlowReadError, WriteHangsError))
                error = error or (read if is_known else _standing_still(disk))
            if error is not None:
                told = self.problems.get(slot)
                problems[slot] = told if told and told.code == error.code else _told(disk, error)
        for slot in self.problems.keys() - problems.keys():
            _log.info("a disk answers again, or is gone", disk=self._disks[slot].id)
        self.problems = problems

    def _note(self, now: float) -> None:
        """For whoever looks next: another fitting, or an agent that was started again. While nobody has asked, what he noted stands."""
        silent = {self._disks[slot].id: now - since for slot, since in self._silent_since.items()}
        is_known = self._state[Word.ORDERED] or self._watch.silent is not None
        asked = frozenset() if self._state[Word.ORDERED] else self._watch.silent or frozenset()
        # One that answers neither the question is not one that answers, though its reads, of a session that is new, are not late yet.
        others = [disk.id for disk in self._disks if disk.id not in asked | silent.keys()] if is_known else []
        self._patience.note(silent, others, now)

    def give_up(self, gone: Collection[int]) -> frozenset[str]:
        """The ids of those without which the others are to go on, from now on."""
        now = time.monotonic()
        silent = {self._disks[slot].id: since for slot, since in self._silent_since.items()}
        is_late = any(now - since > self._patience.wait_s(disk, now) for disk, since in silent.items())
        if not (is_late and self._may_be_ordered) or len(silent) + len(gone) >= len(self._disks):
            return frozenset()
        self._patience.give_up(silent, now)
        return frozenset(silent)

    def _stands_still(self, slot: int, now: float, sysfs: Path, *, is_gone: bool) -> bool:
        """By the kernel's counts."""
        completed = () if is_gone else _completed_while_in_flight(self._disks[slot], sysfs)
        if not completed:
            self._still.pop(slot, None)
            return False
        if self._still.setdefault(slot, (completed, now))[0] != completed:
            self._still[slot] = completed, now
        return now - self._still[slot][1] >= HANGS_S


def _standing_still(disk: Disk) -> DiskHangsError:
    return DiskHangsError(
        f"Protected disk {disk.path} does not answer",
        cause=f"requests wait for it, and none completed for {HANGS_S:.0f} s",
    )


def _told(disk: Disk, error: DeviceError) -> Problem:
    _log.error("disk hangs", disk=disk.id, **error.as_dict())
    return Problem(**error.as_dict(), severity=Severity.CRITICAL, object=disk.id)


def _completed_while_in_flight(disk: Disk, sysfs: Path) -> tuple[int, ...]:
    """Empty when nothing is in flight, or nothing can be told."""
    folder = sysfs / "block" / disk.name.replace("/", "!")
    try:
        if not any(int(count) for count in (folder / "inflight").read_text().split()):
            return ()
        fields = (folder / "stat").read_text().split()
    except OSError as exc:  # it is gone, which `presence` finds
        _log.debug("requests in flight: not known", path=exc.filename, cause=cause_of(exc))
        return ()
    return tuple(int(fields[at]) for at in _COMPLETED if at < len(fields))
