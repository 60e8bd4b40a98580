"""Disks that refuse more than there is room to name: given up, where the others wait for them. Never blocks.

What a disk refuses is declared, to the sector, in words of which there is an end (`stream.unreadable`). When they are used up, the rest
stays to do (US594), and with it the order of all disks: a leg of a volume that does not come back is enough. Such a disk answers. So it
is not given up as one that hangs (`hanging`), and the fitting of capture would find nothing to leave out.

When that has lasted for as long as `Patience` says, in a stream that is not ordered and could be, the disk that takes most of the room is
given up: a new epoch begins without it, in which nothing is declared yet. One at a time, for without it the others may have room; and only
while some other disk is there that lacks nothing but room.

It is taken in again when it gives what it refused: a sample of that, spread over all of it, is read whenever disks that are left out are
looked for (`capture.watch`). One sector that is refused still is enough to wait on. Should it be as bad as before all the same, it is
waited for twice as long before it is given up once more. Only this process knows the sample: an agent that is started again takes the
disk in.
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

    def give_up(self, gone: Collection[int]) -> dict[str, Refusing]:
        """By id, the disk without which the others are to go on from now on, if there is one."""
        troubled = {} if self._state[Word.ORDERED] else self._rounds.unread()
        lacking = {slot for slot, error in troubled.items() if isinstance(error, TooMuchUnreadableError)}
        now = time.monotonic()
        if not lacking:
            self._since = None
            return {}
        self._since = now if self._since is None else self._since
        unreadable = self._unreadable()
        fullest = unreadable.fullest
        disk = self._disks[fullest]
        ill = {*gone, *(troubled.keys() - lacking), fullest}
        is_late = now - self._since > self._patience.wait_s(disk.id, now)
        if not (is_late and self._may_be_ordered) or fullest in gone or len(ill) == len(self._disks):
            return {}
        count = unreadable.by_disk().get(fullest, 0)
        if not count:
            return {}  # it was written meanwhile: the next round has room
        self._patience.give_up([disk.id], now)
        sample = unreadable.sample(fullest, SAMPLE)
        error = TooMuchUnreadableError(
            f"Disk {disk.id} ({disk.path}) is not protected",
            cause=f"too much of it cannot be read: {count} sectors are named, {sample[0]} to {sample[-1]}, and there is room for no more",
            action="The others go on without it. Check it and what it is made of (dmesg, smartctl; lvs, mdadm, multipath). It is taken in"
            " again by itself when it gives what it refused, or when the agent is started again. If it is bad all over, replace it, or take"
            " it out of the agent's configuration.",
        )
        return {disk.id: Refusing(error, sample)}
