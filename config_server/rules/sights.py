"""What a look at a machine's reports finds of each condition (conditions.py). Pure.

Each function says NO, UNKNOWN where nobody is heard who would know, or how far the work is that should go on. It gets the look, and
whether the condition is a problem by now.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Set
from typing import Final, TypeVar

import msgspec

from config_server.rules.disks import Offer
from config_server.rules.facts import NOT_FOLLOWING, Facts, reported_ns
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from shared.batch import SECTOR
from shared.desired import Verb, WantedDisk, Wish
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


At = tuple[float, ...]
"""It is so, and this is how far the work is that should go on."""


class Sight(enum.Enum):
    """What a look found of a condition, unless it found it."""

    NO = enum.auto()
    """It is not so."""
    UNKNOWN = enum.auto()
    """Nobody is heard who would know."""
    EXCUSED = enum.auto()
    """What it follows from is said by itself, for as long as that lasts."""


class Excused(msgspec.Struct, frozen=True):
    """It is so, and somebody says that something is wrong from which it may follow; or may not."""

    at: At


Part = AgentReport | StreamReport | ApplyReport
_Part = TypeVar("_Part", AgentReport, StreamReport, ApplyReport)
Side = tuple[Seen, Part]


class Look:
    """A machine as its daemons report it now. What is silent says nothing."""

    def __init__(self, machine: Machine, facts: Facts, now_ns: int) -> None:
        self.name = machine.name
        self.wish = machine.wish
        self.wanted = machine.disks if machine.protected else ()
        """The disks that shall be protected. Of a machine that nobody asked to protect only its agent knows which these are to be."""
        self.facts = facts
        self._now_ns = now_ns
        self.agent: AgentReport | None = self._heard(facts.agent)
        self.stream: StreamReport | None = self._heard(facts.stream)
        self.apply: ApplyReport | None = self._heard(facts.apply)

    @property
    def at_work(self) -> bool:
        return self.agent is not None and self.agent.state in _AT_WORK

    def is_missed(self, *sides: Side | None) -> bool:
        return any(side is not None and side[0].is_missing(self._now_ns) for side in sides)

    def has_errors(self, *sides: Side | None, disks: Set[str] | None = None) -> bool:
        """Whether one of them says that something is wrong with it or the machine. `disks`: of an agent's only what touches these, or no
        disk alone; None: anything."""
        return any(
            problem.severity.rank >= Severity.ERROR.rank
            and (disks is None or side is not self.facts.agent or problem.object in {"", self.name, *disks})
            for side in sides
            if side is not None
            for problem in self._words(*side)
        )

    def excused(self, at: At, *sides: Side | None, disks: Set[str] = frozenset()) -> At | Excused | Sight:
        """What is found where something is so that may follow from what is wrong with these."""
        if self.is_missed(*sides):
            return Sight.EXCUSED
        return Excused(at) if self.has_errors(*sides, disks=disks) else at

    def _heard(self, side: tuple[Seen, _Part] | None) -> _Part | None:
        return side[1] if side is not None and not side[0].is_silent(self._now_ns) else None

    def _words(self, seen: Seen, part: Part) -> Iterator[Problem]:
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
    if look.at_work:
        return Sight.NO
    return Sight.EXCUSED if look.has_errors(look.facts.agent) else ()


def disks_left_out(look: Look, _shown: bool) -> At | Excused | Sight:
    if look.agent is None or not look.at_work:
        return Sight.UNKNOWN
    disks = left_out(look)
    if not disks:
        return Sight.NO
    said = {error.object for error in look.agent.errors if error.severity.rank >= Severity.ERROR.rank}
    if all({disk.id, disk.device, disk.device.removeprefix("/dev/")} & said for disk in disks):
        return Sight.EXCUSED
    return look.excused((), look.facts.agent)


def left_out(look: Look) -> list[WantedDisk]:
    """Those wanted disks that the agent does not have, however many others it has. One without an id it may call by another path: of an
    agent that goes by what is wanted that says nothing, while it has a disk more for each of them."""
    agent = look.agent or AgentReport()
    ids = {disk.name for disk in agent.disks}
    if all(disk.id in ids for disk in look.wanted):
        return []
    wanted = Offer.of(agent).settled(look.wanted)
    words = {word for disk in agent.disks for word in (disk.device, f"/dev/{disk.name}")}
    words |= {there.identity for there in agent.available if there.id in ids}
    left = [
        disk
        for disk in wanted
        if disk.id not in ids and (disk.id is not None or (disk.identity or disk.device) not in words)
    ]
    has_more = len(agent.disks) >= len(wanted) - sum(disk.id is not None for disk in left)
    if has_more and (look.wish is None or goes_by(agent, look.wish)):
        return [disk for disk in left if disk.id is not None]
    return left


def unwanted(look: Look) -> list[str]:
    """Ids of what an agent captures that goes by what is wanted, and that is not wanted. Nobody knows of a disk that is meant by a path
    alone, or by the agent's configuration."""
    wish = look.wish
    if look.agent is None or wish is None or not goes_by(look.agent, wish):
        return []
    if any(disk.id is None for disk in look.wanted) or (wish.verb is not Verb.STOP and not wish.disks):
        return []
    ids = {disk.id for disk in look.wanted}
    return [disk.name for disk in look.agent.disks if disk.mode and disk.name not in ids]


