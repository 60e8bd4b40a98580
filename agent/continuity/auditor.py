"""The look, once a second: runs the audit, and decides what follows when a write may have gone past capture.

A shortfall, a skipped run of a capture program, a passthrough write, a device that hides writes: the stream has a hole that nobody can
locate, so a new epoch is wanted, with its reason and the position behind which points are suspect (`losses`). Everything else here is what
a clean audit permits: to call what is read final once no write from before capture is in flight, and to forget writes that only seem to be
in flight (`settling`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from agent.capture import audit
from agent.capture.audit import Baseline, Outcome, Sample, Verdict
from agent.capture.look import Refusing
from agent.capture.maps import Capture
from agent.capture.watch import Watch
from agent.continuity.counting import Counting
from agent.continuity.hanging import Hanging
from agent.continuity.losses import Losses
from agent.continuity.patience import Patience
from agent.continuity.presence import Presence
from agent.continuity.refusing import OutOfRoom
from agent.continuity.settling import Settling
from agent.continuity.unaudited import Unaudited
from agent.stream import clock
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Reason, Word
from agent.stream.unreadable import Unreadable
from shared.batch import SECTOR
from shared.daemon import logging
from shared.errors import AuditBlindError, AuditShortfallError, cause_of
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

INTERVAL_S: Final = 1.0
_LOOKS: Final = 20
"""For a quiet moment, between two looks of the audit: the gaps of a busy disk are short."""
_NOT_COUNTED: Final = (
    "Capture goes on; what it might miss would not be noticed. Resynchronise the machine now and then."
)


class Continuity:
    def __init__(
        self,
        capture: Capture,
        state: AgentState,
        rounds: Rounds,
        watch: Watch,
        unreadable: Callable[[], Unreadable],
    ) -> None:
        self._capture = capture
        self._state = state
        self._verdicts: list[Verdict] = []
        self._blind: list[Problem] = []
        self._losses = Losses(state)
        self._presence = Presence(capture, state, rounds, watch, self._losses)
        self._settling = Settling(capture, rounds)
        self._counting = Counting(capture)
        self._unaudited = Unaudited()
        patience = Patience(state.patience_words)
        self._hanging = Hanging(capture, state, rounds, watch, patience)
        self._out_of_room = OutOfRoom(capture, state, rounds, unreadable, patience)
        self.refusing: dict[str, Refusing] = {}
        """By id, what was given up for that (`refusing`)."""
        self.looked_at = time.monotonic()
        """When the last look at all disks began."""

    @property
    def resized(self) -> asyncio.Event:
        """Set when capture does not fit the disks any more."""
        return self._presence.resized

    async def run(self) -> None:
        while True:
            self.check()
            looks = 1 if self._state[Word.SETTLED] else _LOOKS
            for _ in range(looks):
                if not self._state[Word.SETTLED]:
                    self._settling.look()
                await asyncio.sleep(INTERVAL_S / looks)

    def check(self) -> None:
        """One look at all disks; takes some milliseconds."""
        self.looked_at = time.monotonic()
        looked_ns, cut = clock.boot_ns(), self._state.last_cut
        self._losses.looks()
        self._presence.look()
        self._hanging.look(self._presence.gone)
        removed = self._capture.removed()
        if removed:
            self._presence.lose_capture(removed)
            return
        self._presence.go_on_without(self.looked_at, looked_ns, cut, asking=bool(self._hanging.unread))
        self._give_up_silent()
        self._give_up_for_lack_of_room()
        self._lose_what_is_hidden()
        if not self._presence.gone:
            # Before the audit: what passes the block layer, or whose range is unknown, is not in the sectors that the audit compares.
            self._count_incidents()
        self._verdicts = [
            self._unaudited.judge(slot, self._audit_if_there(slot), self.looked_at)
            for slot in range(len(self._capture.disks))
        ]
        self._look_at_counting()
        for slot, verdict in enumerate(self._verdicts):
            if verdict.outcome is Outcome.SHORTFALL:
                self._shortfall(slot, verdict)
        exact = {slot for slot, verdict in enumerate(self._verdicts) if verdict.outcome is Outcome.EXACT}
        if len(exact) == len(self._verdicts):
            self._losses.is_exact(looked_ns, cut)
        self._settling.forget_stale(exact, self._sample)
        self._losses.forget()

    def _give_up_silent(self) -> None:
        if not self.resized.is_set() and (disks := self._hanging.give_up(self._presence.gone)):
            self._presence.begin_anew(
                "the others go on without disks that do not answer", disks=sorted(disks)
            )

    def _give_up_for_lack_of_room(self) -> None:
        if not self.resized.is_set() and (found := self._out_of_room.give_up(self._presence.gone)):
            self.refusing = found
            self._presence.begin_anew(
                "the others go on without a disk of which too much cannot be read", disks=[*found]
            )

    def _lose_what_is_hidden(self) -> None:
        """Capture is fitted to the others: such a disk is left out, and says why."""
        for disk, hider in zip(self._capture.disks, self._counting.hidden_by, strict=True):
            if hider and not self.resized.is_set():
                cause = f"{hider} was put over it, through which it is written past capture"
                error = AuditShortfallError(f"Capture may have missed writes to {disk.id}", cause=cause)
                self._losses.lose(Reason.AUDIT_SHORTFALL, error)
                self._presence.begin_anew("a device over a disk hides its writes", disk=disk.id, by=hider)

    @property
    def problems(self) -> list[Problem]:
        """How continuity was lost; disks that are gone; disks that hang; disks that cannot be audited."""
        bad = self._presence.gone | self._hanging.problems
        return [*self._losses.problems, *bad.values(), *self._blind]

    def state_of(self, slot: int) -> str:
        """What is wrong with the disk itself, in a word; empty when it is there and answers."""
        return "gone" if slot in self._presence.gone else "hangs" if slot in self._hanging.problems else ""

    def end_epoch(self, reason: Reason) -> None:
        """The stream cannot go on where it stopped, though capture missed nothing: the other end lost its part, or is not ours."""
        self._losses.end_epoch(reason)

    def _look_at_counting(self) -> None:
        self._counting.look()
        trouble = self._counting.trouble
        blind = [Problem(**trouble.as_dict(), severity=Severity.WARNING)] if trouble is not None else []
        for slot, (disk, verdict) in enumerate(zip(self._capture.disks, self._verdicts, strict=True)):
            if verdict.cause == audit.DRIVER:
                error = AuditBlindError(
                    f"Capture of {disk.id} cannot be audited", cause=verdict.cause, action=_NOT_COUNTED
                )
                blind.append(Problem(**error.as_dict(), severity=Severity.WARNING, object=disk.id))
            for said in (self._counting.error(slot), self._unaudited.error(slot, disk.id, self.looked_at)):
                if said is not None:
                    blind.append(Problem(**said.as_dict(), severity=Severity.WARNING, object=disk.id))
        if blind and not self._blind:
            _log.warning("the audit is blind", disk=blind[0].object, cause=blind[0].cause)
        self._blind = blind

    def _audit_if_there(self, slot: int) -> Verdict:
        try:
            return self._audit(slot)
        except OSError as exc:  # its counters go with the disk
            return Verdict(Outcome.UNVERIFIABLE, cause=f"{exc.filename}: {cause_of(exc)}")

    def _audit(self, slot: int) -> Verdict:
        """The verdict on one disk; on a busy one, from the first of some samples that is conclusive."""
        words, lacks = self._capture.audit_words(slot), True
        for _ in range(audit.ATTEMPTS):
            sample = self._sample(slot)
            baseline = Baseline.from_words(words)
            if self._state[Word.SETTLED]:
                baseline = audit.settle(sample, baseline)
                audit.keep(words, baseline)
            verdict = audit.compare(sample, baseline)
            if verdict.outcome in (Outcome.EXACT, Outcome.SHORTFALL):
                break
            lacks &= verdict.lacks
        return replace(verdict, lacks=lacks and verdict.lacks)

    def _sample(self, slot: int) -> Sample:
        before = self._capture.sector_counts(slot)
        stat = audit.read_stat(self._capture.disks[slot], counting=self._counting.counts(slot))
        seen, completed = self._capture.sector_counts(slot)
        return Sample(stat, seen, completed, before == (seen, completed), before[1])

    def _shortfall(self, slot: int, verdict: Verdict) -> None:
        disk = self._capture.disks[slot].id
        what = f"{verdict.sectors} sectors ({verdict.sectors * SECTOR} bytes) were written to {disk} past capture"
        self._losses.lose(Reason.AUDIT_SHORTFALL, AuditShortfallError(what, cause=verdict.cause))
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
                self._losses.lose(reason, AuditShortfallError(what, cause=reason.text))
                self._state[word] = count

    def summary(self) -> dict[str, Any]:
        """The newest verdict per disk, when all were exact last (Unix ns, 0: never), and what happened since capture was attached."""
        names = [disk.id for disk in self._capture.disks]
        return {
            "exact_ns": self._losses.exact_boot_ns + clock.unix_offset_ns()
            if self._losses.exact_boot_ns
            else 0,
            "incidents": asdict(self._capture.incidents()),
            "disks": {
                name: {"outcome": v.outcome.value, "sectors": v.sectors, "cause": v.cause}
                for name, v in zip(names, self._verdicts, strict=False)
            },
        }
