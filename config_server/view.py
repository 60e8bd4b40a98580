"""What the reports mean for a machine: its state, RPO, hops and errors, as people see them. Pure.

State, the first that applies:
    unprotected      nobody asked for protection, as far as this database knows: it may be from a backup, so a machine that replicates
                     all the same is named, and missed like any other; or it was ended
    not-connected    its agent has never reported
    disconnected     its agent has not reported for SILENT_S, or not since the config server started; capture
                     may well go on, nobody can tell
    as reported      ordered | initial-replication | bitmap | catching-up | resync | …

RPO = the age of the newest ordered state that the log index lists, that is, which a restore would bring back: rpo.py
measures it. A clock that is wrong is an error of its own.

`now_ns` is monotonic here: no view depends on the time of day, which may jump on this server, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from config_server import wish_view
from config_server.clock import SECOND_NS
from config_server.health import worst
from config_server.inventory import Machine
from config_server.presence import Presence, Seen, problems_of
from config_server.serving import ranked
from shared.batch import SECTOR
from shared.errors import (
    ClockSkewError,
    DisconnectedError,
    LookFailedError,
    RpoThresholdError,
    RpoUnknownError,
    ServersDisagreeError,
    UnhealthyError,
    UnprotectedReplicationError,
)
from shared.messages import DiskView, ErrorView, HopView, MachineView, PointView, RingView
from shared.status import AgentReport, ApplyReport, Problem, StreamReport
from shared.vocabulary import CaptureMode, Health, HopState, MachineState, Role, Severity

SKEW_LIMIT_S: Final = 5.0
SELF: Final[str] = Role.CONFIG_SERVER


class Rpo(msgspec.Struct, frozen=True):
    """Seconds of work that a disaster now would cost."""

    seconds: float | None = None
    """None while nothing ordered is in storage, or when it cannot be measured."""
    at_least_s: float | None = None
    """What is certain, measured or not."""
    unknown: str = ""
    """Why it cannot be measured."""


class Facts(msgspec.Struct, frozen=True):
    """What is known of a machine from reports, and its newest point as far as storage was asked."""

    agent: tuple[Seen, AgentReport] | None
    stream: tuple[Seen, StreamReport] | None
    """Of the process server that it is with (serving.py)."""
    apply: tuple[Seen, ApplyReport] | None
    idle: tuple[Seen, ...] = ()
    """Where no master target follows the machine: those that report. What ails them may be why."""
    last_point: PointView | None = None
    rpo: Rpo = Rpo()
    own: tuple[Problem, ...] = ()
    """What ails the config server itself."""
    others: tuple[tuple[Seen, StreamReport], ...] = ()
    """Of other process servers, in the order of serving.py."""
    disagree: str = ""
    """What process servers say that contradict each other."""
    untaken: tuple[str, int] | None = None
    """The act that its agent was told of and does not go by, and since when."""


def facts_of(
    presence: Presence, machine: str, now_ns: int, last_point: PointView | None = None, owner: str = ""
) -> Facts:
    """`owner`: the process server that storage calls the machine's; empty when it was not asked."""
    agent = presence.agent(machine)
    streams = ranked(presence.streams(machine), agent, owner, now_ns)
    epoch = streams[-1][1].epoch if streams else 0
    applies = sorted(
        presence.applies(machine),
        key=lambda a: (
            a[1].epoch == epoch,
            not a[0].is_silent(now_ns),
            a[1].epoch,
            a[1].applied,
            a[0].heard_ns,
        ),
    )
    return Facts(
        agent,
        streams[-1] if streams else None,
        applies[-1] if applies else None,
        () if applies else tuple(presence.targets()),
        last_point,
        others=tuple(streams[:-1]),
    )


def machine_view(machine: Machine, facts: Facts, now_ns: int) -> MachineView:
    seen, report = facts.agent if facts.agent else (None, AgentReport())
    state, cause = _state(machine, facts, now_ns)
    errors = errors_of(machine, facts, now_ns)
    return MachineView(
        name=machine.name,
        state=state,
        health=worst(errors),
        cause=cause,
        protected=machine.protected,
        mode=report.mode or _worst_mode(report),
        mode_cause=report.mode_cause,
        epoch=report.epoch or (facts.stream[1].epoch if facts.stream else 0),
        epochs=report.epochs,
        rounds=report.rounds,
        rpo_s=facts.rpo.seconds,
        last_seen_s=None if seen is None else seen.age_s(now_ns),
        process_server=facts.stream[0].name if facts.stream else "",
        disks=[
            DiskView(
                name=disk.name,
                device=disk.device or f"/dev/{disk.name}",
                size_b=disk.sectors * SECTOR,
                mode=disk.mode,
                mode_cause=disk.mode_cause,
                state=disk.state or report.state,
                progress=disk.progress,
                serial=disk.serial,
            )
            for disk in report.disks
        ],
        ring=RingView(used_b=report.ring_used_b, size_b=report.ring_b),
        rates=report.rates,
        audit=report.audit,
        last_point=facts.last_point,
        hops=list(_hops(facts, now_ns)),
        errors=errors,
        policy=machine.policy,
        policy_name=machine.policy_name,
        wish=wish_view.shown(machine, report),
    )