def goes_by(report: AgentReport, wish: Wish) -> bool:
    return report.wish is not None and report.wish.mark == wish.mark


def undone(look: Look, _shown: bool) -> At | Sight:
    """Which act its agent does not go by, or only says so. What a newer version wants is nobody's affair here."""
    wish = look.wish
    if wish is None:
        return Sight.NO
    if look.agent is None:
        return Sight.UNKNOWN
    told = look.agent.wish
    if Verb.OTHER in (wish.verb, told.verb if told is not None else None):
        return Sight.NO
    has_session = look.stream is not None and look.stream.connected
    goes_on = bool(unwanted(look)) or (wish.verb is Verb.STOP and has_session)
    return Sight.NO if goes_by(look.agent, wish) and not goes_on else (wish.mark.number,)


def without_session(look: Look, _shown: bool) -> At | Sight:
    if look.agent is None:
        return Sight.UNKNOWN
    if not look.at_work or look.agent.connected is not False:
        return Sight.NO
    return Sight.EXCUSED if _says_why(look, look.facts.agent, look.facts.stream) else ()


def without_server(look: Look, _shown: bool) -> At | Sight:
    if look.agent is None:
        return Sight.UNKNOWN
    if not look.at_work or look.agent.connected is False:
        return Sight.NO
    if look.stream is not None and look.stream.connected and look.stream.epoch == look.agent.epoch:
        return Sight.NO
    if _says_why(look, look.facts.agent, look.facts.stream):
        return Sight.EXCUSED
    return Sight.UNKNOWN if look.facts.stream is not None and look.stream is None else ()


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
    return Sight.EXCUSED if _says_why(look, facts.apply) else ()


def _says_why(look: Look, *sides: Side | None) -> bool:
    """Whether one of them is missed, or says what is wrong, and not with a disk alone."""
    return look.is_missed(*sides) or look.has_errors(*sides, disks=frozenset())


def apply_behind(look: Look, shown: bool) -> At | Sight:
    if look.apply is None:
        return Sight.UNKNOWN
    if look.agent is not None and look.agent.state in _COPYING:
        return Sight.NO  # there is no point yet which would need it
    return () if is_behind(look.apply, _BEHIND_YET_S if shown else BEHIND_S) else Sight.NO


