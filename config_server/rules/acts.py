"""Whether an operator's act has come true, in what words people hear what it waits for, and what is said so that it is as before. Pure.

An act counts from the moment in which it is written down, whatever its agent does. Whether its agent goes by it, and its disks are in order
then, or nothing is captured any more, is another thing: that is what a job waits for (operations/protection_jobs.py), for weeks if need be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from config_server.rules import wish_view
from config_server.rules.clock import rfc3339
from config_server.rules.disks import Offer
from config_server.rules.facts import Facts
from config_server.rules.machine import Machine
from config_server.rules.sights import Look, goes_by, left_out
from config_server.rules.wishes import covers, in_words, named, with_ids, without
from shared.desired import Verb, WantedDisk, Wish
from shared.errors import RequestError, SaidSinceError, WishRefusedError
from shared.status import AgentReport, StreamReport
from shared.vocabulary import MachineState

_NAMED: Final = 8
"""So many disks are named in words."""
_CAUSE: Final = 300
"""So much is said of what an agent says."""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What a job sees to: the arguments of `protect` and `unprotect`."""

    act: str
    """`Mark.act`: also where its number rises later, or disks are added to it that its agent protects, it is this act."""
    wants: str
    """In words."""
    instead_of: str
    said: Wish
    """As it was said first. Disks and process servers of which nobody spoke may have been added to it since, because its agent has them
    (desired_state.py)."""
    before: Wish | None
    """What was wanted until then, by this database, or, where that had no opinion, what its agent went by; None: neither."""
    captured: bool | None
    """Where nothing was: whether its agent protected disks all the same, by its configuration; None: nobody knew."""
    incarnation: str = ""
    """Of the database, when it was said last; empty: by an earlier version."""


