"""Who has reported, when, and what: the latest report of every daemon, in memory.

Reports come every two seconds and are worth nothing when they are old, so with one config server they are stored (by the caller)
only now and then: after a restart they tell which daemons there are. Of several servers each is told what the others heard (`hear_of`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from config_server.rules import twins
from config_server.rules.clock import SECOND_NS
from config_server.rules.twins import SILENT_S, Starts
from shared import decoding
from shared.control import newer
from shared.errors import UNDECODABLE, ManyProblemsError, RequestError
from shared.status import (
    AgentReport,
    ApplyReport,
    MasterTargetReport,
    Problem,
    ProcessServerReport,
    Report,
    StreamReport,
)
from shared.vocabulary import Role, Severity

MAX_PROBLEMS: Final = {Role.AGENT: 100, Role.PROCESS_SERVER: 1000, Role.MASTER_TARGET: 1000}
"""Of one report; servers have hundreds of machines."""
UPGRADE_S: Final = 60.0
"""So long a server may be away when it is restarted: as its agents have it (agent/status.py)."""
_WORDS_LENGTH: Final = 2000
_OBJECT_LENGTH: Final = 255
_CODE_LENGTH: Final = 16
_ANSWER_DEPTH: Final = 64
"""So deep an answer may hold a report, and more."""

_TYPES: Final[dict[Role, type[Report]]] = {
    Role.AGENT: AgentReport,
    Role.PROCESS_SERVER: ProcessServerReport,
    Role.MASTER_TARGET: MasterTargetReport,
}


class Seen(msgspec.Struct, frozen=True):
    """A daemon's last report, and when it came. What has passed since is told by the monotonic clock: the time of day may jump."""

    role: Role
    name: str
    received_ns: int
    """Time of day."""
    heard_ns: int
    """The same, monotonic."""
    report: Report
    recovered_ns: int = 0
    """When a restarted config server read this from its database (monotonic); 0 for what it heard itself."""
    excused_ns: int = 0
    """When the last time ended in which the config server could not have heard it (monotonic)."""
    by: str = ""
    """The other config server that heard it; empty: this one."""
    address: str = ""
    """From which it came."""

    @property
    def source(self) -> str:
        return f"{self.role}:{self.name}"

    @property
    def skew_ns(self) -> int:
        """How much this host's clock is ahead of the daemon's, as far as it can be told: the report took between nothing and a whole round
        trip to come, and the difference that is nearest to none counts. 0 when the daemon did not tell its time."""
        if not self.report.sent_ns:
            return 0
        most = self.received_ns - self.report.sent_ns
        least = most - max(0, self.report.round_trip_ns)
        return least if least > 0 else min(most, 0)

    def age_s(self, now_ns: int) -> float:
        return max(0.0, (now_ns - self.heard_ns) / SECOND_NS)

    def is_silent(self, now_ns: int) -> bool:
        """Too old to be believed. What comes from before a restart of the config server always is."""
        return bool(self.recovered_ns) or self.age_s(now_ns) > SILENT_S

    def is_missing(self, now_ns: int) -> bool:
        """Silent for so long that it is a problem. After a restart of the config server, and a gap of its own, everybody gets time
        to report."""
        return self._missed_ns(now_ns) > SILENT_S * SECOND_NS

    def is_lost(self, now_ns: int) -> bool:
        """Missing for longer than an upgrade takes. Of an agent its silence is enough: nobody else tells what its machine does."""
        limit_s = SILENT_S if self.role == Role.AGENT else UPGRADE_S
        return self._missed_ns(now_ns) > limit_s * SECOND_NS

    def _missed_ns(self, now_ns: int) -> int:
        return now_ns - max(self.heard_ns, self.recovered_ns, self.excused_ns)


