"""The audit (I2): does the kernel count more written sectors than capture saw?

The kernel counts a write's sectors in /sys/block/*/stat when it completes, failed ones too; capture counts
them when they enter the device (`seen`) and again when it sees them complete (`completed`). So at any
moment

    stat = completed + what completed unseen,    seen = completed + what is in flight.

`stat` is read FIRST, our counters second: whatever stat contains had been seen before, so stat > seen
proves that a write went past capture, however busy the disk is. stat == seen proves that none did, and that
nothing is in flight. In between, stat == completed, with neither moving meanwhile, proves it for all that
has completed (a missed submission and a missed completion both make stat the larger, so they cannot
cancel).

The baseline is the difference that was there from the beginning: writes that were in flight when capture
was attached add to stat without having been seen. It can be fixed only when none of those is left
(`settled`), and is kept in pinned memory.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.disks import SYSFS, Disk

_WRITTEN_SECTORS, _DISCARDED_SECTORS = 6, 13
_ATTEMPTS: Final = 50
_WRAP: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel counted: sectors written and discarded since boot, and whether it counts at all."""

    sectors: int
    counting: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """`stat_sectors`: the kernel's count just before the attachment. `offset_sectors`: what it counted
    afterwards although capture could not have seen it; None while that is not known."""

    stat_sectors: int
    offset_sectors: int | None = None

    def words(self) -> list[int]:
        """As kept in `Capture.audit_words`."""
        if self.offset_sectors is None:
            return [self.stat_sectors & _WRAP, 0, 0, 0, 0, 0, 0]
        return [self.stat_sectors & _WRAP, self.offset_sectors & _WRAP, 1, 0, 0, 0, 0]

    @staticmethod
    def from_words(words: npt.NDArray[np.uint64]) -> Baseline:
        signed = words.view(np.int64)
        return Baseline(int(signed[0]), int(signed[1]) if words[2] else None)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `stat` was read before the counters; `still` says that none of them moved between two
    reads."""

    stat: Stat
    seen_sectors: int
    completed_sectors: int
    still: bool


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
    """SHORTFALL: how many are missing at least. IN_FLIGHT: how many are between capture and the kernel's
    count."""
    cause: str = ""


def compare(sample: Sample, baseline: Baseline) -> Verdict:
    """Judges one disk. Pure."""
    if not sample.stat.counting:
        return Verdict(
            Outcome.UNVERIFIABLE, cause="the kernel does not count this disk's sectors (iostats = 0)"
        )
    if baseline.offset_sectors is None:
        return Verdict(Outcome.UNVERIFIABLE, cause="writes from before the attachment may still be in flight")
    counted = sample.stat.sectors - baseline.stat_sectors - baseline.offset_sectors
    if counted > sample.seen_sectors:
        return Verdict(
            Outcome.SHORTFALL,
            counted - sample.seen_sectors,
            "the kernel counted more written sectors than capture saw",
        )
    if counted == sample.seen_sectors or (sample.still and counted == sample.completed_sectors):
        return Verdict(Outcome.EXACT)
    return Verdict(Outcome.IN_FLIGHT, sample.seen_sectors - counted)


def settle(sample: Sample, baseline: Baseline) -> Baseline:
    """Fixes the baseline from a sample taken when no write from before the attachment can be in flight. Pure.

    Only a sample in which nothing moved will do; any other leaves the baseline as it is.
    """
    if baseline.offset_sectors is not None or not sample.still or not sample.stat.counting:
        return baseline
    return replace(
        baseline, offset_sectors=sample.stat.sectors - baseline.stat_sectors - sample.completed_sectors
    )


def read_stat(disk: Disk, *, sysfs: Path = SYSFS) -> Stat:
    folder = sysfs / f"block/{disk.name.replace('/', '!')}"
    fields = (folder / "stat").read_text().split()
    discarded = int(fields[_DISCARDED_SECTORS]) if len(fields) > _DISCARDED_SECTORS else 0
    counting = (folder / "queue/iostats").read_text().strip() != "0"
    return Stat(int(fields[_WRITTEN_SECTORS]) + discarded, counting)
