"""Continuity: runs the audit once a second, and decides what follows when a write may have gone past capture.

A shortfall, a skipped run of a capture program, a passthrough write: the stream has a hole that nobody can locate, so a new epoch is
wanted, with its reason and the position behind which points are suspect. Everything else here is what a clean audit permits: to call
what is read final once no write from before capture is in flight (`settle`), and to forget writes that only seem to be in flight.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, replace
from typing import Any, Final

import msgspec

from agent.capture import audit
from agent.capture.audit import Baseline, Outcome, Sample, Verdict
from agent.capture.disks import SYSFS, counts_sectors, size_of
from agent.capture.maps import Capture
from agent.capture.watch import Watch
from agent.stream import clock
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Reason, Suspicion, Word
from shared import logging
from shared.batch import SECTOR
from shared.errors import (
    AuditBlindError,
    AuditShortfallError,
    CaptureRemovedError,
    DeviceError,
    DeviceNotFoundError,
    DiskReturnedError,
    EpochEndedError,
    UnderstudyError,
)
from shared.recovery.position import NOWHERE, Position
from shared.status import Problem

_log = logging.get()

INTERVAL_S: Final = 1.0
SETTLE_QUIET_S: Final = 1.0
"""A moment without any write in flight proves that those from before the attachment have ended, but only after this long…"""
SETTLE_S: Final = 120.0
"""…and on a disk that is never seen quiet, they are taken to have ended after this long."""
_LOOKS: Final = 20
"""For a quiet moment, between two looks of the audit: the gaps of a busy disk are short."""
STALE_S: Final = 5.0
"""An open write that is older than this, on a disk where nothing is in flight, has completed unseen."""
GONE_S: Final = 10.0
"""How long a disk that is gone keeps a stream that is not ordered from going on without it."""
SHOWN_S: Final = 300.0
"""A new epoch may be ordered again within seconds: people, and a config server that was away, shall still see why it began."""
_ATTEMPTS: Final = 32
_NOT_COUNTED: Final = (
    "Capture goes on; what it might miss would not be noticed. Resynchronise the machine now and then."
)
_SWITCH_ON: Final = "Switch it on: echo 1 > {}/queue/iostats (since Linux 6.11 writes wait meanwhile for the disk's slowest request)."


class Continuity:
    def __init__(self, capture: Capture, state: AgentState, rounds: Rounds, watch: Watch) -> None:
        self._capture = capture
        self._watch = watch
        self._state = state
        self._rounds = rounds
        self._verdicts: list[Verdict] = []
        self._exact_boot_ns = 0
        """Boot-clock time of the last look at which all was exact; 0: none was."""
        self._exact_at = NOWHERE
        """What was cut when that look began: the last that is proved to lack nothing."""
        self._least_offset_ns = clock.unix_offset_ns()
        """Of the wall clock, since then."""
        self._lost_at = 0.0
        self._losses: dict[tuple[Reason, int], Problem] = {}
        """By reason, and by the epoch that is over for it."""
        self._over = 0
        """The epoch that ended last; until the next has begun, what happens is of it."""
        self._gone: dict[int, Problem] = {}
        """By slot."""
        self._blind: list[Problem] = []
        self._unsettled_ns = capture.attached_boot_ns if capture.fresh else 0
        """Since when (boot clock) it is not known which writes are in flight; 0: to be noted at the next look."""
        self._were_quiet: set[int] = set()
        """Disks on which a moment without any write in flight was seen since then."""
        self.looked_at = time.monotonic()
        """When the last look at all disks began."""
        self._whole_at, self._whole_boot_ns = self.looked_at, clock.boot_ns()
        """When the last look began at which all disks were there, by both clocks."""
        self.resized = asyncio.Event()
        """Set when capture does not fit the disks any more: one has another size, is gone for good, or is back."""

    async def run(self) -> None:
        while True:
            self.check()
            looks = 1 if self._state[Word.SETTLED] else _LOOKS
            for _ in range(looks):
                if not self._state[Word.SETTLED]:
                    self._settle()
                await asyncio.sleep(INTERVAL_S / looks)

    def check(self) -> None:
        """One look at all disks; takes some milliseconds."""
        self.looked_at = time.monotonic()
        looked_ns, cut = clock.boot_ns(), self._state.last_cut
        self._least_offset_ns = min(self._least_offset_ns, clock.unix_offset_ns())
        self._look_at_disks()
        removed = self._capture.removed()
        if removed:
            self._lose_capture(removed)
            return
        self._go_on_without(looked_ns, cut)
        if not self._gone:
            # Before the audit: what passes the block layer, or whose range is unknown, is not in the sectors that the audit compares.
            self._count_incidents()
        self._verdicts = [self._audit_if_there(slot) for slot in range(len(self._capture.disks))]
        self._look_at_counting()
        for slot, verdict in enumerate(self._verdicts):
            if verdict.outcome is Outcome.SHORTFALL:
                self._shortfall(slot, verdict)
        if all(verdict.outcome is Outcome.EXACT for verdict in self._verdicts):
            self._exact_boot_ns, self._exact_at = looked_ns, cut
            self._least_offset_ns = clock.unix_offset_ns()
            self._forget_stale()
        if self._state[Word.EVER_ORDERED] and time.monotonic() - self._lost_at > SHOWN_S:
            self._losses.clear()

    @property
    def problems(self) -> list[Problem]:
        """How continuity was lost, shown until the epoch that repairs it is ordered and for some minutes at least; disks that are gone."""
        return [*self._losses.values(), *self._gone.values(), *self._blind]

    def _look_at_disks(self) -> None:
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
                gone[slot] = Problem(**error.as_dict(), severity="critical", object=disk.id)
            elif sectors != disk.sectors:
                self._begin_anew("disk resized", disk=disk.id, sectors=disk.sectors, now=sectors)
        for slot in gone.keys() - self._gone.keys():
            _log.error("disk gone", **{k: v for k, v in msgspec.to_builtins(gone[slot]).items() if v})
        self._gone = gone
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
            return 0 if slot in self._gone else disk.sectors

    def _look_at_content(self, slot: int, *, is_back: bool) -> None:
        disk, words = self._capture.disks[slot], self._capture.audit_words(slot)
        try:
            stat = audit.read_stat(disk)
        except OSError as exc:  # it went away just now, which the next look finds
            _log.debug("sectors written: not known", path=exc.filename, cause=exc.strerror)
            return
        baseline = Baseline.from_words(words)
        is_anew = audit.went_back(stat, baseline)
        if is_back or is_anew:
            cause = "the kernel's count of its sectors began anew" if is_anew else "it was gone for a while"
            error = DiskReturnedError(f"What disk {disk.id} holds is unknown", cause=cause)
            self._lose(Reason.DISK_RETURNED, error, self._state.since_all_there)
        # Afterwards, as with a shortfall: a kill in between costs one more epoch.
        if is_anew:
            baseline = audit.begun_anew(stat, self._capture.sector_counts(slot)[1])
        audit.keep(words, replace(baseline, last_sectors=stat.sectors))
        if is_back:
            self._state[Word.WENT] &= ~(1 << slot)

    def _go_on_without(self, looked_ns: int, cut: Position) -> None:
        """What follows from disks that are gone, and from such as are back.

        Nothing is read of a disk that is gone from the first look on. While the stream is ordered, nothing has to be, and points go on with
        what it held last. A stream that is not ordered waits for it: after `GONE_S` the others begin anew without it. The only disk of a
        machine is waited for. One that is back is taken in by beginning anew, whichever of the two was the case.
        """
        # What stands in the place of a disk that is gone is not its content either.
        self._rounds.leave_out(self._gone)
        offset_ns = clock.unix_offset_ns()
        if not self._gone:
            self._whole_at, self._whole_boot_ns = self.looked_at, looked_ns
            self._state.were_all_there(cut, looked_ns + offset_ns)
        else:
            # By a clock that was set back since, points carry times from before that moment.
            there_ns = min(self._state[Word.ALL_THERE_NS], self._whole_boot_ns + offset_ns)
            self._state[Word.ALL_THERE_NS] = there_ns
            others = len(self._gone) < len(self._capture.disks)
            if others and not self._state[Word.ORDERED] and self.looked_at - self._whole_at > GONE_S:
                names = [problem.object for problem in self._gone.values()]
                self._begin_anew("the others go on without disks that are gone", disks=names)
        if self._watch.is_one_back(looking=bool(self._gone)):
            self._begin_anew("a disk is back")

    def _lose_capture(self, programs: list[str]) -> None:
        """Passthrough writes and the like would not be seen even by the audit: nothing is believed from here on."""
        if not self.resized.is_set():
            cause = f"pins of its programs were removed: {', '.join(programs)}"
            error = CaptureRemovedError("Writes are not captured any more", cause=cause)
            self._lose(Reason.CAPTURE_REMOVED, error)
            self._begin_anew("a part of it was removed", programs=programs)

    def _begin_anew(self, why: str, **fields: object) -> None:
        """Capture is fitted to the disks that are there: `resized` ends this run."""
        if not self.resized.is_set():
            _log.warning(f"capture is fitted anew: {why}", **fields)
            self.resized.set()

    def _look_at_counting(self) -> None:
        """Without the kernel's counting the audit is blind. It is not switched on from here: since Linux 6.11 that freezes the queue,
        and all writes wait for its slowest request."""
        blind = []
        for disk, verdict in zip(self._capture.disks, self._verdicts, strict=True):
            if verdict.cause == audit.DRIVER:
                error = AuditBlindError(
                    f"Capture of {disk.id} cannot be audited", cause=verdict.cause, action=_NOT_COUNTED
                )
                blind.append(Problem(**error.as_dict(), severity="warning", object=disk.id))
            folder = SYSFS / "block" / disk.name.replace("/", "!")
            if folder.is_dir() and not counts_sectors(folder):
                error = AuditBlindError(
                    f"Capture of {disk.id} cannot be audited", action=_SWITCH_ON.format(folder)
                )
                blind.append(Problem(**error.as_dict(), severity="warning", object=disk.id))
        if blind and not self._blind:
            _log.warning("the audit is blind", disk=blind[0].object, cause=blind[0].cause)
        self._blind = blind

    def _audit_if_there(self, slot: int) -> Verdict:
        try:
            return self._audit(slot)
        except OSError as exc:  # its counters go with the disk
            return Verdict(Outcome.UNVERIFIABLE, cause=f"{exc.filename}: {exc.strerror}")

    def _audit(self, slot: int) -> Verdict:
        """The verdict on one disk; on a busy one, from the first of some samples that is conclusive."""
        words = self._capture.audit_words(slot)
        for _ in range(_ATTEMPTS):
            sample = self._sample(slot)
            baseline = Baseline.from_words(words)
            if self._state[Word.SETTLED]:
                baseline = audit.settle(sample, baseline)
                audit.keep(words, baseline)
            verdict = audit.compare(sample, baseline)
            if verdict.outcome in (Outcome.EXACT, Outcome.SHORTFALL):
                break
        return verdict

    def _sample(self, slot: int) -> Sample:
        before = self._capture.sector_counts(slot)
        stat = audit.read_stat(self._capture.disks[slot])
        seen, completed = self._capture.sector_counts(slot)
        return Sample(stat, seen, completed, before == (seen, completed))

    def _settle(self) -> None:
        """Looks whether the writes from before the attachment have ended: each disk was quiet once, or patience is over.

        Nothing is asked of the disks' queues: what waits for their requests also holds back the workload's next ones.
        """
        boot_ns = clock.boot_ns()
        self._unsettled_ns = self._unsettled_ns or boot_ns
        since_s = (boot_ns - self._unsettled_ns) / 1e9
        if since_s > SETTLE_QUIET_S:
            self._were_quiet |= {slot for slot in range(len(self._capture.disks)) if self._is_quiet(slot)}
        if since_s > SETTLE_S or len(self._were_quiet) == len(self._capture.disks):
            self._rounds.settle()
            self._unsettled_ns = 0
            self._were_quiet.clear()
            _log.info("writes from before capture have ended", after_s=round(since_s, 1))

    def _is_quiet(self, slot: int) -> bool:
        """Whether no write to the disk is in flight at this moment."""
        disk = self._capture.disks[slot]
        seen, completed = self._capture.sector_counts(slot)
        try:
            inflight = (SYSFS / "block" / disk.name.replace("/", "!") / "inflight").read_text()
        except OSError as exc:  # a disk is gone, which `check` shows
            _log.debug("writes in flight: not known", path=exc.filename, cause=exc.strerror)
            return False
        return seen == completed and not int(inflight.split()[1])

    def _forget_stale(self) -> None:
        boot_ns = clock.boot_ns()
        opened = self._capture.open_writes()["since_ns"]
        if not len(opened) or boot_ns - int(opened.min()) <= STALE_S * 1e9:
            return
        for slot in range(len(self._capture.disks)):
            sample = self._sample(slot)
            baseline = Baseline.from_words(self._capture.audit_words(slot))
            counted = sample.stat.sectors - baseline.stat_sectors - (baseline.offset_sectors or 0)
            if not sample.still or counted != sample.seen_sectors:
                return
        forgotten = self._capture.forget_open(boot_ns - int(STALE_S * 1e9))
        # Whether these writes failed was not seen either: what the disk holds there is read once more.
        self._rounds.read_again(forgotten)
        _log.info("completions that were not seen", writes=len(forgotten))

    def _shortfall(self, slot: int, verdict: Verdict) -> None:
        disk = self._capture.disks[slot].id
        what = f"{verdict.sectors} sectors ({verdict.sectors * SECTOR} bytes) were written to {disk} past capture"
        self._lose(Reason.AUDIT_SHORTFALL, AuditShortfallError(what, cause=verdict.cause))
        # What was found missing is accounted for, so that only what goes missing from now on is found again. Afterwards: a kill in
        # between costs one more epoch; the other way round, it would cost the only one.
        words = self._capture.audit_words(slot)
        baseline = Baseline.from_words(words)
        offset = (baseline.offset_sectors or 0) + verdict.sectors
        audit.keep(words, replace(baseline, offset_sectors=offset))

    def _count_incidents(self) -> None:
        incidents = self._capture.incidents()
        checks = (
            (Word.MISSES_SEEN, incidents.recursion_misses, Reason.CAPTURE_SKIPPED),
            (
                Word.PASSTHROUGH_SEEN,
                incidents.passthrough + incidents.unknown_range,
                Reason.PASSTHROUGH_WRITE,
            ),
        )
        for word, count, reason in checks:
            if count > self._state[word]:
                what = f"Capture may have missed {count - self._state[word]} writes"
                self._lose(reason, AuditShortfallError(what, cause=reason.text))
                self._state[word] = count

    def end_epoch(self, reason: Reason) -> None:
        """The stream cannot go on where it stopped, though capture missed nothing: the other end lost its part, or is not ours."""
        self._want_epoch(reason)
        self._note(reason, EpochEndedError(f"Epoch {self._over} cannot be continued", cause=reason.text))

    def _lose(self, reason: Reason, error: DeviceError, suspicion: Suspicion | None = None) -> None:
        self._want_epoch(reason, suspicion or self._since_exact())
        self._note(reason, error)

    def _since_exact(self) -> Suspicion:
        """A write that went past capture since the last exact look is missing behind what had been cut when that look began. Before the
        first such look of this agent nothing was ever proved: every point is suspect. (The time: the earliest that the wall clock can
        have shown since.)"""
        since_ns = self._exact_boot_ns + self._least_offset_ns if self._exact_boot_ns else 1
        return Suspicion(self._exact_at, max(since_ns, 1))

    def _want_epoch(self, reason: Reason, suspicion: Suspicion | None = None) -> None:
        self._over = self._state[Word.EPOCH] or self._over
        self._state.want_epoch(reason, suspicion)

    def _note(self, reason: Reason, error: UnderstudyError) -> None:
        _log.error("continuity lost: a new epoch begins", reason=reason.text, **error.as_dict())
        self._lost_at = time.monotonic()
        severity = "warning" if reason is Reason.MANUAL else "critical"
        key = f"epoch {self._over}"
        self._losses[reason, self._over] = Problem(**error.as_dict(), severity=severity, key=key)

    def summary(self) -> dict[str, Any]:
        """The newest verdict per disk, when all were exact last (Unix ns, 0: never), and what happened since capture was attached."""
        names = [disk.id for disk in self._capture.disks]
        return {
            "exact_ns": self._exact_boot_ns + clock.unix_offset_ns() if self._exact_boot_ns else 0,
            "incidents": asdict(self._capture.incidents()),
            "disks": {
                name: {"outcome": v.outcome.value, "sectors": v.sectors, "cause": v.cause}
                for name, v in zip(names, self._verdicts, strict=False)
            },
        }
