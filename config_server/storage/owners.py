"""Which process server a machine is with (serving.py), where storage has to be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from config_server.rules.clock import SECOND_NS
from config_server.rules.serving import Agent, Signature, Stream, in_words, is_clear, rivals, signature
from config_server.storage.account import Storage
from shared.daemon import logging
from shared.errors import MachineNotFoundError, UnderstudyError
from shared.log.epochs import epoch_numbers
from shared.log.index import NO_TERM
from shared.log.terms import newest_term, read_term

_log = logging.get()

LASTING_S: Final = 60.0
"""A session that was cut without a word is over by then."""
_ASK_S: Final = 2.0
_AGAIN_S: Final = 600.0
_SOONEST_S: Final = 10.0
"""Between two questions about one machine, whatever changes."""


class _Asked(NamedTuple):
    signature: Signature
    at_s: float
    owner: str | None
    """Empty: nobody, for no term of it was ever taken. None: not known."""


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
        return f"{'; '.join(in_words(stream) for stream in against)}; {in_words(order[-1])}, and is believed"

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
