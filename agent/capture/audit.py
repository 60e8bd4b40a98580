"""The audit (I2): does the kernel count more written sectors than capture saw?

The kernel counts a write's sectors in /sys/block/*/stat when it completes, failed ones too; capture counts
them when they enter the device (`seen`), and again when it sees them complete (`completed`). So at any
moment

    stat = completed + what completed unseen,    seen = completed + what is in flight.

Shortfall: stat is read FIRST, our counters second. What stat contains had been seen before, so stat > seen
proves that a write went past capture, however busy the disk is.

Exact: stat == completed. A missed submission makes stat the larger, and so does a missed completion, so
they cannot cancel. The two must be of one moment: our counters are read before and after stat, and must not
have moved (`still`). Also exact is stat == seen, for an idle disk on which a completion was missed; should
just as many sectors have gone past capture as are in flight, that is wrong until the next look. (Before Linux 6.3 a driver without requests
counts a write when it begins: there stat == seen also while it is in flight. What wants to know that asks for it: `settling`.)

Baseline: writes in flight at the attachment add to stat without having been seen. How much they added is
stat − completed at a still moment, once none of them is left (`settled`, the caller's knowledge). Between
our hook and the kernel's own addition lie some nanoseconds, and missed completions are accounted late, so
one moment is not believed: `SAME` in a row must agree. A later agreement on less corrects the baseline;
more is never believed.

Drivers that count less: who takes bios without requests counts by himself. Compared on Linux 6.1 and 6.12, write by write (direct,
buffered, over borders of chunks, fsync, FUA, discards, write-zeroes, fallocate): dm linear, striped and crypt, md raid1 and loop (6.12)
count each sector once, as capture sees it. md raid0 counts no discards, md linear (6.1) nothing at all; nor does any md whose iostats
are 0. None counts more than capture sees, which would be a shortfall that is none. What is counted less can hide as much that went past
capture: such a disk is UNVERIFIABLE from then on (`DRIVER`). On an idle disk one look tells. On one that is never idle what lacks could be
in flight; but not what had completed before stat was read (`lacks`): of that only what is between the two hooks just then, for nanoseconds.
A disk on which something of that lacks at every attempt of `LACKING` looks in a row is taken for such a one.

Going back: stat is a sum over processors, each of which only grows, and a later look reads each of them later; so stat only grows, too,
while the disk lives. A look that finds less than the one before (`went_back`) proves that the kernel began to count anew: the disk was
emptied or exchanged under its number (a reset of zram does that), and nothing is known of its content.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.disks import SYSFS, Disk, still_stands

_WRITTEN_SECTORS, _DISCARDED_SECTORS = 6, 13
_WRAP: Final = (1 << 64) - 1
SAME: Final = 3
ATTEMPTS: Final = 32
"""How many samples of a busy disk are taken in one look, for a moment at which nothing is written: its gaps are short."""
LACKING: Final = 60
DRIVER: Final = "the disk's driver does not count all that is written"
UNTOLD: Final = "writes from before the attachment cannot be told apart yet"


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
    completed_before_sectors: int = 0
    """What had completed when stat was read; 0: not known."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What stat and our counters differed by from the beginning, as far as it is known."""

    stat_sectors: int
    """The kernel's count just before the attachment."""
    offset_sectors: int | None = None
    """What it counted since then of writes from before the attachment; None while that is not known."""
    candidate_sectors: int = 0
    """The offset that the last still sample spoke for, and how many in a row did."""
    agreed: int = 0
    gap: bool = False
    """The kernel's counting was off for a while, so it may have counted less than was written."""
    last_sectors: int = 0
    """What the kernel's count was at the last look."""

    def words(self) -> list[int]:
        """As kept in `Capture.audit_words`."""
        known = self.offset_sectors is not None
        numbers = (
            self.stat_sectors,
            self.offset_sectors or 0,
            int(known) | int(self.gap) << 1,
            self.candidate_sectors,
            self.agreed,
            self.last_sectors,
        )
        return [number & _WRAP for number in numbers]

    @staticmethod
    def from_words(words: npt.NDArray[np.uint64]) -> Baseline:
        stat, offset, flags, candidate, agreed, last = words[:6].view(np.int64).tolist()
        # Captures from before the last look was kept have the gap in its place, as 1.
        gap = bool(flags & 2) or last == 1
        return Baseline(stat, offset if flags & 1 else None, candidate, agreed, gap, last)


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
    lacks: bool = False
    """The kernel had counted less than had completed before."""