class Rebound(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `rebind`."""

    identity: str
    generation: int
    """Of the active side."""
    before: str
    """Who the machine was until then; empty: nobody, or nobody knows."""


def act_over(before: Machine | None, after: Wish, report: AgentReport | None) -> Act:
    """`report`: the last one of its agent, if that speaks for the machine."""
    wish = before.wish if before is not None else None
    captured: bool | None = None
    if report is not None:
        wish = wish or report.wish
        captured = Offer.of(report).goes_by != ()
    if before is not None and before.protected:
        captured = True  # as it was recorded before there were wishes
    return Act(
        act=after.mark.act,
        wants=in_words(after),
        instead_of=in_words(wish),
        said=after,
        before=wish,
        captured=captured,
        incarnation=after.mark.incarnation,
    )


def is_same(one: Wish, other: Wish) -> bool:
    """Whether two acts want the same."""
    is_stop = one.verb is Verb.STOP
    same_servers = is_stop or one.process_servers == other.process_servers
    return same_servers and covers(one, other) and covers(other, one)


class Said(NamedTuple):
    """An act to come."""

    verb: Verb
    disks: tuple[WantedDisk, ...] = ()
    process_servers: tuple[str, ...] = ()

    def is_wanted(self, wish: Wish) -> bool:
        """Already."""
        return is_same(
            wish, Wish(mark=wish.mark, verb=self.verb, disks=self.disks, process_servers=self.process_servers)
        )


def as_before(machine: str, act: Act, wish: Wish, *, is_heard: bool) -> Said | None:
    """What is to be said so that it is wanted again what was wanted before the act, which is `wish` by now: its disks by the ids under
    which they are known since, and with what was added to it, since nobody has said that this shall go. None: no opinion, as then; its
    agent was never heard (`is_heard`), so it was not told of the act. One that was told keeps what it was told, so to one that went by
    its configuration that has to be said. Raises RequestError for what this version cannot say, and where nobody knows what its agent
    did: it may not be stopped, nor lose a disk."""
    before = act.before
    if before is None and act.captured is None:
        if is_heard:
            raise _unsayable(
                machine, "its agent had not been heard then, so nobody knows what it did by itself"
            )
        return None
    if before is None:
        return Said(Verb.PROTECT if act.captured else Verb.STOP)
    if before.verb is Verb.OTHER:
        raise _unsayable(machine, f"it was {in_words(before)}")
    disks, servers = with_ids(before.disks, wish.disks), before.process_servers
    if before.verb is act.said.verb is Verb.PROTECT:
        disks = (*disks, *without(wish.disks, act.said.disks, disks))
        servers = servers if wish.process_servers == act.said.process_servers else wish.process_servers
    return Said(before.verb, disks, servers)


def may_have_ended(machine: str) -> RequestError:
    """Of a job in a database that was put back since its act, which the agent goes by."""
    return _unsayable(
        machine,
        "its agent goes by this act, and whether the job had come to its end before the database was put back nobody knows",
    )


def _unsayable(machine: str, cause: str) -> RequestError:
    return RequestError(
        f"What was wanted of '{machine}' before was not said again",
        cause=cause,
        action=f"Say what is wanted: understudy machine protect {machine}, or unprotect.",
    )


def said_since(what: str, wish: Wish | None) -> SaidSinceError:
    """Something else is wanted than what the job sees to, and nobody said so to this server: it comes from the agent, or the machine stands
    on other hardware."""
    holds = in_words(wish) if wish is not None else "nothing, and its agent goes by its configuration"
    return SaidSinceError(what, cause=f"what holds now is {holds}")


def plain(machine: Machine | None) -> Any:
    """What of it an act may change, for the audit log."""
    if machine is None:
        return None
    return {
        "protected": machine.protected,
        "disks": [disk.device for disk in machine.disks],
        "wish": msgspec.to_builtins(machine.wish),
        "policy": machine.policy_name or msgspec.to_builtins(machine.policy),
    }


# ---- what is waited for; empty: nothing more


def untaken(machine: Machine, facts: Facts, now_ns: int) -> str:
    """Until its agent says that it goes by what is wanted. What it has said holds also when it is not heard any more."""
    wish = machine.wish
    if facts.agent is None:
        return f"the agent of {machine.name}, which has never reported"
    seen, report = facts.agent
    if wish is not None and goes_by(report, wish):
        return ""
    if seen.is_silent(now_ns):
        return unheard(machine.name, seen.received_ns)
    for problem in report.errors:
        if problem.code == WishRefusedError.code:
            return (
                f"the agent of {machine.name}, which refuses it: {(problem.cause or problem.what)[:_CAUSE]}"
            )
    error = wish_view.not_done(machine, facts, now_ns, is_long=True)
    return f"the agent of {machine.name} to do so" + (f": {error.cause}" if error is not None else "")


def unheard(machine: str, received_ns: int) -> str:
    return f"the agent of {machine}, not heard since {rfc3339(received_ns)[:19]}Z"


def not_in_order(machine: Machine, facts: Facts, now_ns: int) -> str:
    """Until all wanted disks are."""
    if facts.agent is None:
        return untaken(machine, facts, now_ns)
    seen, report = facts.agent
    if seen.is_silent(now_ns):
        return unheard(machine.name, seen.received_ns)
    look = Look(machine, facts, now_ns)
    if left := left_out(look):
        return f"its agent to capture {_names(map(named, left))}"
    behind = [
        disk.device or disk.name for disk in report.disks if disk.state not in ("", MachineState.ORDERED)
    ]
    if report.state == MachineState.ORDERED and not behind:
        return ""
    state = report.state if report.state != MachineState.ORDERED else f"not in order yet: {_names(behind)}"
    return f"{machine.name} is {state}" + (f" ({report.cause[:_CAUSE]})" if report.cause else "")


def progress(facts: Facts) -> float | None:
    """Of the disk that is furthest behind, 0…1."""
    disks = facts.agent[1].disks if facts.agent is not None else []
    return min((disk.progress for disk in disks if disk.progress is not None), default=None)


def not_stopped(machine: Machine, facts: Facts, now_ns: int) -> str:
    """Until its agent says that it captures nothing, and no process server has a session with it. What its agent said last counts, heard
    or not: one that was switched off behind that comes back, if ever, as it went."""
    if facts.agent is not None and (captured := [disk for disk in facts.agent[1].disks if disk.mode]):
        return f"its agent, which captures {_names(disk.device or disk.name for disk in captured)}"
    if facts.stream is not None and facts.stream[1].connected and not facts.stream[0].is_silent(now_ns):
        return f"{facts.stream[0].source}, which has a session with it"
    return ""


def is_done(before: Machine, facts: Facts, now_ns: int) -> bool:
    """Whether there is nothing to be done for an act that wants the same once more."""
    if before.wish is None or facts.agent is None or not goes_by(facts.agent[1], before.wish):
        return False
    waits = not_stopped if before.wish.verb is Verb.STOP else not_in_order
    return not waits(before, facts, now_ns)


def unserved(machine: Machine | None, identity: str, facts: Facts, now_ns: int) -> str:
    """Until the agent of the hardware that is the machine now (`identity`) reports, and a process server says that it has a session with
    it; without that one where nothing is to be replicated, and is not."""
    if facts.agent is None or facts.agent[1].identity != identity:
        return f"the agent of {identity}, which has not reported yet"
    seen, report = facts.agent
    if seen.is_silent(now_ns):
        return unheard(seen.name, seen.received_ns)
    is_replicated = machine is not None and machine.protected
    if not is_replicated and not any(disk.mode for disk in report.disks):
        return ""
    boots = {report.boot, report.former} - {""}
    servers = [facts.stream, *facts.others] if facts.stream is not None else []
    if any(_serves(stream, boots) and not server.is_silent(now_ns) for server, stream in servers):
        return ""
    if not any(disk.mode for disk in report.disks):
        return f"disks of {identity} to be named (understudy machine protect {seen.name}): its agent captures none"
    return f"a process server to say that it serves {identity}"


def _serves(stream: StreamReport, boots: set[str]) -> bool:
    return stream.connected and stream.boot in boots


def _names(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {more} more" if more > 0 else "")
