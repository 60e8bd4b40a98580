"""The disks' presence: which are gone, back, exchanged or of another size, and whether capture has to be fitted to them anew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

import msgspec

from agent.capture import audit
from agent.capture.audit import Baseline
from agent.capture.disks import size_of
from agent.capture.maps import Capture
from agent.capture.watch import Watch
from agent.continuity.losses import Losses
from agent.stream import clock
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Reason, Word
from shared.daemon import logging
from shared.errors import CaptureRemovedError, DeviceNotFoundError, DiskReturnedError, cause_of
from shared.recovery.position import Position
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

GONE_S: Final = 10.0
"""How long a disk that is gone keeps a stream that is not ordered from going on without it."""


class Presence:
    def __init__(
        self, capture: Capture, state: AgentState, rounds: Rounds, watch: Watch, losses: Losses
    ) -> None:
        self._capture = capture
        self._state = state
        self._rounds = rounds
        self._watch = watch
        self._losses = losses
        self.gone: dict[int, Problem] = {}
        """By slot."""
        self._whole_at, self._whole_boot_ns = time.monotonic(), clock.boot_ns()
        """When the last look began at which all disks were there, by both clocks."""
        self.resized = asyncio.Event()
        """Set when capture does not fit the disks any more: one has another size, is gone for good, or is back."""

    def look(self) -> None:
        """Which are gone or have another size, and which were gone and are back, or were exchanged, as the same disk to the kernel: capture
        goes on with these, but what they hold is not known. (Before anything says that all disks are there now.)"""
        gone = {}
        for slot, disk in enumerate(self._capture.disks):
            sectors = self._size_of(slot)
            if not sectors:
                error = DeviceNotFoundError(
                    f"Protected disk {disk.path} is gone",
                    cause=f"{disk.name} was pulled out, or is another disk now",
                    action="Attach it again: it is taken in by itself. If it shall not come back, protect the machine without it.",
                )
                gone[slot] = Problem(**error.as_dict(), severity=Severity.CRITICAL, object=disk.id)
            elif sectors != disk.sectors:
                self.begin_anew("disk resized", disk=disk.id, sectors=disk.sectors, now=sectors)
        for slot in gone.keys() - self.gone.keys():
            _log.error("disk gone", **{k: v for k, v in msgspec.to_builtins(gone[slot]).items() if v})
        self.gone = gone
        went = self._state[Word.WENT] | sum(1 << slot for slot in gone)
        self._state[Word.WENT] = went
        for slot in range(len(self._capture.disks)):
            if slot not in gone:
                self._look_at_content(slot, is_back=bool(went & 1 << slot))

    def _size_of(self, slot: int) -> int:
        disk = self._capture.disks[slot]
        try:
            return size_of(disk)
        except OSError as exc:  # this says nothing of the disk: it is what it was
            _log.warning("the size of a disk cannot be read", disk=disk.id, cause=str(exc))
            return 0 if slot in self.gone else disk.sectors

    def _look_at_content(self, slot: int, *, is_back: bool) -> None:
        disk, words = self._capture.disks[slot], self._capture.audit_words(slot)
        try:
            stat = audit.read_stat(disk)
        except OSError as exc:  # it went away just now, which the next look finds
            _log.debug("sectors written: not known", path=exc.filename, cause=cause_of(exc))
            return
        baseline = Baseline.from_words(words)
        is_anew = audit.went_back(stat, baseline)
        if is_back or is_anew:
            cause = "the kernel's count of its sectors began anew" if is_anew else "it was gone for a while"
            error = DiskReturnedError(f"What disk {disk.id} holds is unknown", cause=cause)
            self._losses.lose(Reason.DISK_RETURNED, error, self._state.since_all_there)
        # Afterwards, as with a shortfall: a kill in between costs one more epoch.
        if is_anew:
            baseline = audit.begun_anew(stat, self._capture.sector_counts(slot)[1])
        audit.keep(words, replace(baseline, last_sectors=stat.sectors))
        if is_back:
            self._state[Word.WENT] &= ~(1 << slot)

    def go_on_without(self, looked_at: float, looked_ns: int, cut: Position, *, asking: bool) -> None:
        """What follows from disks that are gone, and from such as are back.

        Nothing is read of a disk that is gone from the first look on. While the stream is ordered, nothing has to be, and points go on with
        what it held last. A stream that is not ordered waits for it: after `GONE_S` the others begin anew without it. The only disk of a
        machine is waited for. One that is back is taken in by beginning anew, whichever of the two was the case. `asking`: whether disks
        that are there answer is of interest, too.
        """
        # What stands in the place of a disk that is gone is not its content either.
        self._rounds.leave_out(self.gone)
        offset_ns = clock.unix_offset_ns()
        if not self.gone:
            self._whole_at, self._whole_boot_ns = looked_at, looked_ns
            self._state.were_all_there(cut, looked_ns + offset_ns)
        else:
            # By a clock that was set back since, points carry times from before that moment.
            there_ns = min(self._state[Word.ALL_THERE_NS], self._whole_boot_ns + offset_ns)
            self._state[Word.ALL_THERE_NS] = there_ns
            others = len(self.gone) < len(self._capture.disks)
            if others and not self._state[Word.ORDERED] and looked_at - self._whole_at > GONE_S:
                names = [problem.object for problem in self.gone.values()]
                self.begin_anew("the others go on without disks that are gone", disks=names)
        if self._watch.is_one_back(looking=bool(self.gone) or asking):
            self.begin_anew("a disk is back")

    def lose_capture(self, programs: list[str]) -> None:
        """Passthrough writes and the like would not be seen even by the audit: nothing is believed from here on."""
        if not self.resized.is_set():
            cause = f"pins of its programs were removed: {', '.join(programs)}"
            error = CaptureRemovedError("Writes are not captured any more", cause=cause)
            self._losses.lose(Reason.CAPTURE_REMOVED, error)
            self.begin_anew("a part of it was removed", programs=programs)

    def begin_anew(self, why: str, **fields: object) -> None:
        """Capture is fitted to the disks that are there: `resized` ends this run."""
        if not self.resized.is_set():
            _log.warning(f"capture is fitted anew: {why}", **fields)
            self.resized.set()
