"""How much work a disaster now would cost, measured by this server's own clock. No I/O; it remembers what it saw.

What is in storage carries times of the machine's clock, and that clock may be wrong, jump or stand. So those times are
never compared with this server's time of day. A daemon names the newest ordered state that the log index lists; when this
server first sees it named, it is as old as the machine's clock says *by itself*: the machine's time now (what its agent
sent, and what has passed here since) less the time of the capture. From then on its age grows with this server's monotonic
clock, whatever the machine's clock does: when uploads stop, the RPO grows.

What is left to the machine's clock is the time between capture and first sight. If it was set in between, nobody knows the age,
and no figure is given: the clock went by another time than this server's monotonic one from one report to the next; or the state
seems to come from the machine's future, or to be older than the one before it, both of which cannot be. That the state is at least
as old as it is known here stays certain, and is enough for an alarm. If the clock stands, all states look the same, and nothing is
certain at all. Only for a machine whose agent was never heard, the time of day is taken for its clock's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import Facts, Rpo
from config_server.rules.presence import Seen
from shared.recovery.position import parse_rfc3339

_SET_NS: Final = 5 * SECOND_NS
"""A clock that differs by more from one report to the next was set: no line is so uneven."""
_UNKNOWN: Final = "the machine's clock was set while its newest state was on its way to storage"
_STANDS: Final = "the machine's clock stands, so its newest state in storage looks like older ones"


class _State(msgspec.Struct, frozen=True):
    """The newest ordered state in storage, as one daemon names it."""

    epoch: int
    captured_ns: int
    seen_ns: int
    """Monotonic, here."""
    age_ns: int | None
    """When it was first seen; None: not known."""

    def age_at(self, now_ns: int) -> int | None:
        return None if self.age_ns is None else self.age_ns + now_ns - self.seen_ns


class _Clock:
    """A machine's clock, as its agent's reports show it."""

    def __init__(self) -> None:
        self.set_ns: int | None = None
        """When it was set last: the report (monotonic, here) before which that was."""
        self._heard_ns = self._shown_ns = 0
        self._slow_since_ns: int | None = None
        self._slow = 0
        """Reports in a row from one to the next of which it hardly moved."""

    def hear(self, seen: Seen) -> None:
        shown_ns = seen.report.sent_ns
        if not shown_ns or seen.heard_ns <= self._heard_ns:
            return
        if self._heard_ns and not seen.recovered_ns:
            passed_ns, went_ns = seen.heard_ns - self._heard_ns, shown_ns - self._shown_ns
            if abs(went_ns - passed_ns) > _SET_NS + seen.report.round_trip_ns:
                self.set_ns = seen.heard_ns
            if not 0 <= 2 * went_ns <= passed_ns:
                self._slow_since_ns, self._slow = None, 0
            else:
                self._slow_since_ns = self._slow_since_ns or self._heard_ns
                self._slow += 1
        self._heard_ns, self._shown_ns = seen.heard_ns, shown_ns

    @property
    def stands(self) -> bool:
        """Whether it has hardly moved for so long that it is no uneven line, nor set back once."""
        return (
            self._slow > 1
            and self._slow_since_ns is not None
            and self._heard_ns - self._slow_since_ns > _SET_NS
        )

    def was_set_since(self, moment_ns: int) -> bool:
        return self.set_ns is not None and self.set_ns >= moment_ns


class StorageProgress:
    def __init__(self) -> None:
        self._states: dict[tuple[str, str], _State] = {}
        self._clocks: dict[str, _Clock] = {}

    def rpo(self, machine: str, facts: Facts, now_ns: int, time_ns: int) -> Rpo:
        """`now_ns` is monotonic, `time_ns` the time of day.

        Both the process server and the agent know the newest state; the younger one counts. Both forget it when they start anew, and in a
        new epoch: until there is one again, the newest recovery point is what a restore would bring back."""
        clock = self._clocks.setdefault(machine, _Clock())
        if facts.agent is not None:
            clock.hear(facts.agent[0])
        machine_ns = _machine_ns(facts, now_ns, time_ns)
        named = [
            state
            for source, epoch, captured_ns in _named(facts)
            if (state := self._look(machine, source, epoch, captured_ns, machine_ns, now_ns))
        ]
        if not named and facts.last_point is not None:
            captured_ns = parse_rfc3339(facts.last_point.time) or 0
            epoch = facts.last_point.epoch
            if state := self._look(machine, "point", epoch, captured_ns, machine_ns, now_ns):
                named = [state]
        if not named:
            return Rpo()
        if clock.stands:
            return Rpo(unknown=_STANDS)
        at_least_s = min(now_ns - state.seen_ns for state in named) / SECOND_NS
        ages = [age for state in named if (age := state.age_at(now_ns)) is not None]
        if not ages:
            return Rpo(at_least_s=at_least_s, unknown=_UNKNOWN)
        return Rpo(seconds=min(ages) / SECOND_NS, at_least_s=at_least_s)

    def _look(
        self, machine: str, source: str, epoch: int, captured_ns: int, machine_ns: int, now_ns: int
    ) -> _State | None:
        if not captured_ns:
            self._states.pop((machine, source), None)
            return None
        before = self._states.get((machine, source))
        if before is not None and (before.epoch, before.captured_ns) == (epoch, captured_ns):
            return before
        age_ns: int | None = machine_ns - captured_ns
        assert age_ns is not None
        oldest_ns = before.age_at(now_ns) if before is not None and before.epoch == epoch else None
        if (
            age_ns < -_SET_NS
            or (oldest_ns is not None and age_ns > oldest_ns + _SET_NS)
            or self._clocks[machine].was_set_since(now_ns - max(0, age_ns) - _SET_NS)
        ):
            age_ns = None
        state = _State(epoch, captured_ns, now_ns, None if age_ns is None else max(0, age_ns))
        self._states[machine, source] = state
        return state


def _named(facts: Facts) -> Iterator[tuple[str, int, int]]:
    if facts.agent is not None:
        yield facts.agent[0].source, facts.agent[1].epoch, facts.agent[1].uploaded_captured_ns
    if facts.stream is not None:
        yield facts.stream[0].source, facts.stream[1].epoch, facts.stream[1].ordered_captured_ns


def _machine_ns(facts: Facts, now_ns: int, time_ns: int) -> int:
    """What the machine's clock says now, if it has gone on evenly since its agent's last report."""
    if facts.agent is None or not facts.agent[0].report.sent_ns:
        return time_ns
    seen = facts.agent[0]
    return seen.report.sent_ns + now_ns - seen.heard_ns
