"""Continuity is lost: a new epoch is wanted, with its reason and the position behind which points are suspect; people are shown why."""

from __future__ import annotations

import time
from typing import Final

from agent.stream import clock
from agent.stream.state import AgentState, Reason, Suspicion, Word
from shared.daemon import logging
from shared.errors import DeviceError, EpochEndedError, UnderstudyError
from shared.recovery.position import NOWHERE, Position
from shared.status import Problem
from shared.vocabulary import Severity

_log = logging.get()

SHOWN_S: Final = 300.0
"""A new epoch may be ordered again within seconds: people, and a config server that was away, shall still see why it began."""


class Losses:
    def __init__(self, state: AgentState) -> None:
        self._state = state
        self.exact_boot_ns = 0
        """Boot-clock time of the last look at which all was exact; 0: none was."""
        self._exact_at = NOWHERE
        """What was cut when that look began: the last that is proved to lack nothing."""
        self._least_offset_ns = clock.unix_offset_ns()
        """Of the wall clock, since then."""
        self._lost_at = 0.0
        self._shown: dict[tuple[Reason, int], Problem] = {}
        """By reason, and by the epoch that is over for it."""
        self._over = 0
        """The epoch that ended last; until the next has begun, what happens is of it."""

    @property
    def problems(self) -> list[Problem]:
        """Shown until the epoch that repairs it is ordered, and for some minutes at least."""
        return [*self._shown.values()]

    def looks(self) -> None:
        """At the beginning of each look."""
        self._least_offset_ns = min(self._least_offset_ns, clock.unix_offset_ns())

    def is_exact(self, looked_ns: int, cut: Position) -> None:
        """At the look that began then, when so much was cut, nothing was missing."""
        self.exact_boot_ns, self._exact_at = looked_ns, cut
        self._least_offset_ns = clock.unix_offset_ns()

    def forget(self) -> None:
        """What has been shown for long enough."""
        if self._state[Word.EVER_ORDERED] and time.monotonic() - self._lost_at > SHOWN_S:
            self._shown.clear()

    def end_epoch(self, reason: Reason) -> None:
        """The stream cannot go on where it stopped, though capture missed nothing: the other end lost its part, or is not ours."""
        self._want_epoch(reason)
        self._note(reason, EpochEndedError(f"Epoch {self._over} cannot be continued", cause=reason.text))

    def lose(self, reason: Reason, error: DeviceError, suspicion: Suspicion | None = None) -> None:
        self._want_epoch(reason, suspicion or self._since_exact())
        self._note(reason, error)

    def _since_exact(self) -> Suspicion:
        """A write that went past capture since the last exact look is missing behind what had been cut when that look began. Before the
        first such look of this agent nothing was ever proved: every point is suspect. (The time: the earliest that the wall clock can
        have shown since.)"""
        since_ns = self.exact_boot_ns + self._least_offset_ns if self.exact_boot_ns else 1
        return Suspicion(self._exact_at, max(since_ns, 1))

    def _want_epoch(self, reason: Reason, suspicion: Suspicion | None = None) -> None:
        self._over = self._state[Word.EPOCH] or self._over
        self._state.want_epoch(reason, suspicion)

    def _note(self, reason: Reason, error: UnderstudyError) -> None:
        _log.error("continuity lost: a new epoch begins", reason=reason.text, **error.as_dict())
        self._lost_at = time.monotonic()
        severity = Severity.WARNING if reason is Reason.MANUAL else Severity.CRITICAL
        key = f"epoch {self._over}"
        self._shown[reason, self._over] = Problem(**error.as_dict(), severity=severity, key=key)
