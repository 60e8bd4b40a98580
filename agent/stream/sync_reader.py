"""Reads the chunks that a catch-up round wants, a few ahead of the stream, with O_DIRECT, in threads of each disk's own.

Input: chunks from `CatchUp`. Output: `take()`, chunks with their data, as they come. It blocks on nothing but the disks, and on each
of these apart: one that fails, is gone or never answers is left to a later round, with its problem; the others are read meanwhile. How
many chunks are ahead is bounded by the number of buffers, so memory is too.

A read that takes minutes (a drive that does not give up a bad sector) holds one of the disk's threads, and what is behind it is read by
the other, or by those that take the place of threads that hang. When nothing else is left, the round leaves it to the next, which does
not ask for that chunk again before it has come back. Its data is too old by then (rule A), and thrown away; where it found bad sectors the
next round does not ask again, if that comes soon.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.disks import Disk
from agent.stream.catchup import CatchUp, Chunk, NoChunk, open_over
from agent.stream.lane import Asked, Lack, Lane, ReadChunk, silent, slow, write_hangs
from agent.stream.spans import TooMuchRefused, read_again, read_span
from agent.stream.unreadable import Runs, Trial
from shared.batch import SECTOR
from shared.daemon import logging
from shared.errors import DeviceError, TooMuchUnreadableError
from shared.waiting import wait_for

_log = logging.get()

BLOCKED_PATIENCE_S: Final = 2.0
"""How long a round waits for open writes that keep its last chunks from being read, before it leaves those to the next round."""
TRY_S: Final = 10.0
"""How long sectors that could not be read are tried, at once."""
_BLOCKED_PROBE_S: Final = 0.02
_HUNG_PROBE_S: Final = 0.5
"""How often it is seen whether a disk that is waited for still answers."""

OpenWrites = Callable[[], npt.NDArray[np.void]]


class SyncReader:
    """One round at a time: `start` it, `take` what is ready until `finished`, `cancel` it at any time."""

    def __init__(self, disks: Sequence[Disk], catchup: CatchUp) -> None:
        self._catchup = catchup
        sizes = catchup.disk_sectors
        self._lanes = [Lane(slot, disk, sizes[slot]) for slot, disk in enumerate(disks)]
        self._running = False
        self._next = 0
        """The lane that `take` looks at first: each in turn."""
        self.wakeup = asyncio.Event()
        """Set whenever a chunk became ready or the reading ended."""

    def start(self, open_from_before: OpenWrites) -> None:
        """Begins to read the round's chunks. `open_from_before()` gives the writes that were open at P0 and still are."""
        assert not self._running
        self._running = True
        for lane in self._lanes:
            lane.begin_round()
            feed = self._feed(lane, open_from_before)
            lane.feeder = asyncio.create_task(feed, name=f"sync-reader {lane.slot}")

    @property
    def running(self) -> bool:
        return self._running

    @property
    def finished(self) -> bool:
        """Every chunk of the round has been read and taken, or left to a later round."""
        return self._running and all(
            lane.feeder is not None and lane.feeder.done() and not lane.ready for lane in self._lanes
        )

    @property
    def problems(self) -> dict[int, DeviceError]:
        """Why disks, or parts of them, could not be read or named when they were last asked."""
        found = {lane.slot: lane.trouble for lane in self._lanes}
        return {slot: problem for slot, problem in found.items() if problem is not None}

    def lack(self, slot: int) -> Lack:
        """What there was no room to name of this disk, when that was last found."""
        return self._lanes[slot].lack

    @property
    def troubled(self) -> bool:
        """Whether disks cannot be read, so that it is no use to begin the next round at once."""
        return bool(self.problems) or any(lane.left_out for lane in self._lanes)

    def leave_out(self, slots: Iterable[int]) -> None:
        """These disks, and no others, are not read until further notice."""
        gone = {*slots}
        for lane in self._lanes:
            lane.leave_out(lane.slot in gone)

    def forget_bad(self) -> None:
        """A new epoch: whatever was bad before is asked for."""
        for lane in self._lanes:
            lane.known_bad.clear()
            lane.too_much = None  # nothing is declared yet

    def take(self, limit: int) -> list[ReadChunk]:
        """Up to `limit` chunks that are ready. Give each back with `release` once its data was copied.

        Raises what kept the reading of all disks from going on (BpfError, say): then nothing was taken, and the round can only be given up.
        """
        for lane in self._lanes:
            if lane.feeder is not None and lane.feeder.done() and not lane.feeder.cancelled():
                lane.feeder.result()
            for read in filter(asyncio.Task.done, lane.ready):
                if not isinstance(read.exception(), DeviceError | TooMuchRefused | None):
                    read.result()
        taken: list[ReadChunk] = []
        lanes = self._lanes[self._next :] + self._lanes[: self._next]
        self._next = (self._next + 1) % len(self._lanes)
        for lane in lanes:
            for read in [read for read in lane.ready if read.done()][: limit - len(taken)]:
                error = read.exception()
                if lane.left_out:
                    self._leave_to_later(lane, None)
                    break
                if isinstance(error, DeviceError):
                    self._leave_to_later(lane, error)
                    break
                lane.ready.remove(read)
                lane.problem = None
                if isinstance(error, TooMuchRefused):
                    lane.leave_refused(error)
                    self._catchup.defer(error.chunk)
                elif lane.declares(read.result()):
                    taken.append(read.result())
                else:
                    self._catchup.defer(read.result().chunk)
                    self.release(read.result())
        return taken

    def take_back(self, chunk: ReadChunk, problem: TooMuchUnreadableError) -> None:
        """Instead of `release`, before it was emitted: there is no room to declare more. It is left to later, and so is all of its disk
        that is refused, while this round lasts: nothing of that is asked for block by block."""
        self._lanes[chunk.chunk.disk].take_back(chunk, problem)
        self._catchup.defer(chunk.chunk)
        self.release(chunk)

    def release(self, chunk: ReadChunk) -> None:
        self._lanes[chunk.chunk.disk].give_back(chunk.buffer)

    def end(self) -> None:
        """The round is over; the next may start."""
        assert self.finished
        self._running = False
        for lane in self._lanes:
            lane.end_round()

    def cancel(self) -> None:
        """Gives the round up."""
        self._running = False
        for lane in self._lanes:
            lane.give_up()
            lane.feeder = None

    def close(self) -> None:
        """Waits for no disk."""
        self.cancel()
        for lane in self._lanes:
            lane.threads.close()

    def _leave_to_later(self, lane: Lane, problem: DeviceError | None) -> None:
        """What the round wanted of the disk stays to do."""
        if self._catchup.round is not None:
            self._catchup.round.deferred = True
        lane.problem, lane.answers = problem, False
        lane.give_up()
        self.wakeup.set()

    async def _feed(self, lane: Lane, open_from_before: OpenWrites) -> None:
        opened = open_from_before()
        blocked_since = 0.0
        left: DeviceError | None = None
        late: list[Asked] = []
        asks = False
        try:
            while (chunk := self._catchup.next_chunk(lane.slot)) is not NoChunk.LEFT:
                if isinstance(chunk, NoChunk):
                    await asyncio.sleep(0)
                    continue
                if asked := lane.asked_already(chunk):
                    self._catchup.defer(chunk)
                    left = left or slow(lane, asked)
                    late.append(asked)
                    continue
                if len(opened):
                    opened = open_from_before()
                if not self._catchup.may_read(chunk, opened):
                    blocked_since = blocked_since or time.monotonic()
                    if time.monotonic() - blocked_since > BLOCKED_PATIENCE_S:
                        self._catchup.defer(chunk)
                        left = left or write_hangs(lane, open_over(chunk, opened))
                    else:
                        self._catchup.block(chunk)
                        await asyncio.sleep(_BLOCKED_PROBE_S)
                    continue
                while not (given_up := self._is_given_up(lane)) and not lane.has_room:
                    lane.room.clear()
                    lane.tend()
                    await wait_for(lane.room, _HUNG_PROBE_S)
                    if not lane.is_full:
                        lane.moved()  # that it is not asked is not its fault: nobody takes what it gave
                if given_up:
                    return
                self._begin(lane, chunk)
                asks = True
            lane.left = left
            if not asks and (late or lane.answers) and all(map(lane.is_overtaken, late)):
                lane.problem = None  # it is that of an earlier round, which asked for more
            while lane.is_waited_for and not self._is_given_up(lane):
                lane.tend()
                await asyncio.wait([*lane.ready], timeout=_HUNG_PROBE_S)
        finally:
            self.wakeup.set()

    def _is_given_up(self, lane: Lane) -> bool:
        """Whether the round goes on without this disk, from now on if need be."""
        if not (lane.left_out or lane.hangs):
            return False
        self._leave_to_later(lane, None if lane.left_out else silent(lane))
        return True

    def _begin(self, lane: Lane, chunk: Chunk) -> None:
        if not lane.is_waited_for and not lane.is_full:
            lane.moved()
        asked = Asked(chunk, lane.returned)
        read = asyncio.create_task(self._read(lane, asked, chunk, lane.free.pop()), name="sync-read")
        lane.under_way[read] = asked
        read.add_done_callback(lane.under_way.pop)
        lane.ready.append(read)

    def try_again(self, trial: Trial) -> asyncio.Future[Runs]:
        """Which of these sectors can be read now; none of a disk that is not read at all, or that a trial hangs on."""
        lane = self._lanes[trial.disk]
        asked, is_tried = Asked(None, lane.returned), lane.is_tried

        async def read() -> Runs:
            if lane.left_out or lane.is_full or is_tried:
                return []
            call = functools.partial(
                read_again, trial=trial, moved=lane.moved, until=time.monotonic() + TRY_S
            )
            try:
                return await lane.run(asked, call)
            except DeviceError as exc:
                _log.debug("sectors that could not be read before: not known", cause=str(exc))
                return []

        answer = asyncio.create_task(read(), name="sync-try")
        lane.under_way[answer] = asked
        answer.add_done_callback(lane.under_way.pop)
        return answer

    async def _read(self, lane: Lane, asked: Asked, chunk: Chunk, buffer: mmap.mmap) -> ReadChunk:
        begun: list[bool] = []
        known_bad, may_lose = lane.take_known_bad_of(chunk), lane.may_lose(chunk)

        def read(fd: int) -> Runs:
            begun.append(self._catchup.settled)
            return read_span(fd, chunk, buffer, lane.moved, known_bad, may_lose)

        try:
            unreadable = await lane.run(asked, read)
            lane.came_back()
        except BaseException as exc:
            if isinstance(exc, TooMuchRefused):
                lane.came_back()
            if asked.call is None or asked.call.done():  # else the thread writes to it
                lane.give_back(buffer)
            raise
        finally:
            self.wakeup.set()
        data = np.frombuffer(buffer, np.uint8, chunk.sectors * SECTOR)
        return ReadChunk(chunk, data, unreadable, begun[0], buffer)
