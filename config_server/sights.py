"""What a look at a machine's reports finds of each condition (conditions.py). Pure.

Each function says NO, UNKNOWN where nobody is heard who would know, or how far the work is that should go on. It gets the look, and
whether the condition is a problem by now.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, TypeVar

from config_server.facts import NOT_FOLLOWING, Facts, reported_ns
from config_server.presence import Seen
from shared.batch import SECTOR
from shared.status import AgentReport, ApplyReport, Problem, StreamReport
from shared.vocabulary import MachineState, Severity

BEHIND_S: Final = 1800.0
"""Apply may be so far behind: where Site Recovery begins to warn of data that wait for upload."""
_BEHIND_YET_S: Final = BEHIND_S / 2
"""What was a warning is one until it is less: no warning that comes and goes."""
_AT_WORK: Final[frozenset[str]] = frozenset(
    {
        MachineState.ORDERED,
        MachineState.INITIAL_REPLICATION,
        MachineState.BITMAP,
        MachineState.CATCHING_UP,
        MachineState.RESYNC,
    }
)
"""All others are words of an agent that does not replicate, or of which nobody here knows."""
_COPYING: Final[frozenset[str]] = frozenset({MachineState.INITIAL_REPLICATION, MachineState.RESYNC})


class Sight(enum.Enum):
    """What a look found of a condition, unless it found it."""

    NO = enum.auto()
    """It is not so."""
    UNKNOWN = enum.auto()
    """Nobody is heard who would know."""


_Part = TypeVar("_Part", AgentReport, StreamReport, ApplyReport)
At = tuple[float, ...]
"""It is so, and this is how far the work is that should go on."""


class Look:
    """A machine as its daemons report it now. What is silent says nothing."""

    def __init__(self, name: str, facts: Facts, now_ns: int) -> None:
        self.name = name
        self.facts = facts
        self._now_ns = now_ns
        self.agent: AgentReport | None = self._heard(facts.agent)
        self.stream: StreamReport | None = self._heard(facts.stream)
        self.apply: ApplyReport | None = self._heard(facts.apply)

    @property
    def at_work(self) -> bool:
        return self.agent is not None and self.agent.state in _AT_WORK

    def is_blamed(self, *sides: tuple[Seen, AgentReport | StreamReport | ApplyReport] | None) -> bool:
        """Whether one of them is missed, or says itself what is wrong with it or the machine."""
        return any(
            side is not None
            and (
                side[0].is_missing(self._now_ns)
                or any(problem.severity.rank >= Severity.ERROR.rank for problem in self._words(*side))
            )
            for side in sides
        )

    def _heard(self, side: tuple[Seen, _Part] | None) -> _Part | None:
        return side[1] if side is not None and not side[0].is_silent(self._now_ns) else None

    def _words(self, seen: Seen, part: AgentReport | StreamReport | ApplyReport) -> Iterator[Problem]:
        if seen.is_silent(self._now_ns):
            return
        yield from part.errors
        if part is not seen.report:
            for problem in seen.report.errors:
                if problem.object in ("", seen.source, self.name):
                    yield problem


def never_came(look: Look, _shown: bool) -> At | Sight:
    return () if look.facts.agent is None else Sight.NO


def not_at_work(look: Look, _shown: bool) -> At | Sight:
    if look.agent is None:
        return Sight.UNKNOWN
    return Sight.NO if look.at_work or look.is_blamed(look.facts.agent) else ()


def without_session(look: Look, _shown: bool) -> At | Sight:
    if look.agent is None:
        return Sight.UNKNOWN
    if not look.at_work or look.agent.connected is not False:
        return Sight.NO
    return Sight.NO if look.is_blamed(look.facts.agent, look.facts.stream) else ()


def without_server(look: Look, _shown: bool) -> At | Sight:
    if look.agent is None:
        return Sight.UNKNOWN
    if not look.at_work or look.agent.connected is False:
        return Sight.NO
    if look.is_blamed(look.facts.agent, look.facts.stream):
        return Sight.NO
    if look.facts.stream is None:
        return ()
    if look.stream is None:
        return Sight.UNKNOWN
    return Sight.NO if look.stream.connected and look.stream.epoch == look.agent.epoch else ()


def not_followed(look: Look, _shown: bool) -> At | Sight:
    facts = look.facts
    if facts.apply is not None and look.apply is None:
        return Sight.UNKNOWN
    if look.apply is not None and look.apply.state not in NOT_FOLLOWING:
        return Sight.NO
    in_storage = facts.stream is not None and facts.stream[1].epoch > 0
    in_storage = in_storage or (facts.agent is not None and facts.agent[1].uploaded > 0)
    if not in_storage and facts.last_point is None:
        return Sight.NO  # it has no log yet that anybody could follow
    return Sight.NO if look.is_blamed(facts.apply) else ()


def apply_behind(look: Look, shown: bool) -> At | Sight:
    if look.apply is None:
        return Sight.UNKNOWN
    if look.agent is not None and look.agent.state in _COPYING:
        return Sight.NO  # there is no point yet which would need it
    return () if is_behind(look.apply, _BEHIND_YET_S if shown else BEHIND_S) else Sight.NO


def copy_stands(look: Look, _shown: bool) -> At | Sight:
    agent = look.agent
    if agent is None:
        return Sight.UNKNOWN
    if not look.at_work or agent.connected is False or look.is_blamed(look.facts.agent, look.facts.stream):
        return Sight.NO
    if agent.state != MachineState.ORDERED:
        return agent.epoch, _remaining_b(agent)
    restorable = reported_ns(look.facts) or look.facts.last_point is not None
    return Sight.NO if restorable else (agent.epoch, -1)


def comes_nearer(before: At, now: At) -> bool:
    """Writes that have to be copied as well are no progress."""
    return now[0] != before[0] or now[1] < before[1]


def _remaining_b(agent: AgentReport) -> float:
    """As far as it says how much."""
    return sum(
        disk.todo_b
        if disk.todo_b is not None
        else (1 - (disk.progress or 0.0)) * max(1, disk.sectors) * SECTOR
        for disk in agent.disks
    )


def upload_stands(look: Look, _shown: bool) -> At | Sight:
    stream = look.stream
    if stream is None:
        return Sight.UNKNOWN
    if stream.spooled <= stream.uploaded or look.is_blamed(look.facts.stream):
        return Sight.NO
    return stream.epoch, stream.uploaded


def apply_stands(look: Look, _shown: bool) -> At | Sight:
    stream, apply = look.stream, look.apply
    if stream is None or apply is None:
        return Sight.UNKNOWN
    done = apply.epoch == stream.epoch and apply.applied >= stream.uploaded
    if not stream.uploaded or done or apply.state in NOT_FOLLOWING or look.is_blamed(look.facts.apply):
        return Sight.NO
    return apply.epoch, apply.applied


def is_behind(apply: ApplyReport, limit_s: float = BEHIND_S) -> bool:
    return apply.lag_s is not None and apply.lag_s >= limit_s