def copying(look: Look, _shown: bool) -> At | Excused | Sight:
    """Epoch, bytes that remain to be copied; and the newest state in storage (its time, and its batch) of a machine in order."""
    agent = look.agent
    if agent is None or not look.at_work:
        return Sight.UNKNOWN
    left_b = _remaining_b(agent)
    if agent.state == MachineState.BITMAP and not left_b:
        return Sight.NO  # all that it wrote is in storage, though not in order
    if agent.connected is False:
        return Sight.EXCUSED
    at: At = agent.epoch, left_b, 0, 0
    if agent.state == MachineState.ORDERED:
        newest_ns = reported_ns(look.facts)
        restorable = newest_ns or look.facts.last_point is not None
        # The time stands where the machine's clock stands (rpo.py says so); batches are counted all the same.
        at = agent.epoch, left_b, newest_ns, agent.uploaded if restorable else 0
    return look.excused(at, look.facts.agent, look.facts.stream, disks={disk.name for disk in agent.disks})


def went_on(before: At, now: At) -> tuple[bool, At]:
    """Whether something can be restored that could not, or some of what was to be copied is in storage: from one look to the next, since
    what was written meanwhile is found at the beginning of each round, and has to be copied, too. A new epoch is nothing done."""
    epoch, left_b, newest_ns, batch = now
    more = epoch == before[0] and (left_b < before[1] or batch > before[3] > 0)
    return _is_newer(before[2], newest_ns) or more, (epoch, left_b, newest_ns or before[2], batch)


_MORE: Final = 1.01
"""So much more than ever before is more: who copies for a hundred days does 1 % in each."""
_TIMES: Final = 4
"""So often may all of it be copied: a machine that writes as fast as it is copied is never done."""


def came_nearer(before: At, now: At) -> tuple[bool, At]:
    """The same over epochs, each of which begins a copy anew: something new can be restored, and all before is forgotten; or more was
    copied in one than in any before. But that a copy of days was lost once, and has to do the same again, is not in vain yet: the best of
    them does not count."""
    epoch, left_b, newest_ns, batch = now
    done_b, told_b, most_b, next_b, all_b = before[4:] or (0, 0, 0, 0, before[1])
    if _is_newer(before[2], newest_ns) or (epoch == before[0] and batch > before[3] > 0):
        return True, (epoch, left_b, newest_ns or before[2], batch)
    if epoch == before[0]:
        done_b += max(0, before[1] - left_b)
    else:
        most_b, next_b = sorted((done_b, most_b, next_b), reverse=True)[:2]
        done_b = told_b = 0
    all_b = max(all_b, left_b)
    more = max(told_b, next_b) * _MORE < done_b <= all_b * _TIMES
    if more:
        told_b = done_b
    return more, (epoch, left_b, newest_ns or before[2], batch, done_b, told_b, most_b, next_b, all_b)


def _is_newer(before_ns: float, now_ns: float) -> bool:
    """Or older, since the machine's clock was set."""
    return now_ns not in (0, before_ns)


def more_of_log(before: At, now: At) -> tuple[bool, At]:
    """Of (epoch, batch). Another epoch counts batches from the first."""
    return now[1] > (before[1] if now[0] == before[0] else 0), now


def _remaining_b(agent: AgentReport) -> float:
    """As far as it says how much."""
    return sum(
        disk.todo_b
        if disk.todo_b is not None
        else (1 - (disk.progress or 0.0)) * max(1, disk.sectors) * SECTOR
        for disk in agent.disks
    )


def upload_stands(look: Look, _shown: bool) -> At | Excused | Sight:
    stream = look.stream
    if stream is None:
        return Sight.UNKNOWN
    if stream.spooled <= stream.uploaded:
        return Sight.NO
    return look.excused((stream.epoch, stream.uploaded), look.facts.stream)


def apply_stands(look: Look, _shown: bool) -> At | Excused | Sight:
    stream, apply = look.stream, look.apply
    if stream is None or apply is None:
        return Sight.UNKNOWN
    done = apply.epoch == stream.epoch and apply.applied >= stream.uploaded
    if not stream.uploaded or done:
        return Sight.NO
    if apply.state in NOT_FOLLOWING:
        return Sight.EXCUSED
    return look.excused((apply.epoch, apply.applied), look.facts.apply)


def is_behind(apply: ApplyReport, limit_s: float = BEHIND_S) -> bool:
    return apply.lag_s is not None and apply.lag_s >= limit_s
