"""The machine's one stream: cuts batches from the ring's records and from what catch-up reads.

Input: ring records (`records`), chunks (`sync_reader`). Output: `cut()`, encoded batches for `sender`, which tells back what became durable
(`acknowledged`) and where to go on after a break (`resume`). When rounds of catch-up begin is the matter of `rounds`, what of the ring may
be freed that of `retention`. Nothing here waits for anything.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.maps import Capture
from agent.capture.ring import Window
from agent.stream import clock
from agent.stream.catchup import CatchUp
from agent.stream.lane import ANSWER_S, ReadChunk
from agent.stream.marks import Marks
from agent.stream.records import Records
from agent.stream.retention import Retention
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Reason, Word
from agent.stream.sync_reader import SyncReader
from agent.stream.unreadable import Runs, Trial, Unreadable, runs_of
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
from shared.daemon import logging
from shared.errors import TooMuchUnreadableError, UnderstudyError
from shared.log.epoch_id import EpochId
from shared.recovery.position import NOWHERE, Position

_log = logging.get()

MAX_CHUNKS: Final = 4
"""Catch-up chunks in a batch: 4 MiB of data at most."""
CLOCK_STEP_NS: Final = 1_000_000_000
"""What a clock is set by at once, and not drifted or slewed to between two batches, is told in the log."""
HEARTBEAT_S: Final = 5.0
"""An ordered stream without writes still says so this often, unless uploads lag: that is what the RPO of an idle machine rests on."""


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
        self.rounds = Rounds(capture, state, catchup, reader, self._records)
        self._retention = Retention(capture.ring, state, self._records)
        self._number = 0
        self._predecessor = bytes(16)
        self.marks = Marks()
        self._uploaded = NOWHERE
        self._last_state: StreamState | None = None
        self._last_cut = 0.0
        self._offset_ns: int | None = None
        self.unreadable = self._continued_unreadable()
        self._trial: tuple[Trial, asyncio.Future[Runs], float] | None = None
        """What is asked for again, and since when."""
        self._late: list[tuple[Trial, asyncio.Future[Runs]]] = []
        """Trials that were let go, and whose last read has not come back."""

    def _continued_unreadable(self) -> Unreadable:
        """What the target lacks in the epoch that goes on. Nobody knows if the words tell of another (the pin is new: an older agent made
        the others, or somebody removed it; or a kill fell into `begin_epoch`), nor if an older agent, which knows nothing of them, ran in
        between (`older_has_declared`): first everything is to do, then they tell of this one, and last the older agent's trace goes."""
        disks = len(self.catchup.disk_sectors)
        if not self._state[Word.EPOCH]:
            return Unreadable(disks)
        found = Unreadable(disks, self._capture.unreadable, self._state[Word.CLAIM])
        if not found.is_known or self._state.older_has_declared:
            _log.warning("which sectors could not be read is not known any more: all disks are read again")
            self._state.set_unordered()
            for _ in self.catchup.mark_everything():
                pass
            found.begin()
            self._state.forget_older_declared()
        return found

    # -- start and resumption ----------------------------------------------------------------------------

    def begin_epoch(self, epoch: EpochId) -> None:
        """Every granule is to do already (`rounds.everything_is_to_do`); the ring goes on where it is: the full replication repeats what it
        holds."""
        self.marks.lost_behind(self._uploaded)
        self._reader.forget_bad()
        self._state.begin_epoch(epoch)
        disks, claim = len(self.catchup.disk_sectors), self._state[Word.CLAIM]
        self.unreadable = Unreadable(disks, self._capture.unreadable, claim)
        self.unreadable.begin()
        self._trial = None
        self._late.clear()
        self._number, self._predecessor = 0, bytes(16)
        self._retention.clear()
        self._last_state = None

    def resume(self, spooled: int, spooled_seq: int, digest: bytes, uploaded: int) -> None:
        """Goes on behind batch `spooled`, whose records end below ring position `spooled_seq`."""
        void = self.catchup.resume(spooled)
        if self._retention.is_sent_behind(spooled) and self.catchup.round is not None:
            # Records below P0 may have to be emitted again: chunks read already must not go before them.
            self.catchup.round = None
            void = True
        self.marks.lost_behind(self._position(spooled))
        if void:
            self._reader.cancel()
            self.rounds.lose_order("batches were lost with the connection while catching up")
        self._retention.go_on_behind(spooled, spooled_seq)
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
        if not self._state.may_cut:
            return None
        self._try_unreadable()
        chunks = [] if self.catchup.round is None else self._reader.take(MAX_CHUNKS)
        sampled_ns = clock.boot_ns()
        producer, loss = self._ring.producer_seq, self._capture.loss_count()
        taken = self._records.take(self._ordered_end)
        self.catchup.records_emitted(taken.extents, taken.stands)
        self.unreadable.written(taken.extents)
        chunks, sync, sync_payload, unreadable = self._emit_chunks(chunks)
        self.rounds.finish_if_read()

        ordered = self.catchup.is_ordered(self._emitted_to)
        state = StreamState.ORDERED if ordered else self._unordered_state()
        marks = self.marks.due(self._emitted_to, self.catchup.loss_at_order or 0) if ordered else ()
        quiet_s = time.monotonic() - self._last_cut
        if not (
            len(taken.extents)
            or chunks
            or marks
            or state != self._last_state
            or (ordered and quiet_s > HEARTBEAT_S and self._state.may_tell_time)
        ):
            return None
        # An image is that of the moment at which everything was emitted, unless it lacks a write that was lost before that moment.
        is_current = self._emitted_to >= producer and not (ordered and loss != self.catchup.loss_at_order)
        image_ns = sampled_ns if is_current else min(taken.newest_ns, sampled_ns)
        image_ns = max(self._state[Word.IMAGE_BOOT_NS], image_ns)
        self._state[Word.IMAGE_BOOT_NS] = image_ns
        number = BatchNumber(self._number + 1)
        batch = Batch(
            epoch=Epoch(self._state[Word.EPOCH]),
            number=number,
            end_seq=Seq(self._emitted_to),
            captured_ns=self._captured_ns(image_ns),
            state=state,
            predecessor=self._predecessor,
            extents=np.concatenate((taken.extents, *sync)) if sync else taken.extents,
            payload=_joined(taken.payload, sync_payload),
            meta=BatchMeta(
                marks=marks, unreadable=tuple(unreadable), cause="" if ordered else self.rounds.cause
            ),
        )
        parts, digest = encode(batch)
        for read in chunks:
            self._reader.release(read)
        size_b = sum(len(part) for part in parts)
        self._state.cut(number, digest, batch.end_seq)
        self._number, self._predecessor = number, digest
        self._retention.sent(number)
        self.marks.place(marks, self._position(number))
        self._last_state, self._last_cut = state, time.monotonic()
        if ordered and not self._state[Word.EVER_ORDERED]:
            self._state[Word.EVER_ORDERED] = 1
        return CutBatch(batch, parts, size_b, len(chunks))

    def _captured_ns(self, image_ns: int) -> int:
        """The image's moment, on the wall clock as it is set now. So one that was wrong is right again with the next batch."""
        offset_ns = clock.unix_offset_ns()
        if self._offset_ns is not None and abs(offset_ns - self._offset_ns) > CLOCK_STEP_NS:
            _log.warning("the machine's clock was set", by_s=round((offset_ns - self._offset_ns) / 1e9, 1))
        self._offset_ns = offset_ns
        return image_ns + offset_ns

    def _ordered_end(self, window: Window) -> int:
        """Where this batch has to end: an ordered stream is cut before the first record of another loss count."""
        end = max(window.first_seq + len(window), self._emitted_to)
        expected = self.catchup.loss_at_order
        if expected is None:
            return end
        new = self._emitted_to - window.first_seq
        moved = np.flatnonzero(window.valid[new:] & (window.headers["loss"][new:] != np.uint64(expected)))
        if len(moved) and moved[0] == 0:
            self.rounds.lose_order(self._capture.loss_cause())
        elif len(moved):
            return self._emitted_to + int(moved[0])
        elif end == self._emitted_to and self._capture.loss_count() != expected:
            self.rounds.lose_order(self._capture.loss_cause())
        return end

    def _emit_chunks(
        self, chunks: list[ReadChunk]
    ) -> tuple[list[ReadChunk], list[Extents], list[npt.NDArray[np.uint8]], list[tuple[int, int, int]]]:
        """Emits what catch-up has read: only now, behind the records, is it decided which sectors of it go out. Returns the chunks that do;
        the others are left to later."""
        emitted: list[ReadChunk] = []
        sync: list[Extents] = []
        payload: list[npt.NDArray[np.uint8]] = []
        unreadable: list[tuple[int, int, int]] = []
        self.rounds.read_if_allowed(self._emitted_to)
        for read in chunks:
            missing = self._declare(read)
            if missing is None:
                self._reader.take_back(read, self._too_much(read.chunk.disk))
                continue
            unreadable += [(read.chunk.disk, *run) for run in missing]
            emitted.append(read)
            extents, parts = self.catchup.emit(read.chunk, read.data, read.unreadable)
            sync.append(extents)
            payload += parts
        if emitted:
            self.catchup.sent(self._number + 1, [read.chunk for read in emitted if read.is_final])
        for read in emitted:
            if not read.is_final:
                self.catchup.defer(read.chunk)
        return emitted, sync, payload, unreadable

    def _declare(self, read: ReadChunk) -> Runs | None:
        """What goes missing with this chunk is declared, and returned; all else that the round wants of it is in the stream now. None:
        there is no room to declare it."""
        chunk = read.chunk
        if not read.unreadable and self.unreadable.is_none_of(chunk.disk):
            return []
        wanted = self.catchup.wanted_sectors(chunk)
        lacking = self.catchup.missing(chunk, read.unreadable) if read.unreadable else np.zeros_like(wanted)
        missing, sent = (runs_of(mask, chunk.first_sector) for mask in (lacking, wanted & ~lacking))
        if not self.unreadable.has_room(chunk.disk, missing, sent):
            return None
        self.unreadable.remove(chunk.disk, sent)
        self.unreadable.declare(chunk.disk, missing, time.monotonic())
        return missing

    def _too_much(self, disk: int) -> TooMuchUnreadableError:
        named = self.unreadable.by_disk()
        cause = f"{named.get(disk, 0)} sectors of it are named unreadable, and there is room for no more"
        action = TooMuchUnreadableError.default_action
        if (fullest := self.unreadable.fullest) != disk:
            other = self._capture.disks[fullest].path
            cause += f": {other} takes most of that, with {named.get(fullest, 0)} sectors"
            action = f"Begin with {other}, then this one. {action}"
        return TooMuchUnreadableError(
            f"Too much of protected disk {self._capture.disks[disk].path} cannot be read",
            cause=cause,
            action=action,
        )

    def _try_unreadable(self) -> None:
        """Asks for what could not be read, when that is due; what is given is put to do. Neither while a round runs: that one would not
        end with what is put to do meanwhile. A trial that hangs is let go: it must not keep the other disks from theirs. What it was given
        by then is used at once, and what comes behind that when it is back."""
        if self.catchup.round is not None:
            return
        now = time.monotonic()
        for late in [late for late in self._late if late[1].done()]:
            self._late.remove(late)
            late[1].result()
            self._put_to_do(late[0].disk, self.unreadable.came_late(late[0]))
        if self._trial is None:
            if (due := self.unreadable.due(now)) is not None:
                self._trial = due, self._reader.try_again(due), now
            return
        trial, answer, began = self._trial
        if answer.done() or now - began >= ANSWER_S:
            self._trial = None
            if answer.done():
                answer.result()
            else:
                self._late.append((trial, answer))
            self._put_to_do(trial.disk, self.unreadable.tried(now, trial))

    def _put_to_do(self, disk: int, sectors: npt.NDArray[np.int64]) -> None:
        if len(sectors):
            self.catchup.mark_sectors(disk, sectors)
            self.rounds.lose_order("sectors that could not be read before can be read now")

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
        """Batches up to these are durable: catch-up counts what is uploaded as done, and ring space is freed."""
        self.catchup.uploaded(uploaded)
        self._uploaded = max(self._uploaded, self._position(uploaded))
        self.marks.stored(self._uploaded)
        self._retention.acknowledged(spooled, uploaded)

    async def drop_orphans_if_due(self) -> None:
        await self._records.drop_orphans_if_due(self._capture.wait_for_programs)

    @property
    def trouble(self) -> UnderstudyError | None:
        """Why what is held back is so for longer than it would have to be."""
        return self._records.trouble

    @property
    def _emitted_to(self) -> int:
        return self._records.emitted_to

    def _position(self, number: int) -> Position:
        return Position.of(self._state[Word.EPOCH], number)

    async def close(self) -> None:
        """No thread works on what is captured any more. These waits are grace periods, which always end; a disk is not waited for."""
        self._reader.close()
        try:
            await self.rounds.close()
        finally:
            await self._records.close()

    # -- for status ----------------------------------------------------------------------------------------

    @property
    def cause(self) -> str:
        """Why the stream is not ordered, for people; empty when it is."""
        if not self._state[Word.EPOCH]:
            return self._state.reason.text
        return "" if self.state == StreamState.ORDERED else self.rounds.cause

    @property
    def state(self) -> StreamState:
        """The stream's state now, which a loss changes even while nothing can be sent."""
        expected = self.catchup.loss_at_order
        if expected is None or not self._state[Word.EPOCH]:
            return self._unordered_state()
        if self._capture.loss_count() != expected:
            self.rounds.cause = self._capture.loss_cause()
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