def not_shown(machine: Machine, exc: Exception) -> MachineView:
    """In a list, instead of a machine whose view failed."""
    cause = f"an error inside the config server: {type(exc).__name__}"
    error = LookFailedError(f"The state of {machine.name} could not be judged", cause=cause)
    nothing = machine_view(msgspec.structs.replace(machine, protected=False), Facts(None, None, None), 0)
    shown = ErrorView(**error.as_dict(), severity=Severity.ERROR, object=machine.name, source=SELF)
    return msgspec.structs.replace(
        nothing,
        state=MachineState.UNKNOWN,
        health=Health.CRITICAL,
        cause=error.cause,
        protected=machine.protected,
        errors=[shown],
    )


def reported_ns(facts: Facts) -> int:
    """The time of the newest ordered state in storage, as the daemons know it; 0 when none does (any more)."""
    return max(
        facts.stream[1].ordered_captured_ns if facts.stream else 0,
        facts.agent[1].uploaded_captured_ns if facts.agent else 0,
    )


def errors_of(machine: Machine, facts: Facts, now_ns: int) -> list[ErrorView]:
    """What the daemons report about the machine, and what follows from their reports."""
    found = [(SELF, problem) for problem in (*derived_problems(machine, facts, now_ns), *facts.own)]
    for side in (facts.agent, facts.stream, facts.apply):
        if side is not None and not side[0].is_silent(now_ns):
            # What ails a whole daemon ails the machines that it serves too.
            found += [
                (side[0].source, problem)
                for problem in problems_of(side[0])
                if problem.object in (machine.name, side[0].source)
                or problem.object.startswith(f"{machine.name}/")
            ]
    found += [
        (seen.source, problem)
        for seen in facts.idle
        if machine.protected and not seen.is_silent(now_ns)
        for problem in problems_of(seen)
        if problem.object == seen.source
    ]
    # Of a server that it is not with: what ails the machine there, say batches that still wait for upload.
    found += [
        (seen.source, problem)
        for seen, _ in facts.others
        if not seen.is_silent(now_ns)
        for problem in problems_of(seen)
        if problem.object == machine.name
    ]
    return [
        ErrorView(
            code=problem.code,
            what=problem.what,
            cause=problem.cause,
            action=problem.action,
            severity=problem.severity,
            object=problem.object,
            source=source,
        )
        for source, problem in found
    ]


def derived_problems(machine: Machine, facts: Facts, now_ns: int) -> Iterator[Problem]:
    """What no daemon can report of itself: silence, RPO over the threshold, clocks that differ."""
    if (untaken := wish_view.untaken(machine, facts.agent, facts.untaken, now_ns)) is not None:
        yield problem_of(untaken, machine.name, Severity.WARNING)
    if (nothing := wish_view.captures_nothing(machine, facts.agent, now_ns)) is not None:
        yield problem_of(nothing, machine.name, Severity.CRITICAL)
    if not machine.protected:
        if not replicates(machine, facts, now_ns) or wish_view.is_stopping(machine, facts.agent, now_ns):
            return
        yield problem_of(
            UnprotectedReplicationError(f"{machine.name} replicates, and is not protected here"),
            machine.name,
            Severity.WARNING,
        )
    if facts.agent is not None:
        yield from _seen_from_outside(facts.agent[0], machine.name, now_ns)
    for side in (facts.stream, facts.apply):
        if side is not None:
            yield from _seen_from_outside(side[0], side[0].source, now_ns)
    if facts.disagree:
        yield problem_of(
            ServersDisagreeError(f"Process servers disagree about {machine.name}", cause=facts.disagree),
            machine.name,
            Severity.WARNING,
        )
    if facts.rpo.unknown:
        yield problem_of(
            RpoUnknownError(f"The RPO of {machine.name} cannot be measured", cause=facts.rpo.unknown),
            machine.name,
            Severity.WARNING,
        )
    certain_s = facts.rpo.at_least_s if facts.rpo.seconds is None else facts.rpo.seconds
    if certain_s is not None and certain_s > machine.policy.rpo_threshold_s:
        yield problem_of(
            RpoThresholdError(
                f"The RPO of {machine.name} is over its threshold",
                # Coarse, so that the event's words do not change with every look.
                cause=f"{machine.policy.rpo_threshold_s:.0f} s of its writes, or more, are not in storage",
            ),
            machine.name,
            Severity.WARNING,
        )


def problems_with(seen: Seen, now_ns: int) -> Iterator[Problem]:
    """What is wrong with a daemon, or with what it does for any machine: its own words, and what it cannot say of itself. What one that is
    silent said last is not believed."""
    yield from _seen_from_outside(seen, seen.source, now_ns)
    if not seen.is_silent(now_ns):
        yield from problems_of(seen)


def _seen_from_outside(seen: Seen, name: str, now_ns: int) -> Iterator[Problem]:
    """What a daemon cannot say of itself, as a problem of `name`."""
    if seen.is_missing(now_ns):
        yield problem_of(silence(seen, now_ns), name)
    elif abs(seen.skew_ns) > SKEW_LIMIT_S * SECOND_NS:
        yield problem_of(skewed(seen, name), name, Severity.WARNING)


