"""What is known of a machine: the reports of its agent, and of the process server and the master target that it is with. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from config_server.rules.machine import Machine
from config_server.rules.presence import Presence, Seen
from config_server.rules.serving import ranked
from shared.api.points import PointView
from shared.errors import UnhealthyError
from shared.status import AgentReport, ApplyReport, Problem, StreamReport
from shared.vocabulary import ApplyState, Role

SELF: Final[str] = Role.CONFIG_SERVER
"""The source of what this server says of itself, and of others by itself."""
NOT_FOLLOWING: Final[frozenset[str]] = frozenset(ApplyState) - {ApplyState.FOLLOWING}
"""Words of a master target that does nothing for the machine now. Of one that is not known here, what it applies tells."""


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
    other_applies: tuple[tuple[Seen, ApplyReport], ...] = ()
    """Of other master targets."""
    lasting: frozenset[str] = frozenset()
    """Names of the conditions that have lasted for too long (lasting.py)."""
    untaken: tuple[str, int] | None = None
    """The act that its agent was told of and does not go by, and since when."""
    hindered: UnhealthyError | None = None
    """Why it is not deleted although somebody wants that (deletion.py)."""
    withheld_ns: int | None = None
    """Since when its agent reports and is told no opinion; None: it is told."""


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
            a[1].state not in NOT_FOLLOWING,
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
        other_applies=tuple(applies[:-1]),
    )


def reported_ns(facts: Facts) -> int:
    """The time of the newest ordered state in storage, as the daemons know it; 0 when none does (any more)."""
    return max(
        facts.stream[1].ordered_captured_ns if facts.stream else 0,
        facts.agent[1].uploaded_captured_ns if facts.agent else 0,
    )


def replicates(machine: Machine, facts: Facts, now_ns: int) -> bool:
    """Whether it does, or did until nothing was heard any more; where its protection was ended that is what was wanted."""
    if facts.agent is not None and any(disk.mode for disk in facts.agent[1].disks):
        return not machine.ended or not facts.agent[0].is_silent(now_ns)
    return facts.stream is not None and facts.stream[1].connected and not facts.stream[0].is_silent(now_ns)