class Presence:
    """The latest report per daemon."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Role, str], Seen] = {}
        self._starts: dict[tuple[Role, str], Starts] = {}

    def learn(
        self,
        role: Role,
        name: str,
        raw: bytes,
        received_ns: int,
        heard_ns: int,
        recovered_ns: int = 0,
        address: str = "",
        held_up_ns: int = 0,
    ) -> Seen:
        """Take in a report, when it came (time of day, and monotonic), and from where; what counts from then on. One that was held up on
        its way, or is of another daemon under the same name (twins.py), changes nothing, and the one before it is returned. `held_up_ns`:
        so long it may have lain here (stillness.py), and was under way so much longer. Raises RequestError, with the path of the field,
        when it is not what the role reports."""
        report = _with_disks(decode(role, raw), self._seen.get((role, name)))
        if held_up_ns:
            report = msgspec.structs.replace(report, round_trip_ns=max(0, report.round_trip_ns) + held_up_ns)
        seen = Seen(role, name, received_ns, heard_ns, report, recovered_ns, address=address)
        start, number = seen.report.start, seen.report.number
        if start:
            starts = self._starts.setdefault((role, name), Starts())
            if not starts.counts(start, number, address, heard_ns):
                return self._seen[role, name]
        self._seen[role, name] = seen
        return seen

    def hear_of(
        self, role: Role, name: str, raw: bytes, received_ns: int, heard_ns: int, *, by: str, address: str
    ) -> bool:
        """What another config server heard, `by` that one, when (time of day, by its clock; and by the monotonic one of this). Whether it
        counts from now on: it does unless a later one was heard here. Raises RequestError."""
        before = self._seen.get((role, name))
        report = _with_disks(decode(role, raw), before)
        is_counted, is_here = bool(report.start), before is not None and not before.recovered_ns
        is_known = before is not None and not is_here and _number(report) == _number(before.report)
        if is_counted and not is_known:
            starts = self._starts.setdefault((role, name), Starts())
            if not starts.counts(*_number(report), address, heard_ns, is_told=True):
                return False
        is_next = is_counted and before is not None and before.report.start == report.start
        if before is not None and is_here and not is_next and before.heard_ns > heard_ns:
            return False  # of two starts, or of one that does not count them, the one that was heard later
        self._seen[role, name] = Seen(
            role, name, received_ns, heard_ns, report, excused_ns=before.excused_ns if before else 0, by=by, address=address
        )  # fmt: skip
        return True

    def excuse(self, since_ns: int, now_ns: int) -> None:
        """Between these times this server may not have heard who did report: its host stood still, or another server does, which has him
        on a line and tells nobody. Who was missed before is missed still."""
        for key, seen in self._seen.items():
            if not seen.is_missing(since_ns):
                self._seen[key] = msgspec.structs.replace(seen, excused_ns=now_ns)

    def forget(self, role: Role, name: str) -> None:
        """It takes part no more."""
        self._seen.pop((role, name), None)
        self._starts.pop((role, name), None)

    def twins(self, now_ns: int) -> list[Problem]:
        """Daemons of which there are two."""
        found = (((role, name), starts.twins(now_ns)) for (role, name), starts in self._starts.items())
        return [twins.problem(f"{role}:{name}", *both) for (role, name), both in found if both is not None]

    def all(self) -> list[Seen]:
        return [self._seen[key] for key in sorted(self._seen)]

    def of(self, role: Role, name: str) -> Seen | None:
        return self._seen.get((role, name))

    def _of(self, role: Role) -> list[Seen]:
        """In the order of their names; of a thousand agents nobody looks for the few servers."""
        return [self._seen[key] for key in sorted(key for key in self._seen if key[0] == role)]

    def agent(self, machine: str) -> tuple[Seen, AgentReport] | None:
        """The report of the machine's agent: its certificate names the machine."""
        seen = self._seen.get((Role.AGENT, machine))
        return (seen, seen.report) if seen is not None and isinstance(seen.report, AgentReport) else None

    def streams(self, machine: str) -> Iterator[tuple[Seen, StreamReport]]:
        """The process servers that know the machine."""
        for seen in self._of(Role.PROCESS_SERVER):
            if isinstance(seen.report, ProcessServerReport) and machine in seen.report.machines:
                yield seen, seen.report.machines[machine]

    def applies(self, machine: str) -> Iterator[tuple[Seen, ApplyReport]]:
        """The master targets that follow the machine."""
        for seen in self._of(Role.MASTER_TARGET):
            if isinstance(seen.report, MasterTargetReport) and machine in seen.report.machines:
                yield seen, seen.report.machines[machine]

    def targets(self) -> list[Seen]:
        """The master targets."""
        return self._of(Role.MASTER_TARGET)

    def has_image_target(self) -> bool:
        """Whether a master target keeps its seed disks as images, which have no limit of size."""
        reports = (seen.report for seen in self._seen.values())
        return any(isinstance(report, MasterTargetReport) and report.target == "image" for report in reports)

    def names(self, role: Role) -> Iterable[str]:
        return [name for known, name in sorted(self._seen) if known == role]


