"""Disks that refuse more than there is room to name: given up, where the others wait for them. Never blocks.

What a disk refuses is declared, to the sector, in words of which there is an end (`stream.unreadable`). When they are used up, the rest
stays to do (US594), and with it the order of all disks: a leg of a volume that does not come back is enough. Such a disk answers. So it
is not given up as one that hangs (`hanging`), and the fitting of capture would find nothing to leave out.

When that has lasted for as long as `Patience` says, in a stream that is not ordered and could be, one disk is given up: of those that lack
room the one of which most sectors are named. While it may have room by now (below), nobody is: what is known of it is the least that it
needs, and another that goes in its stead would have gone in vain. A new epoch begins without it, in which nothing is declared yet. For what
the others refuse there was room beside it; so there is without it. It is done only while another disk is there that lacks nothing but room,
and when it has refused something since the time was over: while no server takes what is read nobody reads, and what was said last is old.

**Room that there is by now.** A round names nothing more of a disk when one chunk did not fit, and does not look through the others: of
each it knows one bad sector (`lane.Lack`). Meanwhile words may have become free. Whether what is really refused fits by now, nobody knows
then. It is not more than all of those chunks: but whoever counted that would give up a disk with twenty bad sectors in twenty chunks, at
the price of a resync. It is not less than what is known: but whoever hoped for that would wait for ever for a disk of which everything else
does not fit, where words are freed now and then. What knows is the next round: it names what fits, to the sector. So

- where what is known has no room, the disk is given up: what is refused has none, either;
- where it has, and the wait is over, the disk is let off once, until a chunk was tried again and had no room. Tried, not only left: the
  rest of a round that was full before asks for no room. If all that is bad fits, and nobody else takes the room, that does not happen, and
  the round ends the lack. If it happens, what is bad did not fit, behind the wait: the disk is given up at the next look, however much was
  freed since. That is a round later than it could be, but not never.

A lack that is over is forgotten with that; the next one is let off by itself. The wait is one for all of them: it ends when nobody lacks
room any more.

It is taken in again when it gives what it refused: a sample of that, spread over all of it, is read when disks that are left out are looked
for (`capture.watch`), less and less often. Most of it must be given, not all: a leg that is back may have some sectors that are bad for
good. Should it be as bad as before all the same, it is waited for twice as long before it is given up once more. Only this process knows
the sample: an agent that is started again takes the disk in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

from agent.capture.look import Refusing
from agent.capture.maps import Capture
from agent.continuity.patience import Patience
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Word
from agent.stream.unreadable import Unreadable
from shared.errors import TooMuchUnreadableError

SAMPLE: Final = 16
"""Sectors."""


class OutOfRoom:
    def __init__(
        self,
        capture: Capture,
        state: AgentState,
        rounds: Rounds,
        unreadable: Callable[[], Unreadable],
        patience: Patience,
    ) -> None:
        self._disks = capture.disks
        self._may_be_ordered = capture.mode == "ordered"
        self._state = state
        self._rounds = rounds
        self._unreadable = unreadable
        """Each epoch's is another."""
        self._patience = patience
        self._since: float | None = None
        """Monotonic: since when room lacks, and order for that."""
        self._let_off: dict[int, float] = {}
        """When a disk was, behind the wait, since there was room for what was known (monotonic)."""

    def give_up(self, gone: Collection[int]) -> dict[str, Refusing]:
        """By id, the disk without which the others are to go on from now on, if there is one."""
        troubled = {} if self._state[Word.ORDERED] else self._rounds.unread()
        lacking = {slot for slot, error in troubled.items() if isinstance(error, TooMuchUnreadableError)}
        now = time.monotonic()
        self._let_off = {slot: at for slot, at in self._let_off.items() if slot in lacking}
        if not lacking:
            self._since = None
            return {}
        self._since = now if self._since is None else self._since
        unreadable = self._unreadable()
        named = unreadable.by_disk()
        still = {slot for slot in lacking if self._lacks_still(slot, unreadable, now)}
        worst = max(lacking, key=lambda slot: named.get(slot, 0))
        if worst not in still:
            return {}  # what is known of it is the least that it needs: another must not go in its stead
        disk = self._disks[worst]
        others = set(range(len(self._disks))) - {worst, *gone, *(troubled.keys() - lacking)}
        count = named.get(worst, 0)
        if worst in gone or not count or not (others and self._may_be_ordered):
            return {}
        if not self._has_waited(worst, now):
            return {}
        self._patience.give_up([disk.id], now)
        sample = unreadable.sample(worst, SAMPLE)
        error = TooMuchUnreadableError(
            f"Disk {disk.id} ({disk.path}) is not protected",
            cause=f"too much of it cannot be read: {count} sectors are named, {sample[0]} to {sample[-1]}, and there is room for no more",
            action="The others go on without it. Check it and what it is made of (dmesg, smartctl; lvs, mdadm, multipath). It is taken in"
            " again by itself when it gives what it refused, or when the agent is started again. If it is bad all over, replace it, or take"
            " it out of the agent's configuration.",
        )
        return {disk.id: Refusing(error, sample)}

    def _has_waited(self, slot: int, now: float) -> bool:
        """Whether it refused something since the time was over."""
        assert self._since is not None
        wait_s = self._patience.wait_s(self._disks[slot].id, now)
        return self._rounds.lack(slot).refused_at - self._since > wait_s

    def _lacks_still(self, slot: int, unreadable: Unreadable, now: float) -> bool:
        """Whether the next round is not to be hoped for. Notes who is let off until it."""
        lack = self._rounds.lack(slot)
        if lack.seen is None or not unreadable.has_room(slot, lack.seen, []):
            return True
        if not self._has_waited(slot, now):
            return False
        return lack.tried_at > self._let_off.setdefault(slot, now)
