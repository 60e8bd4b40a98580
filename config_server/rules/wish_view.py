"""What is wanted of a machine, as people see it, and whether its agent does so. Pure. `now_ns` is monotonic."""

from __future__ import annotations

from typing import Final

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.facts import Facts
from config_server.rules.machine import Machine
from config_server.rules.presence import Seen
from config_server.rules.sights import Look, goes_by, unwanted
from config_server.rules.wishes import UNTAKEN_S, in_words
from shared.api.machines import WishView
from shared.desired import Verb, Wish
from shared.errors import NothingCapturedError, UnhealthyError, WishUntakenError, WishWithheldError
from shared.machine import active_side
from shared.status import AgentReport
from shared.vocabulary import MachineState

Agent = tuple[Seen, AgentReport] | None
_NAMED: Final = 8
"""So many disks are named in words."""


def shown(machine: Machine, report: AgentReport) -> WishView | None:
    wish = machine.wish
    if wish is None:
        return None
    since = rfc3339(machine.wish_ns)
    return WishView(
        verb=wish.verb,
        disks=[] if wish.verb is Verb.STOP else [disk.device for disk in wish.disks],
        process_servers=list(wish.process_servers),
        since=since,
        pending=None if goes_by(report, wish) else since,
        mark=wish.mark,
    )


def is_stopping(machine: Machine, agent: Agent, now_ns: int) -> bool:
    """Its agent reports, so it is told, and a problem of its own when it does not do so."""
    is_heard = agent is not None and not agent[0].is_silent(now_ns)
    return is_heard and machine.wish is not None and machine.wish.verb is Verb.STOP


def captures_nothing(machine: Machine, agent: Agent, now_ns: int) -> NothingCapturedError | None:
    """What is said of an agent that goes by what is wanted and protects nothing all the same; where it failed to, it says so itself."""
    if agent is None or agent[0].is_silent(now_ns) or not machine.protected:
        return None
    report = agent[1]
    is_news = machine.wish is not None and not goes_by(report, machine.wish)
    if is_news or report.state != MachineState.UNPROTECTED or any(disk.mode for disk in report.disks):
        return None
    return NothingCapturedError(
        f"{machine.name} is to be protected, and nothing of it is captured", cause=report.cause
    )


def not_done(machine: Machine, facts: Facts, now_ns: int, *, is_long: bool) -> UnhealthyError | None:
    """What is said of an agent that has long reported, and does not do what is wanted: it does not go by it, or only says so, or nobody
    tells it. `is_long`: it is so for as long as any of that may take (conditions.py), whatever was seen of what it is told."""
    look = Look(machine, facts, now_ns)
    wish, report = machine.wish, look.agent
    if wish is None or report is None:
        return None

    def is_due(since_ns: int) -> bool:
        return is_long or now_ns - since_ns > UNTAKEN_S * SECOND_NS

    act, since_ns = facts.untaken or ("", now_ns)
    if act == wish.mark.act and is_due(since_ns):
        return _untaken(machine.name, report, wish)
    if facts.withheld_ns is not None and is_due(facts.withheld_ns) and not goes_by(report, wish):
        return _withheld(machine, report, wish)
    return undone(look) if is_long else None


def undone(look: Look) -> UnhealthyError:
    """Of an agent that is to do something (sights.py), is not told so, or has taken it."""
    assert look.wish is not None
    assert look.agent is not None
    if goes_by(look.agent, look.wish):
        captured = ", ".join(unwanted(look)[:_NAMED])
        goes_on = (
            f"it captures all the same: {captured}"
            if captured
            else "its process server has a session with it"
        )
        return WishUntakenError(
            f"The agent of {look.name} does not do what it is told",
            cause=f"it says that it goes by {in_words(look.wish)}; {goes_on}",
        )
    cause = f"it goes by {in_words(look.agent.wish)}; wanted is: {in_words(look.wish)}"
    if not look.agent.available:
        cause = f"it has not said which disks its host has, so it is not known which are meant; {cause}"
    return WishWithheldError(
        f"The agent of {look.name} is not told what is wanted of it",
        cause=cause,
        action=f"See what the agent says of its disks (understudy event list --object {look.name} --open) and its log; or name the disks"
        f" anew, as understudy machine disks {look.name} shows them.",
    )


def _untaken(name: str, report: AgentReport, wish: Wish) -> UnhealthyError:
    cause = f"it goes by {in_words(report.wish)}, and is told: {in_words(wish)}"
    if not report.available:
        cause += ", once it has said which disks there are"
    if report.wish is None and not report.available:
        cause += f"; it may be older than wishes (its version is {report.version or 'not known'}): upgrade it"
    elif report.errors:
        cause += f"; it reports {report.errors[0].code} {report.errors[0].what}"[:300]
    return WishUntakenError(f"The agent of {name} does not do what it is told", cause=cause)


def _withheld(machine: Machine, report: AgentReport, wish: Wish) -> UnhealthyError:
    here, known = active_side.shown(report.identity), active_side.shown(machine.identity)
    return WishWithheldError(
        f"The agent of {machine.name} is not told what is wanted of it",
        cause=f"it reports from {here}, what is wanted was said of {known}, and it is not known that the machine is the former now."
        f" It goes by {in_words(report.wish)}; wanted is: {in_words(wish)}",
    )
