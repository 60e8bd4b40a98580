"""What is read of one disk: its threads and buffers, the reads under way, and what keeps it, or a part of it, from being read.

How many chunks are ahead is bounded by the number of buffers. The buffer of a read that does not come back is its thread's until it does;
behind `ANSWER_S` it counts no more, and another is used.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from agent.capture.disks import Disk
from agent.capture.layout import GRANULE_SECTORS, UNREADABLE_WORDS
from agent.stream import clock
from agent.stream.catchup import WORD_GRANULES, Chunk
from agent.stream.disk_threads import MOST, PARALLEL, Call, DiskThreads
from agent.stream.refusals import AT_ONCE, Refusals
from agent.stream.spans import TooMuchRefused
from agent.stream.unreadable import Runs
from shared.batch import SECTOR
from shared.errors import (
    DeviceError,
    DiskHangsError,
    PartRefusedError,
    SlowReadError,
    TooMuchUnreadableError,
    WriteHangsError,
)

BUFFERS: Final = 4
"""Per disk, without those of reads that hang; memory is only taken where chunks are read."""
MAPPED: Final = BUFFERS + MOST - PARALLEL
BUFFER_B: Final = WORD_GRANULES * GRANULE_SECTORS * SECTOR
ANSWER_S: Final = 20.0
"""A disk that gave nothing for so long, though it was asked, is left to a later round."""
KNOWN_S: Final = 600.0
"""How long bad sectors of a read that came too late are not asked for."""
KEPT_RUNS: Final = UNREADABLE_WORDS
"""How many runs of what there was no room for are kept in mind. All but some are of a chunk each, and take a word each: so more than that
has no room beside another disk's part."""
_R = TypeVar("_R")


@dataclass(slots=True)
class ReadChunk:
    chunk: Chunk
    data: npt.NDArray[np.uint8]
    unreadable: Runs
    """What the disk refused to read; zeroes in `data`."""
    is_final: bool
    """No write from before capture was attached was in flight when the read began."""
    buffer: mmap.mmap


@dataclass(slots=True)
class Lack:
    """Of room to name what a disk refuses. Times are monotonic; 0: never."""

    tried_at: float = 0.0
    """When what was refused of a chunk, to the sector, was last found to have no room…"""
    refused_at: float = 0.0
    """…and when anything was last refused in a round behind that, in which nothing is named any more."""
    seen: Runs | None = field(default_factory=list)
    """What that round was refused then, as far as is known: all of the chunks that were looked through, and one sector of each other, which
    is left at its first one. So it takes no more room than what is really refused, and perhaps much less. None: more than is kept."""


@dataclass(slots=True, eq=False)
class Asked:
    chunk: Chunk | None
    """None: a trial."""
    returned_before: int
    """How many reads of the disk had come back when it was asked."""
    call: Call[Any] | None = None

    @property
    def began(self) -> float:
        """When a thread began to read it (monotonic). What waits for a thread hangs on nothing of its own."""
        return math.inf if self.call is None else self.call.began


