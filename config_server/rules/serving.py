"""Which process server a machine is with, of several that report it.

A server that had the machine once goes on to report what it has of it: an older epoch; a session that is over and that it does not know to
be over; a higher epoch even, from before the machine's container was made anew. A broken one may say anything. None of these may hide what
the machine's present server says. The first that tells two apart counts (`ranked`):

1. the machine's own word: its agent, which is heard, names boot and epoch; who has this session in this epoch is the one;
2. storage's: who took the newest term, of the newest epoch that has one. It is asked only when the machine's word does not decide, or
   somebody is about to be refused for what a server says of sessions: not for each report, and not again while nothing changes, but every
   ten minutes;
3. whoever reports before whoever is silent, a session before none, then the newer epoch, batch, report.

So a server that fell silent stays the machine's, and its silence an error of the machine, while the machine or storage calls it so. That
servers disagree is shown, with what each says, once it lasts: of a machine that moves both have it for a moment.

A server has taken the term before it opens a session (process_server/spool/epoch_log.py). So where no epoch of a machine has one, nobody
has a session with it, whoever says so: a machine that was only just registered is kept out by nobody. An epoch whose term is still missing
is beginning: until it is taken, the machine's server is that of the epoch before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from config_server.rules.presence import Seen
from shared.status import AgentReport, StreamReport

Agent = tuple[Seen, AgentReport] | None
Stream = tuple[Seen, StreamReport]
Signature = frozenset[tuple[str, int, bool, str]]


def ranked(streams: Iterable[Stream], agent: Agent, owner: str, now_ns: int) -> list[Stream]:
    """The one that the machine is with comes last."""
    return sorted(
        streams,
        key=lambda stream: (
            _has_session(stream, agent, now_ns),
            stream[0].name == owner,
            not stream[0].is_silent(now_ns),
            stream[1].connected,
            stream[1].epoch,
            stream[1].spooled,
            stream[0].heard_ns,
        ),
    )


def is_clear(streams: Sequence[Stream], agent: Agent, now_ns: int) -> bool:
    """Whether the machine's word decides, or there is nothing to decide."""
    return len(streams) < 2 or sum(_has_session(stream, agent, now_ns) for stream in streams) == 1


def rivals(order: Sequence[Stream], now_ns: int) -> list[Stream]:
    """Of `ranked`: who contradicts the last. Both say that they have a session, or the other is in a later epoch."""
    if not order:
        return []
    *others, (_, chosen) = order
    return [
        (seen, stream)
        for seen, stream in others
        if not seen.is_silent(now_ns)
        and ((stream.connected and chosen.connected) or stream.epoch > chosen.epoch)
    ]


def signature(streams: Iterable[Stream]) -> Signature:
    """What would have to change before it is worth while to ask storage again."""
    return frozenset((seen.name, stream.epoch, stream.connected, stream.boot) for seen, stream in streams)


def _has_session(stream: Stream, agent: Agent, now_ns: int) -> bool:
    """Whether the machine says the same: it is in this epoch, under this boot, and has a session."""
    if agent is None or agent[0].is_silent(now_ns) or agent[1].connected is False:
        return False
    said, report = agent[1], stream[1]
    return report.connected and (report.boot, report.epoch) == (said.boot, said.epoch) and bool(said.boot)


def in_words(stream: Stream) -> str:
    seen, report = stream
    session = f"has its session with boot {report.boot}" if report.connected else "has no session"
    return f"{seen.source} {session} in epoch {report.epoch}"
