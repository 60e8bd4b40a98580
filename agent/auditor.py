"""Runs the audit: once a second, for every disk, whether the kernel wrote more sectors than capture saw; and what follows from it.

A shortfall, a skipped run of a capture program, a passthrough write: continuity is lost, so a new epoch is wanted, with its reason and the
time since when points are suspect. Exact equality also proves that nothing is in flight: writes that seem open then are stale.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, Final

from agent import audit
from agent.audit import Baseline, Outcome, Sample, Verdict
from agent.capture import Capture
from agent.disks import SYSFS
from agent.state import AgentState, Reason, Word
from agent.stream import Stream
from shared import logging
from shared.batch import SECTOR
from shared.errors import AuditShortfallError
from shared.status import Problem

_log = logging.get()

INTERVAL_S: Final = 1.0
SETTLE_QUIET_S: Final = 1.0
"""A moment without any write in flight counts as proof for what was there before the attachment only after this long…"""
SETTLE_S: Final = 120.0
"""…and on a disk that is never quiet, writes from before the attachment are taken to have ended after this long."""
_ATTEMPTS: Final = 20


class Auditor:
    def __init__(self, capture: Capture, state: AgentState, stream: Stream) -> None:
        self._capture = capture
        self._state = state
        self._stream = stream
        self._verdicts: list[Verdict] = []
        self._exact_ns = 0
        """Wall-clock time of the last moment at which every disk was exact."""
        self.problems: list[Problem] = []
        self._last_rates = (time.monotonic(), 0, 0)
        self._rates: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(INTERVAL_S)

    def check(self) -> None:
        """One look at all disks."""
        samples = [self._sample(slot) for slot in range(len(self._capture.disks))]
        self._settle(samples)
        now_ns = time.time_ns()
        self._verdicts = []
        for slot, sample in enumerate(samples):
            words = self._capture.audit_words(slot)
            baseline = Baseline.from_words(words)
            verdict = audit.compare(sample, baseline)
            self._verdicts.append(verdict)
            if verdict.outcome is Outcome.SHORTFALL:
                # What was found missing is accounted for at once, so that only what goes missing from now on is found again.
                words[:] = replace(
                    baseline, offset_sectors=(baseline.offset_sectors or 0) + verdict.sectors
                ).words()
                self._shortfall(slot, verdict)
        if all(verdict.outcome is Outcome.EXACT for verdict in self._verdicts):
            self._exact_ns = now_ns
        self._count_incidents()
        if self._state[Word.EVER_ORDERED]:
            self.problems = []

    def _sample(self, slot: int) -> Sample:
        """The stat first, our counters second; again until nothing moved meanwhile, as far as the disk allows it."""
        for _ in range(_ATTEMPTS):
            before = self._capture.counters(slot)
            stat = audit.read_stat(self._capture.disks[slot])
            after = self._capture.counters(slot)
            still = before == after
            if still:
                break
        return Sample(stat, after.seen_sectors, after.completed_sectors, still)

    def _settle(self, samples: list[Sample]) -> None:
        since_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._capture.attached_boot_ns) / 1e9
        if not self._state[Word.SETTLED]:
            quiet = all(
                sample.still and sample.seen_sectors == sample.completed_sectors and _inflight(disk.name) == 0
                for sample, disk in zip(samples, self._capture.disks, strict=True)
            )
            if not ((quiet and since_s > SETTLE_QUIET_S) or since_s > SETTLE_S):
                return
            self._stream.settle()
            _log.info("writes from before capture have ended", after_s=round(since_s, 1))
        for slot, sample in enumerate(samples):
            words = self._capture.audit_words(slot)
            words[:] = audit.settle(sample, Baseline.from_words(words)).words()

    def _shortfall(self, slot: int, verdict: Verdict) -> None:
        disk = self._capture.disks[slot].name
        error = AuditShortfallError(
            f"{verdict.sectors} sectors ({verdict.sectors * SECTOR} bytes) were written to {disk} past capture",
            cause=verdict.cause,
        )
        self._lose_continuity(Reason.AUDIT_SHORTFALL, error)

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
                error = AuditShortfallError(
                    f"Capture may have missed {count - self._state[word]} writes", cause=reason.text
                )
                self._state[word] = count
                self._lose_continuity(reason, error)

    def _lose_continuity(self, reason: Reason, error: AuditShortfallError) -> None:
        _log.error("continuity lost: a new epoch begins", reason=reason.text, **error.as_dict())
        self._state[Word.SUSPECT_SINCE_NS] = self._exact_ns
        self._state.want_epoch(reason)
        self.problems.append(Problem(**error.as_dict(), severity="critical"))

    # -- for status ----------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """The newest verdict per disk, and when all were exact last (Unix ns, 0: never)."""
        names = [disk.name for disk in self._capture.disks]
        return {
            "exact_ns": self._exact_ns,
            "disks": {
                name: {"outcome": v.outcome.value, "sectors": v.sectors, "cause": v.cause}
                for name, v in zip(names, self._verdicts, strict=False)
            },
        }

    def rates(self, *, captured_b: int, sent_b: int) -> dict[str, float]:
        """Bytes per second since the last call, from running totals."""
        then, captured, sent = self._last_rates
        now = time.monotonic()
        if now - then >= 1.0:
            if captured or sent:
                seconds = now - then
                self._rates = {
                    "captured_b_per_s": (captured_b - captured) / seconds,
                    "sent_b_per_s": (sent_b - sent) / seconds,
                }
            self._last_rates = (now, captured_b, sent_b)
        return self._rates


def _inflight(name: str) -> int:
    """Writes that the block layer has handed to the driver."""
    return int((SYSFS / "block" / name.replace("/", "!") / "inflight").read_text().split()[1])