class Lane:
    """What is read of one disk."""

    def __init__(self, slot: int, disk: Disk, sectors: int) -> None:
        self.slot = slot
        self._sectors = sectors
        self.path = disk.path
        self.threads = DiskThreads(disk)
        self.free = [mmap.mmap(-1, BUFFER_B) for _ in range(MAPPED)]
        self.room = asyncio.Event()
        self.ready: list[asyncio.Task[ReadChunk]] = []
        """The round's reads, begun or done."""
        self.returned = 0
        """How many reads of chunks have come back."""
        self.answers = False
        """Whether one has since `problem` was told."""
        self.under_way: dict[asyncio.Task[Any], Asked] = {}
        """What has not come back. Of rounds that were given up there is only what a thread had begun."""
        self.known_bad: list[tuple[float, int, int]] = []
        """Until when runs of sectors are not asked for: (monotonic, first, count)."""
        self.moved_at = 0.0
        """When the disk was last asked first, or gave something. Threads write it, too."""
        self.feeder: asyncio.Task[None] | None = None
        self.left_out = False
        self.problem: DeviceError | None = None
        """Why it was left to later as a whole."""
        self.left: DeviceError | None = None
        """Why the last round that went through all of it left a part of it to later."""
        self.refusals = Refusals(sectors)
        self.refused: PartRefusedError | None = None
        """Why chunks are left to later of which more was refused than may be declared."""
        self.too_much: TooMuchUnreadableError | None = None
        """Why chunks are left to later that might have been declared."""
        self.lack = Lack()

    @property
    def trouble(self) -> DeviceError | None:
        """The gravest of what is known. Each ends with the first round that goes through the disk and does not meet it, or when the disk is
        left out; a round that is given up, or that cannot ask, shows nothing. What there is no room for comes before what is refused, which
        promises to end by itself."""
        whole = None if isinstance(self.problem, SlowReadError) else self.problem
        return whole or self.too_much or self.refused or self.problem or self.left

    def run(self, asked: Asked, call: Callable[[int], _R]) -> asyncio.Future[_R]:
        asked.call = future = self.threads.run(call, ANSWER_S)
        return asyncio.wrap_future(future)

    def tend(self) -> None:
        """For whoever waits for reads: what is behind those that hang is read."""
        self.threads.tend(ANSWER_S)

    def begin_round(self) -> None:
        self.refusals.begin_round()

    def may_lose(self, chunk: Chunk) -> int:
        """How many sectors of the chunk may be declared now."""
        return self.refusals.may_lose(chunk.word, time.monotonic())

    def declares(self, read: ReadChunk) -> bool:
        """Whether the chunk may go out, and what was refused of it be declared; else it is left to later."""
        lost = sum(count for _, count in read.unreadable)
        if self.refusals.declares(read.chunk.word, lost, time.monotonic()):
            return True
        self._tell_refused(read.unreadable)
        return False

    def leave_refused(self, refused: TooMuchRefused) -> None:
        self.refusals.leave(refused.chunk.word, time.monotonic())
        self._tell_refused([(refused.sector, 1)])

    def take_back(self, read: ReadChunk, problem: TooMuchUnreadableError) -> None:
        """What was refused of a chunk that may go out is not declared after all."""
        self.too_much = problem
        self.lack.tried_at = time.monotonic()
        if not self.refusals.is_full:
            self.lack.seen = []
        self._lacks_room(read.unreadable)
        self.refusals.take_back(read.chunk.word, sum(count for _, count in read.unreadable))

    def end_round(self) -> None:
        is_whole = self.problem is None and not self.left_out
        if is_whole and not self.refusals.is_full:
            self.too_much = None
        self.refusals.end_round(is_whole=is_whole)
        if not self.refusals.is_waiting:
            self.refused = None

    def leave_out(self, is_out: bool) -> None:
        if is_out and not self.left_out:
            self.refusals = Refusals(self._sectors)
            self.problem = self.too_much = self.refused = self.left = None
        self.left_out = is_out

    def _lacks_room(self, runs: Runs) -> None:
        self.lack.refused_at = time.monotonic()
        if self.lack.seen is not None:
            self.lack.seen += runs
            if len(self.lack.seen) > KEPT_RUNS:
                self.lack.seen = None

    def _tell_refused(self, runs: Runs) -> None:
        if self.refusals.is_full:
            self._lacks_room(runs)
            return
        self.refused = PartRefusedError(
            f"A part of protected disk {self.path} cannot be read",
            cause=f"sector {runs[0][0]} and others are refused, more than {AT_ONCE} in all, while the disk gives what lies elsewhere",
        )

    def came_back(self) -> None:
        self.returned += 1
        self.answers = True

    def moved(self) -> None:
        self.moved_at = time.monotonic()

    @property
    def hangs(self) -> bool:
        return (self.is_waited_for or self.is_full) and time.monotonic() - self.moved_at >= ANSWER_S

    @property
    def is_waited_for(self) -> bool:
        """Whether a read of this round has not come back."""
        return not all(read.done() for read in self.ready)

    @property
    def is_full(self) -> bool:
        """Whether no thread of the disk is free, nor will be in the place of one that hangs."""
        return len(self.under_way) - self.late >= PARALLEL or len(self.under_way) >= MOST

    @property
    def late(self) -> int:
        """How many reads have not come back for so long that neither they nor their buffers count any more."""
        late = time.monotonic() - ANSWER_S
        return sum(asked.began <= late for asked in self.under_way.values())

    @property
    def has_room(self) -> bool:
        """Whether one more chunk may be read ahead."""
        return bool(self.free) and MAPPED - len(self.free) - self.late < BUFFERS

    def asked_already(self, chunk: Chunk) -> Asked | None:
        """What an earlier round asked of this chunk, long ago, and has no answer to yet."""
        late = time.monotonic() - ANSWER_S
        for read, asked in self.under_way.items():
            is_of_it = asked.chunk is not None and asked.chunk.word == chunk.word
            if is_of_it and asked.began <= late and read not in self.ready:
                return asked
        return None

    def is_overtaken(self, asked: Asked) -> bool:
        """Whether reads that were asked for later have come back: more have than could have been asked for before."""
        return self.returned - asked.returned_before > MAPPED

    @property
    def is_tried(self) -> bool:
        """Whether a trial has not come back."""
        return any(asked.chunk is None for asked in self.under_way.values())

    def take_known_bad_of(self, chunk: Chunk) -> Runs:
        """For one read: the sectors may be written and given by now, and when they are asked for next is the matter of `unreadable`."""
        now, end = time.monotonic(), chunk.first_sector + chunk.sectors
        known = [known for known in self.known_bad if known[0] > now]
        mine = [run for run in known if run[1] < end and chunk.first_sector < sum(run[1:])]
        self.known_bad = [run for run in known if run not in mine]
        return [(first, n) for _, first, n in mine]

    def give_back(self, buffer: mmap.mmap) -> None:
        self.free.append(buffer)
        self.room.set()

    def discard(self, read: asyncio.Task[ReadChunk]) -> None:
        if not read.cancelled() and read.exception() is None:
            until = time.monotonic() + KNOWN_S
            self.known_bad += [(until, *run) for run in read.result().unreadable]
            self.give_back(read.result().buffer)

    def give_up(self) -> None:
        """What was read is thrown away, and what no thread has begun is not read. Threads that are reading go on, so nothing here waits for
        a slow disk; their buffers are free when they have ended, not before."""
        for read in self.ready:
            if (asked := self.under_way.get(read)) is not None and asked.call is not None:
                asked.call.cancel()
            read.add_done_callback(self.discard)
        self.ready.clear()
        if self.feeder is not None:
            self.feeder.cancel()


