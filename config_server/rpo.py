"""How much work a disaster now would cost, measured by this server's own clock. No I/O; it remembers what it saw.

What is in storage carries times of the machine's clock, and that clock may be wrong, jump or stand. So those times are
never compared with this server's time of day. A daemon names the newest ordered state that the log index lists; when this
server first sees it named, it is as old as the machine's clock says *by itself*: the machine's time now (what its agent
sent, and what has passed here since) less the time of the capture. From then on its age grows with this server's monotonic
clock, whatever the machine's clock does: when uploads stop, the RPO grows.

What is left to the machine's clock is the time between capture and report. If it jumps just then, the RPO is wrong by the
jump while that state is the newest, but never less than the time since it was first seen. If the clock stands, every state
looks the same and the RPO grows although uploads go on: too much, never too little. Both show as a problem of the clock on
the machine (view.py). Only for a machine whose agent was never heard, the time of day is taken for its clock's.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from config_server.clock import SECOND_NS
from config_server.view import Facts
from shared.recovery.position import parse_rfc3339


class _State(msgspec.Struct, frozen=True):
    """The newest ordered state in storage, as one daemon names it."""

    epoch: int
    captured_ns: int
    seen_ns: int
    """Monotonic, here."""
    age_ns: int
    """When it was first seen."""


class StorageProgress:
    def __init__(self) -> None:
        self._states: dict[tuple[str, str], _State] = {}

    def rpo_s(self, machine: str, facts: Facts, now_ns: int, time_ns: int) -> float | None:
        """Seconds; None while nothing ordered is in storage. `now_ns` is monotonic, `time_ns` the time of day.

        Both the process server and the agent know the newest state; the younger one counts. Both forget it when they start anew, and in a
        new epoch: until there is one again, the newest recovery point is what a restore would bring back."""
        ages = [
            state.age_ns + now_ns - state.seen_ns
            for source, epoch, captured_ns in _named(facts)
            if (
                state := self._look(
                    machine, source, epoch, captured_ns, _machine_ns(facts, now_ns, time_ns), now_ns
                )
            )
        ]
        if not ages and facts.last_point is not None:
            captured_ns = parse_rfc3339(facts.last_point.time) or 0
            machine_ns = _machine_ns(facts, now_ns, time_ns)
            if state := self._look(machine, "point", facts.last_point.epoch, captured_ns, machine_ns, now_ns):
                ages = [state.age_ns + now_ns - state.seen_ns]
        return min(ages) / SECOND_NS if ages else None

    def _look(
        self, machine: str, source: str, epoch: int, captured_ns: int, machine_ns: int, now_ns: int
    ) -> _State | None:
        if not captured_ns:
            self._states.pop((machine, source), None)
            return None
        state = self._states.get((machine, source))
        if state is None or (state.epoch, state.captured_ns) != (epoch, captured_ns):
            state = _State(epoch, captured_ns, now_ns, max(0, machine_ns - captured_ns))
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