def keep(words: npt.NDArray[np.uint64], baseline: Baseline) -> None:
    """Stores the baseline where it outlives the agent, word by word."""
    kept = baseline.words()
    for at in np.flatnonzero(words[: len(kept)] != np.array(kept, np.uint64)).tolist():
        words[at] = kept[at]


def compare(sample: Sample, baseline: Baseline) -> Verdict:
    """Judges one disk. Pure."""
    if not sample.stat.counting:
        return Verdict(
            Outcome.UNVERIFIABLE, cause="the kernel does not count this disk's sectors (iostats = 0)"
        )
    idle = sample.still and sample.seen_sectors == sample.completed_sectors
    counted = sample.stat.sectors - baseline.stat_sectors
    lacks = not baseline.gap and counted < sample.completed_before_sectors
    counted -= baseline.offset_sectors or 0
    if idle and not baseline.gap and counted < sample.seen_sectors:
        return Verdict(Outcome.UNVERIFIABLE, cause=DRIVER)
    if baseline.offset_sectors is None:
        return Verdict(Outcome.UNVERIFIABLE, cause=UNTOLD, lacks=lacks)
    if counted > sample.seen_sectors:
        cause = "the kernel counted more written sectors than capture saw"
        return Verdict(Outcome.SHORTFALL, counted - sample.seen_sectors, cause)
    if sample.still and counted in (sample.completed_sectors, sample.seen_sectors):
        return Verdict(Outcome.EXACT)
    return Verdict(Outcome.IN_FLIGHT, sample.seen_sectors - counted, lacks=lacks)


def went_back(stat: Stat, baseline: Baseline) -> bool:
    """Whether the kernel began to count anew since the last look. Pure."""
    return stat.sectors < baseline.last_sectors


def begun_anew(stat: Stat, completed_sectors: int) -> Baseline:
    """The baseline of a disk whose count begins anew, while ours goes on. Pure.

    `completed_sectors` is read behind `stat`, so what they differ by is never overestimated, and `settle` finds the rest as an offset."""
    return Baseline(stat.sectors - completed_sectors, last_sectors=stat.sectors)


def settle(sample: Sample, baseline: Baseline) -> Baseline:
    """One step towards the offset, from a sample taken when no write from before the attachment can be in
    flight. Pure.

    A sample without counting makes everything unknown again: what was written meanwhile cannot be found out.
    """
    if not sample.stat.counting:
        return Baseline(baseline.stat_sectors, gap=True, last_sectors=baseline.last_sectors)
    if not sample.still:
        return baseline
    candidate = sample.stat.sectors - baseline.stat_sectors - sample.completed_sectors
    agreed = min(baseline.agreed + 1, SAME) if candidate == baseline.candidate_sectors else 1
    known = baseline.offset_sectors
    believable = candidate >= 0 or baseline.gap
    if agreed >= SAME and believable and (known is None or candidate < known):
        known = candidate
    return replace(baseline, offset_sectors=known, candidate_sectors=candidate, agreed=agreed)


def read_stat(disk: Disk, *, counting: bool = True, sysfs: Path = SYSFS) -> Stat:
    """Never waits for the disk. `counting`: what its queue said last, which may make wait (disks.Queue). Raises OSError when the disk is
    gone, also when another has its name by now: those are other counts."""
    folder = sysfs / f"block/{disk.name.replace('/', '!')}"
    fields = (folder / "stat").read_text().split()
    if not still_stands(disk, sysfs=sysfs):
        raise FileNotFoundError(errno.ENODEV, "it is another disk's now", str(folder / "stat"))
    discarded = int(fields[_DISCARDED_SECTORS]) if len(fields) > _DISCARDED_SECTORS else 0
    return Stat(int(fields[_WRITTEN_SECTORS]) + discarded, counting)
