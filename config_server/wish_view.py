"""What is wanted of a machine, as people see it, and whether its agent does so. Pure. `now_ns` is monotonic."""

from __future__ import annotations

from config_server.clock import SECOND_NS, rfc3339
from config_server.inventory import Machine
from config_server.presence import Seen
from config_server.wishes import UNTAKEN_S, in_words
from shared.desired import Verb, Wish
from shared.errors import NothingCapturedError, WishUntakenError
from shared.messages import WishView
from shared.status import AgentReport
from shared.vocabulary import MachineState

Agent = tuple[Seen, AgentReport] | None


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
        pending=None if _goes_by(report, wish) else since,
        mark=wish.mark,
    )


def _goes_by(report: AgentReport, wish: Wish) -> bool:
    return report.wish is not None and report.wish.mark == wish.mark


def is_stopping(machine: Machine, agent: Agent, now_ns: int) -> bool:
    """Its agent reports, so it is told, and a problem of its own when it does not do so."""
    is_heard = agent is not None and not agent[0].is_silent(now_ns)
    return is_heard and machine.wish is not None and machine.wish.verb is Verb.STOP


def captures_nothing(machine: Machine, agent: Agent, now_ns: int) -> NothingCapturedError | None:
    """What is said of an agent that goes by what is wanted and protects nothing all the same; where it failed to, it says so itself."""
    if agent is None or agent[0].is_silent(now_ns) or not machine.protected:
        return None
    report = agent[1]
    is_news = machine.wish is not None and not _goes_by(report, machine.wish)
    if is_news or report.state != MachineState.UNPROTECTED or any(disk.mode for disk in report.disks):
        return None
    return NothingCapturedError(
        f"{machine.name} is to be protected, and nothing of it is captured", cause=report.cause
    )


def untaken(
    machine: Machine, agent: Agent, told: tuple[str, int] | None, now_ns: int
) -> WishUntakenError | None:
    """What is said of an agent that has been told for long, and reports, and does not do it."""
    wish = machine.wish
    if wish is None or agent is None or agent[0].is_silent(now_ns):
        return None
    act, since_ns = told or ("", now_ns)
    if act != wish.mark.act or now_ns - since_ns <= UNTAKEN_S * SECOND_NS:
        return None
    report = agent[1]
    cause = f"it goes by {in_words(report.wish)}, and is told: {in_words(wish)}"
    if report.wish is None and not report.available:
        cause += f"; it may be older than wishes (its version is {report.version or 'not known'}): upgrade it"
    elif report.errors:
        cause += f"; it reports {report.errors[0].code} {report.errors[0].what}"[:300]
    return WishUntakenError(f"The agent of {machine.name} does not do what it is told", cause=cause)
