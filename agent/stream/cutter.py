"""The machine's one stream: cuts batches from the ring's records and from what catch-up reads.

Input: ring records (`capture`), chunks (`sync_reader`). Output: `cut()`, encoded batches for `sender`, which tells back
what became durable (`acknowledged`) and where to go on after a break (`resume`). Nothing here waits for anything but
`begin_round_if_due`, whose bitmap swap waits for an RCU grace period in a thread.

The ring is the retransmit buffer. A batch that was cut is remembered by its positions only; if it has to be sent again, its records are
read from the ring again, perhaps into other batches, and its SYNC chunks are read from the disk again in a new round.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.maps import Capture
from agent.capture.ring import Window
from agent.stream.catchup import CatchUp
from agent.stream.marks import Marks
from agent.stream.records import Records
from agent.stream.state import AgentState, Reason, Word
from agent.stream.sync_reader import ReadChunk, SyncReader
from shared.batch import (
    Batch,
    BatchMeta,
    BatchNumber,
    Buffer,
    Epoch,
    Extents,
    Mark,
    Seq,
    StreamState,
    encode,
)
from shared.recovery.position import NOWHERE, Position

MAX_CHUNKS: Final = 4
"""Catch-up chunks in a batch: 4 MiB of data at most."""
HEARTBEAT_S: Final = 5.0
"""An ordered stream without writes still says so this often: that is what the RPO of an idle machine rests on."""
LOSS_QUIET_S: Final = 0.5
"""A round begins when nothing was lost for this long…"""
LOSS_WAIT_S: Final = 5.0
"""…or after this long, so that a machine under lasting overload is at least roughly followed."""


@dataclass(slots=True)
class _Sent:
    number: int
    free_seq: int
    """Ring positions below this one are not needed any more once the batch is safe."""


@dataclass(frozen=True, slots=True)
class CutBatch:
    batch: Batch
    parts: list[Buffer]
    size_b: int
    chunks: int
    """How many chunks of catch-up it carries."""


class Stream:
    def __init__(self, capture: Capture, state: AgentState, catchup: CatchUp, reader: SyncReader) -> None:
        self._capture = capture
        self._ring = capture.ring
        self._state = state
        self.catchup = catchup
        self._reader = reader
        self._records = Records(capture.ring)
        self._number = 0
        self._predecessor = bytes(16)
        self._sent: deque[_Sent] = deque()
        self.marks = Marks()
        self._uploaded = NOWHERE
        self._swapping: asyncio.Task[None] | None = None
        self._last_state: StreamState | None = None
        self._last_cut = 0.0
        self._loss_seen = capture.loss_count()
        self._loss_seen_at = self._unordered_at = time.monotonic()
        self._start_ns = 0
        """Boot-clock time just after P0 of the newest round was sampled."""
        self._looked_once = False
        self._cause = ""
        self.unreadable: dict[tuple[int, int], int] = {}
        """Source ranges that could not be read: (disk, sector) → sectors."""

    # -- start and resumption ----------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes up the pinned state after a start: both bitmaps go into the to-do, and order is believed only if nothing is to do,
        and nothing was lost since it was declared."""
        self.catchup.settled = bool(self._state[Word.SETTLED])
        lost = self._state[Word.ORDERED] and self._state[Word.LOSS_AT_ORDER] != self._capture.loss_count()
        cause = self._capture.loss_cause() if lost else ""
        before_grace = self._ring.producer_seq
        await self._swap()
        self._records.note_grace(before_grace, self._ring.producer_seq)
        self._harvest()
        still = (
            self._state[Word.ORDERED]
            and not any(self.catchup.todo_by_disk())
            and self._state[Word.LOSS_AT_ORDER] == self._capture.loss_count()
        )
        if still:
            self.catchup.loss_at_order = self._state[Word.LOSS_AT_ORDER]
            self.catchup.ordered_from = self._state[Word.ORDERED_FROM]
        else:
            self._cause = cause or "the agent was restarted while the stream was not in order"
            self._lose_order(self._cause)

    def begin_epoch(self, epoch: Epoch) -> None:
        """Every granule is to do; the ring goes on where it is (what it holds is repeated by the full replication)."""
        self._reader.cancel()
        self.marks.lost_behind(self._uploaded)
        self.catchup.mark_everything()
        self._state.begin_epoch(epoch)
        self._number, self._predecessor = 0, bytes(16)
        self._sent.clear()
        self._last_state = None
        self._cause = self._state.reason.text
        self._unordered_at = 0.0

    def resume(self, spooled: int, spooled_seq: int, digest: bytes, uploaded: int) -> None:
        """Goes on behind batch `spooled`, whose records end below ring position `spooled_seq`."""
        void = self.catchup.resume(spooled)
        if self._sent and self._sent[-1].number > spooled and self.catchup.round is not None:
            # Records below P0 may have to be emitted again: chunks read already must not go before them.
            self.catchup.round = None
            void = True
        while self._sent and self._sent[-1].number > spooled:
            self._sent.pop()
        self.marks.lost_behind(self._position(spooled))
        if void:
            self._reader.cancel()
            self._lose_order("batches were lost with the connection while catching up")
        emitted_to = spooled_seq if spooled else self._ring.consumer_seq
        if self._sent and self._sent[-1].number == spooled:
            self._records.go_to(emitted_to, self._sent[-1].free_seq)
        else:  # another process sent it, or it was freed
            self._records.go_to(emitted_to, None)
            self._sent.append(_Sent(spooled, self._records.hold_from))
        self._number, self._predecessor = spooled, digest
        self._state[Word.LAST_CUT] = spooled
        self.acknowledged(spooled, uploaded)

    # -- cutting -------------------------------------------------------------------------------------------

    def mark(self, mark: Mark) -> None:
        """Puts a bookmark at the first ordered boundary behind everything that has completed until now."""
        self.marks.ask(mark, self._ring.producer_seq, self._capture.loss_count())

    def cut(self) -> CutBatch | None:
        """The next batch, or None when there is nothing to say yet.

        Raises DeviceError when catch-up cannot read a disk: before anything was taken from the ring, so that nothing is skipped.
        """
        chunks = [] if self.catchup.round is None else self._reader.take(MAX_CHUNKS)
        sampled_ns = time.time_ns()
        producer, loss = self._ring.producer_seq, self._capture.loss_count()
        taken = self._records.take(self._ordered_end)
        self.catchup.records_emitted(taken.extents, taken.stands)
        sync, sync_payload, unreadable = self._emit_chunks(chunks)
        self._finish_round_if_read()

        ordered = self.catchup.is_ordered(self._emitted_to)
        state = StreamState.ORDERED if ordered else self._unordered_state()
        marks = self.marks.due(self._emitted_to, self.catchup.loss_at_order or 0) if ordered else ()
        quiet_s = time.monotonic() - self._last_cut
        if not (
            len(taken.extents)
            or chunks
            or marks
            or state != self._last_state
            or (ordered and quiet_s > HEARTBEAT_S)
        ):
            return None
        # An image is that of the moment at which everything was emitted, unless it lacks a write that was lost before that moment.
        is_current = self._emitted_to >= producer and not (ordered and loss != self.catchup.loss_at_order)
        image_ns = sampled_ns if is_current else min(taken.newest_ns, sampled_ns)
        captured_ns = max(self._state[Word.CAPTURED_NS], image_ns)
        self._state[Word.CAPTURED_NS] = captured_ns
        number = BatchNumber(self._number + 1)
        batch = Batch(
            epoch=Epoch(self._state[Word.EPOCH]),
            number=number,
            end_seq=Seq(self._emitted_to),
            captured_ns=captured_ns,
            state=state,
            predecessor=self._predecessor,
            extents=np.concatenate((taken.extents, *sync)) if sync else taken.extents,
            payload=_joined(taken.payload, sync_payload),
            meta=BatchMeta(marks=marks, unreadable=tuple(unreadable), cause="" if ordered else self._cause),
        )
        parts, digest = encode(batch)
        for read in chunks:
            self._reader.release(read)
        size_b = sum(len(part) for part in parts)
        self._state.cut(number, digest)
        self._number, self._predecessor = number, digest
        self._sent.append(_Sent(number, self._records.hold_from))
        self.marks.place(marks, self._position(number))
        self._last_state, self._last_cut = state, time.monotonic()
        if ordered and not self._state[Word.EVER_ORDERED]:
            self._state[Word.EVER_ORDERED] = 1
        return CutBatch(batch, parts, size_b, len(chunks))

    def _ordered_end(self, window: Window) -> int:
        """Where this batch has to end: an ordered stream is cut before the first record of another loss count."""
        end = max(window.first_seq + len(window), self._emitted_to)
        expected = self.catchup.loss_at_order
        if expected is None:
            return end
        new = self._emitted_to - window.first_seq
        moved = np.flatnonzero(window.valid[new:] & (window.headers["loss"][new:] != np.uint64(expected)))
        if len(moved) and moved[0] == 0:
            self._lose_order(self._capture.loss_cause())
        elif len(moved):
            return self._emitted_to + int(moved[0])
        elif end == self._emitted_to and self._capture.loss_count() != expected:
            self._lose_order(self._capture.loss_cause())
        return end

    def _emit_chunks(
        self, chunks: list[ReadChunk]
    ) -> tuple[list[Extents], list[npt.NDArray[np.uint8]], list[tuple[int, int, int]]]:
        """Emits what catch-up has read: only now, behind the records, is it decided which sectors of it go out."""
        sync: list[Extents] = []
        payload: list[npt.NDArray[np.uint8]] = []
        unreadable: list[tuple[int, int, int]] = []
        if not self._reader.running and self.catchup.may_begin_reading(self._emitted_to):
            self._reader.start(self._open_from_before)
        for read in chunks:
            for sector, sectors in read.unreadable:
                self.unreadable[read.chunk.disk, sector] = sectors
                unreadable.append((read.chunk.disk, sector, sectors))
            extents, parts = self.catchup.emit(read.chunk, read.data)
            sync.append(extents)
            payload += parts
        if chunks:
            self.catchup.sent(self._number + 1, [read.chunk for read in chunks if read.is_final])
        for read in chunks:
            if not read.is_final:
                self.catchup.defer(read.chunk)
        return sync, payload, unreadable

    def _finish_round_if_read(self) -> None:
        if self.catchup.round is None or not self._reader.finished:
            return
        self._reader.end()
        self._looked_once = True
        end_seq = self._ring.producer_seq
        if self.catchup.finish_reading(end_seq, self._capture.loss_count()):
            self._state.set_ordered(self.catchup.loss_at_order or 0, end_seq)

    def _unordered_state(self) -> StreamState:
        if not self._state[Word.EVER_ORDERED]:
            return (
                StreamState.INITIAL_REPLICATION
                if self._state.reason == Reason.INITIAL
                else StreamState.RESYNC
            )
        return StreamState.BITMAP if self.catchup.needs_round else StreamState.CATCHING_UP

    # -- acknowledgements ------------------------------------------------------------------------------------

    def acknowledged(self, spooled: int, uploaded: int) -> None:
        """Frees ring space: behind what is uploaded while the ring is under half full, else behind what is spooled. So a machine can
        move to another process server without a resync as long as the ring has room for what is not uploaded yet."""
        self.catchup.uploaded(uploaded)
        self._uploaded = max(self._uploaded, self._position(uploaded))
        safe = uploaded if self._ring.used_b * 2 < self._ring.size_b else spooled
        free_seq = 0
        while self._sent and self._sent[0].number <= safe:
            free_seq = self._sent[0].free_seq
            self._state[Word.FREED] = self._sent.popleft().number
        if free_seq > self._ring.consumer_seq:
            self._ring.free_to(free_seq)

    # -- rounds ------------------------------------------------------------------------------------------------

    async def begin_round_if_due(self) -> bool:
        """Begins the next round once losses have calmed down. The order of the steps is rule 1 and 2 of catch-up."""
        now = time.monotonic()
        loss = self._capture.loss_count()
        if loss != self._loss_seen:
            self._loss_seen, self._loss_seen_at = loss, now
        calm = now - self._loss_seen_at >= LOSS_QUIET_S or now - self._unordered_at >= LOSS_WAIT_S
        if not (self.catchup.needs_round and calm and not self._waits_to_settle()):
            return False
        if self._state[Word.EVER_ORDERED]:
            # What was lost since the last round began is what keeps order away now.
            self._cause = self._capture.loss_cause() or self._cause
        loss = self._capture.loss_count()
        before_grace = self._ring.producer_seq
        await self._swap()
        start_seq = self._ring.producer_seq
        self._start_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._harvest()
        self._records.note_grace(before_grace, start_seq)
        self._unsettle_if_open_writes_are_unknown()
        self.catchup.begin_round(loss, start_seq)
        self._state[Word.ROUNDS] += 1
        self._unordered_at = time.monotonic()
        return True

    async def drop_orphans_if_due(self) -> None:
        await self._records.drop_orphans_if_due(self._capture.wait_for_programs)

    def _waits_to_settle(self) -> bool:
        """After a first look at everything, a round is only worth its reads once no write from before capture can be in flight."""
        return not self.catchup.settled and self._looked_once

    def settle(self) -> None:
        """No write from before capture was attached is in flight any more: what is read from now on is final."""
        self.catchup.settled = True
        self._state[Word.SETTLED] = 1

    def _unsettle_if_open_writes_are_unknown(self) -> None:
        """A write that found no room among the open ones may be in flight from before P0 unseen, as those from before capture may be."""
        missed = self._capture.open_missed()
        if missed != self._state[Word.OPEN_MISSED_SEEN]:
            self.catchup.settled = False
            self._state[Word.SETTLED] = 0
            self._state[Word.OPEN_MISSED_SEEN] = missed

    def _open_from_before(self) -> npt.NDArray[np.void]:
        opened = self._capture.open_writes()
        result: npt.NDArray[np.void] = opened[opened["since_ns"] <= self._start_ns]
        return result

    async def _swap(self) -> None:
        """Swaps the bitmaps once what the former swap made inactive is harvested: by a swap upon a swap, unharvested bits would be
        active again, and the round would end without them. Hence the wait: a thread goes on when the session that began it ends."""
        if self._swapping is not None:
            await asyncio.wait([self._swapping])
        self._harvest()
        self._swapping = asyncio.create_task(asyncio.to_thread(self._capture.swap_dirty), name="swap")
        await asyncio.shield(self._swapping)

    def _harvest(self) -> None:
        """Moves the inactive bitmaps into the to-do: first or, then clear, so that a kill between the two repeats but never loses."""
        for disk in range(len(self._capture.disks)):
            inactive = self._capture.inactive_dirty(disk)
            if inactive.any():
                self.catchup.harvest(disk, inactive)
                inactive[:] = 0

    def _lose_order(self, cause: str) -> None:
        if self.catchup.loss_at_order is not None:
            self._cause = cause
            self._unordered_at = time.monotonic()
        self._state.set_unordered()
        self.catchup.lose_order()

    def give_up_round(self, pause_s: float) -> None:
        """The round failed: its granules stay to do, and the next begins after a pause."""
        self.catchup.round = None
        self._unordered_at = self._loss_seen_at = time.monotonic() + pause_s
        self._reader.cancel()

    def read_again(self, writes: npt.NDArray[np.void]) -> None:
        """Puts the ranges of these writes (disk, sector, sectors) into the to-do: the next round reads them."""
        for write in writes:
            self.catchup.mark_range(int(write["disk"]), int(write["sector"]), int(write["sectors"]))

    @property
    def _emitted_to(self) -> int:
        return self._records.emitted_to

    def _position(self, number: int) -> Position:
        return Position.of(self._state[Word.EPOCH], number)

    # -- for status ----------------------------------------------------------------------------------------

    @property
    def cause(self) -> str:
        """Why the stream is not ordered, for people; empty when it is."""
        if not self._state[Word.EPOCH]:
            return self._state.reason.text
        return "" if self.state == StreamState.ORDERED else self._cause

    @property
    def state(self) -> StreamState:
        """The stream's state now, which a loss changes even while nothing can be sent."""
        expected = self.catchup.loss_at_order
        if expected is None or not self._state[Word.EPOCH]:
            return self._unordered_state()
        if self._capture.loss_count() != expected:
            self._cause = self._capture.loss_cause()
            return StreamState.BITMAP
        return StreamState.ORDERED if self.catchup.is_ordered(self._emitted_to) else self._unordered_state()

    @property
    def catching_up(self) -> bool:
        return self._reader.running

    @property
    def wakeup(self) -> asyncio.Event:
        return self._reader.wakeup


def _joined(payload: npt.NDArray[np.uint8], more: list[npt.NDArray[np.uint8]]) -> memoryview:
    """One contiguous payload that refers to no read buffer."""
    return (np.concatenate((payload, *more)) if more else payload).data
