"""Writes in flight: when those from before capture have ended (what is read then is final), and which only seem to be in flight.

**A completion that was not seen** leaves its write open, and catch-up would wait for it for ever. It is forgotten when the disk's own
counts prove that nothing that capture saw is in flight on it: the audit was exact, and at one moment, at which our counters stand still,

- the kernel has counted as many sectors as capture ever saw there, since no write went past capture (that is what the audit says); and
- it has no write in flight there. Before Linux 6.3 a driver without requests counts the sectors of a write when it *begins*: by the first
  alone a write that hangs would be forgotten, its place read, and what it then writes would be in no stream.

So all that were open before that moment have completed, those from before `STALE_S` among them. (Younger ones are not asked about: their
completion may be on its way to be seen.) Nothing here is of another disk: a write is open, seen, counted and in flight on the disk that it
is to, each of the two where one disk hands on the bio to another. Hence a disk that cannot be audited keeps its own open, and no other's.

A busy disk has such moments, and short ones: as many samples are taken in a look as the audit takes, each of which proves it by itself or
proves nothing. One that never has any keeps them open, and order waits: US587 and US597 say so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import numpy as np

from agent.capture.audit import ATTEMPTS, Baseline, Sample
from agent.capture.disks import SYSFS, still_stands
from agent.capture.maps import Capture
from agent.stream import clock
from agent.stream.rounds import Rounds
from shared.daemon import logging
from shared.errors import cause_of

_log = logging.get()

SETTLE_QUIET_S: Final = 1.0
"""A moment without any write in flight proves that those from before the attachment have ended, but only after this long…"""
SETTLE_S: Final = 120.0
"""…and on a disk that is never seen quiet, they are taken to have ended after this long."""
STALE_S: Final = 5.0
"""An open write that is older than this, on a disk where nothing is in flight, has completed unseen."""


class Settling:
    def __init__(self, capture: Capture, rounds: Rounds) -> None:
        self._capture = capture
        self._rounds = rounds
        self._unsettled_ns = capture.attached_boot_ns if capture.fresh else 0
        """Since when (boot clock) it is not known which writes are in flight; 0: to be noted at the next look."""
        self._were_quiet: set[int] = set()
        """Disks on which a moment without any write in flight was seen since then."""

    def look(self) -> None:
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
        seen, completed = self._capture.sector_counts(slot)
        return seen == completed and not self._in_flight(slot)

    def _in_flight(self, slot: int) -> bool:
        """Whether the kernel has writes of the disk in flight, or that cannot be told."""
        disk = self._capture.disks[slot]
        try:
            inflight = (SYSFS / "block" / disk.name.replace("/", "!") / "inflight").read_text()
        except OSError as exc:  # a disk is gone, which `check` shows
            _log.debug("writes in flight: not known", path=exc.filename, cause=cause_of(exc))
            return True
        return bool(int(inflight.split()[1])) or not still_stands(disk, sysfs=SYSFS)

    def forget_stale(self, exact: Collection[int], sample_of: Callable[[int], Sample]) -> None:
        """`exact`: the disks on which the audit was, just now."""
        until_ns = clock.boot_ns() - int(STALE_S * 1e9)
        opened = self._capture.open_writes()
        with_old = {*opened["disk"][opened["since_ns"] <= np.uint64(max(until_ns, 0))].tolist()}
        asked = sorted(with_old & {*exact})
        # A few milliseconds in all, however many disks hang.
        attempts = max(1, ATTEMPTS // max(1, len(asked)))
        over = [slot for slot in asked if self._is_over(slot, sample_of, attempts)]
        if not over:
            return
        forgotten = self._capture.forget_open(until_ns, over)
        # Whether these writes failed was not seen either: what the disk holds there is read once more.
        self._rounds.read_again(forgotten)
        _log.info("completions that were not seen", writes=len(forgotten))

    def _is_over(self, slot: int, sample_of: Callable[[int], Sample], attempts: int) -> bool:
        """Whether at one moment all that was ever seen of the disk's writes had completed."""
        baseline = Baseline.from_words(self._capture.audit_words(slot))
        try:
            return any(self._proves(slot, sample_of(slot), baseline) for _ in range(attempts))
        except OSError as exc:  # it went away just now
            _log.debug("sectors written: not known", path=exc.filename, cause=exc.strerror)
            return False

    def _proves(self, slot: int, sample: Sample, baseline: Baseline) -> bool:
        counted = sample.stat.sectors - baseline.stat_sectors - (baseline.offset_sectors or 0)
        if not sample.still or counted != sample.seen_sectors or self._in_flight(slot):
            return False
        return self._capture.sector_counts(slot) == (sample.seen_sectors, sample.completed_sectors)