def _number(report: Report) -> tuple[str, int]:
    return report.start, report.number


def _with_disks(report: Report, before: Seen | None) -> Report:
    """An agent that was started just now has not looked yet which disks there are: what was said last counts, as with one that runs,
    since no name changes within a boot but of a disk that is plugged. Else a path would mean what it was called for once."""
    if not isinstance(report, AgentReport) or before is None or not isinstance(before.report, AgentReport):
        return report
    former, boot = before.report, report.boot.partition("/")[0]
    is_same = boot and (boot, report.identity) == (former.boot.partition("/")[0], former.identity)
    if report.available or not is_same:
        return report
    return msgspec.structs.replace(report, available=former.available)


def problems_of(seen: Seen) -> list[Problem]:
    """The problems in a report, each with the object that it touches: a machine (`web1`), a disk
    (`web1/sda`), or the daemon itself (`process-server:ps1`).

    A daemon may report any number, of any length, and each becomes an event: so the words are cut, and of very many the first are
    named and the rest counted."""
    found = list(itertools.islice(_all_problems(seen), MAX_PROBLEMS[seen.role]))
    more = _count(seen.report) - len(found)
    if more > 0:
        flood = ManyProblemsError(
            f"{seen.source} reports {more} more problems", cause="only the first are shown"
        )
        found.append(
            Problem(**flood.as_dict(), severity=Severity.WARNING, object=_cut(seen.source, _OBJECT_LENGTH))
        )
    return found


def _all_problems(seen: Seen) -> Iterator[Problem]:
    report = seen.report
    own = seen.name if isinstance(report, AgentReport) else seen.source
    for problem in report.errors:
        if isinstance(report, AgentReport):
            yield _of(problem, _within(own, problem.object))
        else:
            yield _of(problem, problem.object or own)
    if isinstance(report, (ProcessServerReport, MasterTargetReport)):
        for machine, part in report.machines.items():
            for problem in part.errors:
                yield _of(problem, _within(machine, problem.object))


def _count(report: Report) -> int:
    machines = (
        report.machines.values() if isinstance(report, (ProcessServerReport, MasterTargetReport)) else ()
    )
    return len(report.errors) + sum(len(part.errors) for part in machines)


def _within(machine: str, part: str) -> str:
    return machine if part in ("", machine) else f"{machine}/{part}"


def _of(problem: Problem, object_: str) -> Problem:
    return Problem(
        code=_cut(problem.code, _CODE_LENGTH),
        what=_cut(problem.what, _WORDS_LENGTH),
        cause=_cut(problem.cause, _WORDS_LENGTH),
        action=_cut(problem.action, _WORDS_LENGTH),
        severity=problem.severity,
        object=_cut(object_, _OBJECT_LENGTH),
        key=_cut(problem.key, _OBJECT_LENGTH),
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _read(role: Role, raw: bytes) -> Report:
    """What an agent goes by may be more than this version knows: then it is some act, and all else counts."""
    try:
        return decoding.decode(raw, type=_TYPES[role])
    except UNDECODABLE:
        if role != Role.AGENT:
            raise
        plain = decoding.decode(raw, type=dict[str, Any])
        if plain.get("wish") is None:
            raise
        wish = newer.wish(plain.pop("wish"))
        return msgspec.structs.replace(decoding.convert(plain, AgentReport), wish=wish)


def decode(role: Role, raw: bytes) -> Report:
    """Raises RequestError for what cannot be taken, or could not be given again: then one daemon's report would spoil the answers
    about all."""
    try:
        report = _read(role, raw)
        answer: object = report
        for _ in range(_ANSWER_DEPTH):
            answer = [answer]
        msgspec.json.encode(answer)
        if report.start and report.number <= 0:
            raise ValueError(f"its reports are counted from 1, and this is {report.number} - at `$.number`")
    except (
        *UNDECODABLE,
        OverflowError,
    ) as exc:  # of free values: a number of 400 digits, a thousand brackets
        raise RequestError(
            f"The status of a daemon of role '{role}' was refused",
            cause=str(exc),
            action="The fields are described in shared/status.py; install the same version everywhere.",
        ) from exc
    return report
