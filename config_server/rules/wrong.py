"""What is wrong with a machine, or a daemon: what is reported of it, and what nobody can report of himself. Pure.

`now_ns` is monotonic here, as in the view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from config_server.rules import wish_view
from config_server.rules.clock import SECOND_NS
from config_server.rules.conditions import DISKS_LEFT_OUT, NOT_AT_WORK, UNDONE, lasting_of
from config_server.rules.facts import SELF, Facts, replicates
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen, problems_of
from config_server.rules.sights import Look
from shared.api.machines import ErrorView
from shared.errors import (
    ClockSkewError,
    DisconnectedError,
    RpoThresholdError,
    RpoUnknownError,
    ServersDisagreeError,
    UnhealthyError,
    UnprotectedReplicationError,
)
from shared.status import Problem
from shared.vocabulary import Severity

SKEW_LIMIT_S: Final = 5.0
_FOLLOW: Final = frozenset({NOT_AT_WORK, DISKS_LEFT_OUT})
"""Conditions that follow from it when an agent does not do what is wanted, whatever hinders it."""


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
    # Of a server that it is not with: what ails the machine there, say batches that still wait for upload; of another master target that
    # tries to follow it, why it cannot.
    found += [
        (seen.source, problem)
        for seen, _ in (*facts.others, *facts.other_applies)
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
    """What no daemon can report of itself: silence, work that is not done, RPO over the threshold, clocks that differ."""
    if facts.hindered is not None:
        yield problem_of(facts.hindered, machine.name, Severity.WARNING)
    not_done = wish_view.not_done(machine, facts, now_ns, is_long=UNDONE in facts.lasting)
    if not_done is not None:
        is_bad = machine.protected and not facts.lasting.isdisjoint(_FOLLOW)
        yield problem_of(not_done, machine.name, Severity.ERROR if is_bad else Severity.WARNING)
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
    look = Look(machine, facts, now_ns)
    said = {UNDONE} if not_done is None and nothing is None else {UNDONE, *_FOLLOW}
    for condition in lasting_of(facts):
        if condition.name not in said:
            yield condition.problem(look)
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
                # Of a machine that is gone nothing need be missing: it grows all the same.
                cause=(
                    f"the newest state of it in storage is more than {machine.policy.rpo_threshold_s:.0f} s old; what it wrote"
                    " since then, if anything, is not there"
                ),
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
        yield problem_of(
            silence(seen, now_ns), name, Severity.ERROR if seen.is_lost(now_ns) else Severity.WARNING
        )
    elif abs(seen.skew_ns) > SKEW_LIMIT_S * SECOND_NS:
        yield problem_of(skewed(seen, name), name, Severity.WARNING)


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
