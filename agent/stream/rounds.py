"""Rounds of catch-up, in time: when the next begins, the bitmap swap and the harvest before it, and what its end means for order.

Input: loss counts and dirty bitmaps (`capture`), what was read (`sync_reader`). Output: rounds begun and finished in `CatchUp`, which holds
the rules; the pinned words of order. Nothing here waits for anything but `begin_if_due` and `recover`, for an RCU grace period in
a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.maps import Capture
from agent.stream import clock
from agent.stream.catchup import SLICE_WORDS, CatchUp
from agent.stream.lane import Lack
from agent.stream.records import Records
from agent.stream.state import AgentState, Word
from agent.stream.sync_reader import SyncReader
from shared.daemon.threads import begun, ended
from shared.errors import DeviceError, NoThreadError

LOSS_QUIET_S: Final = 0.5
"""A round begins when nothing was lost for this long…"""
DEVICE_RETRY_S: Final = 5.0
"""How long after a round that some disk could not be read in."""
LOSS_WAIT_S: Final = 5.0
"""…or after this long, so that a machine under lasting overload is at least roughly followed."""


class Rounds:
    def __init__(
        self, capture: Capture, state: AgentState, catchup: CatchUp, reader: SyncReader, records: Records
    ) -> None:
        self._capture = capture
        self._ring = capture.ring
        self._state = state
        self._catchup = catchup
        self._reader = reader
        self._records = records
        self._thread: asyncio.Future[None] | None = None
        """Not a task: one could be cancelled, and seem to have ended, while its thread goes on."""
        self._loss_seen = capture.loss_count()
        self._loss_seen_at = self._unordered_at = time.monotonic()
        self._start_ns = 0
        """Boot-clock time just after P0 of the newest round was sampled."""
        self._looked_once = False
        self.cause = ""
        """Why the stream is not, or was not, in order; for people."""

    async def recover(self) -> None:
        """Takes up the pinned state after a start. Order is believed only if nothing is to do.

        Then this process stands where the one before stood in an ordered stream. All that a round sent is uploaded, for to-do bits are
        cleared no earlier. No round was running, and no bitmap was swapped since order was declared, for order is taken back before. So
        every bit in the dirty bitmaps is of a write that was lost afterwards, and the next round, which swaps first, harvests it; it is not
        touched here. Whatever was lost since, what the ring holds is in order up to the first record of another loss count, or to its
        end if the count has moved: there the cutter ends it, as it does in a process that was never killed.
        """
        self._catchup.settled = bool(self._state[Word.SETTLED])
        before_grace = self._ring.producer_seq
        await self._in_thread(self._capture.wait_for_programs)
        self._records.note_grace(before_grace, self._ring.producer_seq)
        await _in_steps(self._catchup.recount())
        if self._may_believe_order():
            self._catchup.loss_at_order = self._state[Word.LOSS_AT_ORDER]
            self._catchup.ordered_from = self._state[Word.ORDERED_FROM]
        else:
            self.cause = "the agent was restarted while the stream was not in order"
            self.lose_order(self.cause)

    def _may_believe_order(self) -> bool:
        return bool(self._state[Word.ORDERED]) and not any(self._catchup.todo_by_disk())

    async def everything_is_to_do(self, cause: str) -> None:
        """A new epoch is to begin: the next round reads all disks, and begins at once."""
        self._reader.cancel()
        await _in_steps(self._catchup.mark_everything())
        self.cause = cause
        self._unordered_at = 0.0

    # -- a round -------------------------------------------------------------------------------------------

    async def begin_if_due(self) -> bool:
        """Begins the next round once losses have calmed down. The order of the steps is rule 1 and 2 of catch-up."""
        now = time.monotonic()
        loss = self._capture.loss_count()
        if loss != self._loss_seen:
            self._loss_seen, self._loss_seen_at = loss, now
        calm = now - self._loss_seen_at >= LOSS_QUIET_S or now - self._unordered_at >= LOSS_WAIT_S
        if not (self._catchup.needs_round and calm and not self._waits_to_settle()):
            return False
        if self._state[Word.EVER_ORDERED]:
            # What was lost since the last round began is what keeps order away now.
            self.cause = self._capture.loss_cause() or self.cause
        loss = self._capture.loss_count()
        before_grace = self._ring.producer_seq
        await self._swap()
        start_seq = self._ring.producer_seq
        self._start_ns = clock.boot_ns()
        await self._harvest()
        self._records.note_grace(before_grace, start_seq)
        self._unsettle_if_open_writes_are_unknown()
        self._catchup.begin_round(loss, start_seq)
        self._state[Word.ROUNDS] += 1
        self._unordered_at = time.monotonic()
        return True

    def read_if_allowed(self, emitted_to: int) -> None:
        """Starts the round's reading once everything below P0 is emitted."""
        if not self._reader.running and self._catchup.may_begin_reading(emitted_to):
            self._reader.start(self._open_from_before)

    def finish_if_read(self) -> None:
        if self._catchup.round is None or not self._reader.finished:
            return
        self._reader.end()
        self._looked_once = True
        end_seq = self._ring.producer_seq
        if self._catchup.finish_reading(end_seq, self._capture.loss_count()):
            self._state.set_ordered(self._catchup.loss_at_order or 0, end_seq)
        elif self._reader.troubled:
            self._pause(DEVICE_RETRY_S)

    def give_up(self, pause_s: float) -> None:
        """The round failed: its granules stay to do, and the next begins after a pause."""
        self._catchup.round = None
        self._pause(pause_s)
        self._reader.cancel()

    def leave_out(self, disks: Iterable[int]) -> None:
        """Nothing is read of these disks, and of no others, until further notice; the next round begins after a pause, if one is due."""
        self._reader.leave_out(disks)

    def unread(self) -> dict[int, DeviceError]:
        """Disks of which something could not be read, or not be named, when they were asked last, and why."""
        return self._reader.problems

    def lack(self, slot: int) -> Lack:
        """What there was no room to name of a disk, when that was last found."""
        return self._reader.lack(slot)

    def _pause(self, seconds: float) -> None:
        self._unordered_at = self._loss_seen_at = time.monotonic() + seconds

    def lose_order(self, cause: str) -> None:
        # What was lost with a connection has taken order from catch-up already; the pinned word still says that there was order.
        if self._catchup.loss_at_order is not None or self._state[Word.ORDERED]:
            self.cause = cause
            self._unordered_at = time.monotonic()
        self._state.set_unordered()
        self._catchup.lose_order()

    def read_again(self, writes: npt.NDArray[np.void]) -> None:
        """Puts the ranges of these writes (disk, sector, sectors) into the to-do: the next round reads them."""
        for write in writes:
            self._catchup.mark_range(int(write["disk"]), int(write["sector"]), int(write["sectors"]))

    async def close(self) -> None:
        """Waits for the swap that may still run, also when it is cancelled: it works on descriptors that are closed next."""
        if self._thread is not None:
            await ended(self._thread)

    # -- settling ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """No write from before capture was attached is in flight any more: what is read from now on is final."""
        self._catchup.settled = True
        self._state[Word.SETTLED] = 1

    def _waits_to_settle(self) -> bool:
        """After a first look at everything, a round is only worth its reads once no write from before capture can be in flight."""
        return not self._catchup.settled and self._looked_once

    def _unsettle_if_open_writes_are_unknown(self) -> None:
        """A write that found no room among the open ones may be in flight from before P0 unseen, as those from before capture may be."""
        missed = self._capture.open_missed()
        if missed != self._state[Word.OPEN_MISSED_SEEN]:
            self._catchup.settled = False
            self._state[Word.SETTLED] = 0
            self._state[Word.OPEN_MISSED_SEEN] = missed

    def _open_from_before(self) -> npt.NDArray[np.void]:
        opened = self._capture.open_writes()
        result: npt.NDArray[np.void] = opened[opened["since_ns"] <= self._start_ns]
        return result

    # -- bitmaps -------------------------------------------------------------------------------------------

    async def _swap(self) -> None:
        """Swaps the bitmaps once what the former swap made inactive is harvested: by a swap upon a swap, unharvested bits would be
        active again, and the round would end without them. Hence the wait: a thread goes on when the session that began it ends."""
        if self._thread is not None:
            await asyncio.wait([self._thread])
        await self._harvest()
        await self._in_thread(self._capture.swap_dirty)

    async def _in_thread(self, call: Callable[[], None]) -> None:
        """The thread goes on if this is cancelled; `close` and the next swap wait for it. Raises NoThreadError when there is no room for
        a thread, or not for all that it needs: then some bitmaps may be swapped, and they are harvested before the next swap."""
        try:
            self._thread = begun(call)
            await asyncio.shield(self._thread)
        except NoThreadError as exc:
            raise NoThreadError("Catch-up of the protected disks could not go on", cause=exc.cause) from exc

    async def _harvest(self) -> None:
        """Moves the inactive bitmaps into the to-do, part by part: first or, then clear, so that a kill between the two repeats but never
        loses. One that is cancelled half-way is completed before the next swap."""
        for disk in range(len(self._capture.disks)):
            inactive = self._capture.inactive_dirty(disk)
            for first in range(0, len(inactive), SLICE_WORDS):
                part = inactive[first : first + SLICE_WORDS]
                if part.any():
                    self._catchup.harvest(disk, part, first)
                    part[:] = 0
                await asyncio.sleep(0)


async def _in_steps(steps: Iterator[None]) -> None:
    """Lets others run between the steps of what takes long on a large disk."""
    for _ in steps:
        await asyncio.sleep(0)