def replicates(machine: Machine, facts: Facts, now_ns: int) -> bool:
    """Whether it does, or did until nothing was heard any more; where its protection was ended that is what was wanted."""
    if facts.agent is not None and any(disk.mode for disk in facts.agent[1].disks):
        return not machine.ended or not facts.agent[0].is_silent(now_ns)
    return facts.stream is not None and facts.stream[1].connected and not facts.stream[0].is_silent(now_ns)


def silence(seen: Seen, now_ns: int) -> DisconnectedError:
    minutes = int(seen.age_s(now_ns) // 60)
    since = f"more than {minutes} min" if minutes else "15 seconds"
    return DisconnectedError(
        f"{seen.role} '{seen.name}' does not report", cause=f"nothing was heard of it for {since}"
    )


def skewed(seen: Seen, name: str) -> ClockSkewError:
    ahead = "behind" if seen.skew_ns > 0 else "ahead of"
    return ClockSkewError(
        f"The clock of {name} is wrong, or the config server's is",
        cause=f"it is {abs(seen.skew_ns) / SECOND_NS:.0f} s {ahead} the config server's",
    )


def problem_of(exc: UnhealthyError, object_: str, severity: Severity = Severity.ERROR) -> Problem:
    return Problem(**exc.as_dict(), severity=severity, object=object_)


def _state(machine: Machine, facts: Facts, now_ns: int) -> tuple[str, str]:
    if not machine.protected and machine.wish is not None:
        return MachineState.UNPROTECTED, _ended(machine, facts, now_ns)
    if not machine.protected:
        but = "it replicates all the same: " if replicates(machine, facts, now_ns) else ""
        return MachineState.UNPROTECTED, f"{but}nobody asked for its protection, or it was ended"
    if facts.agent is None:
        return MachineState.NOT_CONNECTED, "its agent has not reported yet"
    seen, report = facts.agent
    if seen.is_silent(now_ns):
        if not seen.is_missing(now_ns):
            return (
                MachineState.DISCONNECTED,
                "the config server has just started, and its agent has not reported yet",
            )
        return MachineState.DISCONNECTED, silence(seen, now_ns).cause
    return report.state, report.cause


def _ended(machine: Machine, facts: Facts, now_ns: int) -> str:
    if not replicates(machine, facts, now_ns):
        return "its protection was ended"
    if wish_view.is_stopping(machine, facts.agent, now_ns):
        return "its protection was ended; its agent has not stopped yet"
    return "its protection was ended, and it replicates all the same"


def _worst_mode(report: AgentReport) -> str:
    modes = {disk.mode for disk in report.disks}
    return next((mode for mode in reversed(CaptureMode) if mode in modes), "")


def _hops(facts: Facts, now_ns: int) -> Iterator[HopView]:
    """The data path, hop by hop, so that the one that is behind can be seen."""
    agent_seen, agent = facts.agent if facts.agent else (None, AgentReport())
    stream_seen, stream = facts.stream if facts.stream else (None, StreamReport())
    apply_seen, apply = facts.apply if facts.apply else (None, ApplyReport())
    used = agent.ring_used_b / agent.ring_b if agent.ring_b else 0.0
    yield _hop(
        "capture",
        agent_seen,
        now_ns,
        ok=agent.state == MachineState.ORDERED,
        detail=f"{agent.state}, ring {used:.0%} of {_mib(agent.ring_b)}",
    )
    sending = agent.connected is not False and (stream_seen is None or stream.connected)
    yield _hop(
        "stream",
        agent_seen,
        now_ns,
        ok=sending,
        detail=f"batch {agent.sent} sent, {agent.spooled} spooled"
        + ("" if sending else "; no session with a process server"),
    )
    yield _hop(
        "upload",
        stream_seen,
        now_ns,
        ok=not stream.errors,
        detail=f"batch {stream.spooled} spooled, {stream.uploaded} uploaded,"
        f" {_mib(stream.pending_b)} pending",
    )
    behind = max(0, stream.uploaded - apply.applied) if apply.epoch == stream.epoch else stream.uploaded
    yield _hop(
        "apply",
        apply_seen,
        now_ns,
        ok=not apply.errors,
        detail=f"batch {apply.applied} applied, {behind} batches behind"
        + (f", {apply.lag_s:.0f} s" if apply.lag_s is not None else ""),
    )


def _hop(name: str, seen: Seen | None, now_ns: int, *, ok: bool, detail: str) -> HopView:
    if seen is None:
        return HopView(
            name=name, where="", state=HopState.UNKNOWN, detail="nothing reported yet", seen_s=None
        )
    state = HopState.OK if ok and not seen.is_silent(now_ns) else HopState.WAITING
    if seen.is_missing(now_ns):
        state = HopState.ERROR
    return HopView(name=name, where=seen.source, state=state, detail=detail, seen_s=seen.age_s(now_ns))


def _mib(size_b: int) -> str:
    return f"{size_b / (1 << 20):.0f} MiB"
