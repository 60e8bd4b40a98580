"""The audit (I2): does the kernel count more written sectors than capture saw?

The kernel counts a write's sectors in /sys/block/*/stat when it completes, failed ones too; capture counts
them when they enter the device (`seen`), and again when it sees them complete (`completed`). So at any
moment

    stat = completed + what completed unseen,    seen = completed + what is in flight.

Shortfall: stat is read FIRST, our counters second. What stat contains had been seen before, so stat > seen
proves that a write went past capture, however busy the disk is.

Exact: stat == seen proves that nothing went past capture, and that nothing is in flight. On a busy disk
stat == completed proves it for everything that has completed: a missed submission makes stat the larger,
and so does a missed completion, so they cannot cancel. That needs the two to be of one moment: our counters
are read before and after stat, and must not have moved (`still`).

Baseline: writes in flight at the attachment add to stat without having been seen. How much they added is
stat − completed at a still moment, once none of them is left (`settled`, the caller's knowledge). Between
our hook and the kernel's own addition lie some nanoseconds, and missed completions are accounted late, so
one moment is not believed: `SAME` in a row must agree. A later agreement on less corrects the baseline;
more is never believed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from agent.disks import SYSFS, Disk
from shared import logging

_WRITTEN_SECTORS, _DISCARDED_SECTORS = 6, 13
_WRAP: Final = (1 << 64) - 1
SAME: Final = 3
_ATTEMPTS: Final = 64

_log = logging.get()


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel counted: sectors written and discarded since boot, and whether it counts at all."""

    sectors: int
    counting: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a disk. `still`: neither of the counters moved while stat was read."""

    stat: Stat
    seen_sectors: int
    completed_sectors: int
    still: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """What stat and our counters differed by from the beginning."""

    stat_sectors: int
    """The kernel's count just before the attachment."""
    offset_sectors: int | None = None
    """What it counted since then of writes from before the attachment; None while that is not known."""

    def words(self) -> list[int]:
        """As kept in `Capture.audit_words`."""
        known = self.offset_sectors is not None
        return [self.stat_sectors & _WRAP, (self.offset_sectors or 0) & _WRAP, int(known)]

    @staticmethod
    def from_words(words: npt.NDArray[np.uint64]) -> Baseline:
        signed = words.view(np.int64)
        return Baseline(int(signed[0]), int(signed[1]) if words[2] else None)


class Outcome(enum.Enum):
    EXACT = "exact"
    """Every write that completed was seen."""
    IN_FLIGHT = "in-flight"
    """Nothing is known to be missing; writes in flight hide the rest."""
    SHORTFALL = "shortfall"
    """Writes went past capture."""
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True, slots=True)
class Verdict:
    outcome: Outcome
    sectors: int = 0
    """SHORTFALL: at least so many are missing. IN_FLIGHT: so many lie between capture and the kernel's
    count."""
    cause: str = ""


def compare(sample: Sample, baseline: Baseline) -> Verdict:
    """Judges one disk. Pure."""
    if not sample.stat.counting:
        return Verdict(
            Outcome.UNVERIFIABLE, cause="the kernel does not count this disk's sectors (iostats = 0)"
        )
    if baseline.offset_sectors is None:
        cause = "writes from before the attachment cannot be told apart yet"
        return Verdict(Outcome.UNVERIFIABLE, cause=cause)
    counted = sample.stat.sectors - baseline.stat_sectors - baseline.offset_sectors
    if counted > sample.seen_sectors:
        cause = "the kernel counted more written sectors than capture saw"
        return Verdict(Outcome.SHORTFALL, counted - sample.seen_sectors, cause)
    if counted == sample.seen_sectors or (sample.still and counted == sample.completed_sectors):
        return Verdict(Outcome.EXACT)
    return Verdict(Outcome.IN_FLIGHT, sample.seen_sectors - counted)


class Settling:
    """Finds the baseline of one disk from samples that are taken after it settled. Pure, but for its memory
    of the last ones."""

    def __init__(self) -> None:
        self._candidate: int | None = None
        self._agreed = 0

    def step(self, sample: Sample, baseline: Baseline) -> Baseline:
        if not sample.still or not sample.stat.counting:
            return baseline
        candidate = sample.stat.sectors - baseline.stat_sectors - sample.completed_sectors
        self._agreed = self._agreed + 1 if candidate == self._candidate else 1
        self._candidate = candidate
        known = baseline.offset_sectors
        if self._agreed >= SAME and (known is None or candidate < known):
            return replace(baseline, offset_sectors=candidate)
        return baseline


class AuditedCapture(Protocol):
    """What the audit needs of `agent.capture.Capture`."""

    @property
    def disks(self) -> tuple[Disk, ...]: ...
    def sector_counts(self, disk: int, /) -> tuple[int, int]: ...
    def audit_words(self, disk: int, /) -> npt.NDArray[np.uint64]: ...


class Auditor:
    """Samples the disks and keeps their baselines in the capture's pinned memory."""

    def __init__(self, capture: AuditedCapture, *, sysfs: Path = SYSFS) -> None:
        self._capture = capture
        self._sysfs = sysfs
        self._settling = [Settling() for _ in capture.disks]

    def check(self, *, settled: bool) -> list[Verdict]:
        """One verdict per disk, by slot; takes some milliseconds. `settled`: no write from before the
        attachment can be in flight. Raises OSError when a disk is gone.

        A disk whose counting was switched off is switched on again, and gets a new baseline: that verdict,
        and only that, says so.
        """
        return [self._check(slot, disk, settled) for slot, disk in enumerate(self._capture.disks)]

    def _check(self, slot: int, disk: Disk, settled: bool) -> Verdict:
        words = self._capture.audit_words(slot)
        baseline = Baseline.from_words(words)
        verdict = Verdict(Outcome.UNVERIFIABLE)
        for _ in range(_ATTEMPTS):
            sample = self.sample(slot)
            if settled:
                baseline = self._settling[slot].step(sample, baseline)
            verdict = compare(sample, baseline)
            if (
                verdict.outcome in (Outcome.EXACT, Outcome.SHORTFALL)
                or not sample.stat.counting
                or not settled
            ):
                break
        if not sample.stat.counting:
            _log.warning("iostats was off", disk=disk.name, action="switched on; the audit begins anew")
            (self._sysfs / f"block/{disk.name}/queue/iostats").write_text("1")
            baseline = Baseline(read_stat(disk, sysfs=self._sysfs).sectors)
            self._settling[slot] = Settling()
        words[:3] = baseline.words()
        return verdict

    def sample(self, slot: int) -> Sample:
        before = self._capture.sector_counts(slot)
        stat = read_stat(self._capture.disks[slot], sysfs=self._sysfs)
        seen, completed = self._capture.sector_counts(slot)
        return Sample(stat, seen, completed, before == (seen, completed))


def read_stat(disk: Disk, *, sysfs: Path = SYSFS) -> Stat:
    folder = sysfs / f"block/{disk.name.replace('/', '!')}"
    counting = (folder / "queue/iostats").read_text().strip() != "0"
    fields = (folder / "stat").read_text().split()
    discarded = int(fields[_DISCARDED_SECTORS]) if len(fields) > _DISCARDED_SECTORS else 0
    return Stat(int(fields[_WRITTEN_SECTORS]) + discarded, counting)
