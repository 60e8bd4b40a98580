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

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from config_server.clock import SECOND_NS
from config_server.presence import Seen
from config_server.storage import Storage
from shared import logging
from shared.errors import MachineNotFoundError, UnderstudyError
from shared.log.epochs import epoch_numbers
from shared.log.index import NO_TERM
from shared.log.terms import newest_term, read_term
from shared.status import AgentReport, StreamReport

_log = logging.get()

LASTING_S: Final = 60.0
"""A session that was cut without a word is over by then."""
_ASK_S: Final = 2.0
_AGAIN_S: Final = 600.0
_SOONEST_S: Final = 10.0
"""Between two questions about one machine, whatever changes."""

Agent = tuple[Seen, AgentReport] | None
Stream = tuple[Seen, StreamReport]
Signature = frozenset[tuple[str, int, bool, str]]


class _Asked(NamedTuple):
    signature: Signature
    at_s: float
    owner: str | None
    """Empty: nobody, for no term of it was ever taken. None: not known."""


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


def _words(stream: Stream) -> str:
    seen, report = stream
    session = f"has its session with boot {report.boot}" if report.connected else "has no session"
    return f"{seen.source} {session} in epoch {report.epoch}"


class Serving:
    """Asks storage, and remembers since when servers disagree."""

    def __init__(self, storage: Storage) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self._storage = storage
        self._asked: dict[str, _Asked] = {}
        self._wanted: dict[str, Signature] = {}
        self._since_ns: dict[str, int] = {}

    def owner(self, machine: str) -> str:
        """As storage said last; empty when it never did, or there is none."""
        return self._known(machine) or ""

    def look(self, machine: str, order: Sequence[Stream], agent: Agent, now_ns: int) -> str:
        """Notes what is unclear, to be asked for. What the servers say, when they have disagreed for long; else nothing."""
        if is_clear(order, agent, now_ns):
            self._wanted.pop(machine, None)
        else:
            self._wanted[machine] = signature(order)
        against = rivals(order, now_ns)
        if not against:
            self._since_ns.pop(machine, None)
            return ""
        if now_ns - self._since_ns.setdefault(machine, now_ns) < LASTING_S * SECOND_NS:
            return ""
        return f"{'; '.join(_words(stream) for stream in against)}; {_words(order[-1])}, and is believed"

    async def ask(self) -> None:
        """Storage, about the machines of which it is unclear."""
        await asyncio.gather(*(self.asked(machine, wanted) for machine, wanted in self._wanted.items()))

    async def asked(self, machine: str, wanted: Signature) -> str | None:
        """Who has the machine by storage, asked unless that was answered for these words of the servers; empty when no term of
        it was ever taken; None when that is not known."""
        now_s = self.clock()
        before = self._asked.get(machine)
        if before is not None:
            same = before.signature == wanted and bool(before.owner)
            if now_s - before.at_s < (_AGAIN_S if same else _SOONEST_S):
                return before.owner
        # Of many who ask at once, one does. Nothing is answered yet, so this is for no words.
        self._asked[machine] = _Asked(frozenset(), now_s, self._known(machine))
        try:
            async with asyncio.timeout(_ASK_S):
                owner = await self._find(machine)
        except MachineNotFoundError:
            owner = ""
        except (UnderstudyError, TimeoutError) as exc:
            _log.info("not asked whose a machine is", machine=machine, cause=str(exc))
            return self._known(machine)
        self._asked[machine] = _Asked(wanted, now_s, owner)
        return owner

    def _known(self, machine: str) -> str | None:
        asked = self._asked.get(machine)
        return None if asked is None else asked.owner

    async def _find(self, machine: str) -> str:
        """As `asked`, and raises."""
        store = await self._storage.machines().find(machine)
        for epoch in reversed(await epoch_numbers(store)):
            if (term := await newest_term(store, epoch)) != NO_TERM:
                return (await read_term(store, epoch, term.number)).owner
        return ""