def silent(lane: Lane) -> DiskHangsError | SlowReadError:
    """Why a disk that `hangs` is left to later as a whole. If what is waited for was overtaken, the disk answers, and nothing else was left
    to ask for."""
    begun = [asked for asked in lane.under_way.values() if asked.began < math.inf]
    mine = [lane.under_way[read] for read in lane.ready if read in lane.under_way]
    waited_for = [asked for asked in mine if asked in begun] or begun
    oldest = min(waited_for, key=lambda asked: asked.began, default=None)
    if oldest and all(lane.is_overtaken(asked) for asked in waited_for):
        return slow(lane, oldest)
    still = f"; {_names(oldest)} has not come back for {_age_s(oldest):.0f} s" if oldest else ""
    return DiskHangsError(
        f"Protected disk {lane.path} does not answer reads",
        cause=f"nothing came for {time.monotonic() - lane.moved_at:.0f} s{still}",
    )


def slow(lane: Lane, asked: Asked) -> SlowReadError:
    return SlowReadError(
        f"A part of protected disk {lane.path} could not be read yet",
        cause=f"{_names(asked)} has not come back for {_age_s(asked):.0f} s",
    )


def _names(asked: Asked) -> str:
    if asked.chunk is None:
        return "a read of sectors that could not be read before"
    return f"a read of {asked.chunk.sectors} sectors at sector {asked.chunk.first_sector}"


def _age_s(asked: Asked) -> float:
    return time.monotonic() - asked.began


def write_hangs(lane: Lane, opened: npt.NDArray[np.void]) -> WriteHangsError | None:
    """Names an open write that is too old to be one of those that complete in a moment."""
    oldest = int(opened["since_ns"].argmin())
    age_s = (clock.boot_ns() - int(opened["since_ns"][oldest])) / 1e9
    if age_s < ANSWER_S:
        return None
    return WriteHangsError(
        f"A part of protected disk {lane.path} cannot be read",
        cause=f"a write to sector {int(opened['sector'][oldest])} has not completed for {age_s:.0f} s, or that was missed",
    )
