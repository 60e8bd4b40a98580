"""What a round of catch-up reads of the model's disks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.stream.catchup import CatchUp, Chunk, NoChunk
from agent.stream.refusals import Refusals
from agent.stream.unreadable import Runs, Trial
from shared.batch import SECTOR
from shared.errors import TooMuchUnreadableError
from tests.stream_model.kernel import DISKS, SECTORS, Kernel
from tests.stream_model.trials import Trials


@dataclass
class ReadChunk:
    chunk: Chunk
    data: npt.NDArray[np.uint8]
    unreadable: Runs
    is_final: bool = True


class Reader:
    """A `SyncReader` that reads when the model wants."""

    def __init__(self, kernel: Kernel, catchup: CatchUp) -> None:
        self._kernel = kernel
        self._catchup = catchup
        self._ready: deque[ReadChunk] = deque()
        self._done = self.troubled = False
        self._open: Callable[[], npt.NDArray[np.void]] | None = None
        self.wakeup = asyncio.Event()
        self._refusals = [Refusals(SECTORS) for _ in range(DISKS)]
        self._passed_over: set[tuple[int, int]] = set()
        """What a round that was given up found bad: the next does not ask for it, once."""
        self.trials = Trials(kernel)
        self.taken_back = 0

    def start(self, open_from_before: Callable[[], npt.NDArray[np.void]]) -> None:
        self._open, self._done, self.troubled = open_from_before, False, False
        for refusals in self._refusals:
            refusals.begin_round()

    @property
    def running(self) -> bool:
        return self._open is not None

    @property
    def finished(self) -> bool:
        return self.running and self._done and not self._ready

    def take(self, limit: int) -> list[ReadChunk]:
        rng = self._kernel.rng
        if len(self._ready) > 1 and rng.random() < 0.3:
            self._ready.rotate()
        taken = []
        for read in [self._ready.popleft() for _ in range(min(limit, len(self._ready), rng.randrange(3)))]:
            if self._refusals[read.chunk.disk].declares(read.chunk.word, len(read.unreadable), now=1.0):
                taken.append(read)
            else:
                self._catchup.defer(read.chunk)
        return taken

    def take_back(self, read: ReadChunk, _problem: TooMuchUnreadableError) -> None:
        self.taken_back += 1
        self.troubled = True
        self._refusals[read.chunk.disk].take_back(read.chunk.word, len(read.unreadable))
        self._catchup.defer(read.chunk)

    def release(self, chunk: ReadChunk) -> None:
        pass

    def try_again(self, trial: Trial) -> asyncio.Future[Runs]:
        return self.trials.begin(trial)

    def end(self) -> None:
        self._open = None
        for refusals in self._refusals:
            refusals.end_round(is_whole=True)

    def forget_bad(self) -> None:
        self._passed_over.clear()

    def cancel(self) -> None:
        self._open = None
        for read in self._ready:
            self._passed_over |= {(read.chunk.disk, first) for first, _ in read.unreadable}
        self._ready.clear()

    def _next_chunk(self) -> Chunk | None:
        """Of any disk that has one left."""
        for disk in self._kernel.rng.sample(range(DISKS), DISKS):
            while (chunk := self._catchup.next_chunk(disk)) is not NoChunk.LEFT:
                if isinstance(chunk, Chunk):
                    return chunk
        return None

    def read(self) -> None:
        kernel = self._kernel
        if self._open is None or self._done:
            return
        chunk = self._next_chunk()
        if chunk is None:
            self._done = True
        elif not self._catchup.may_read(chunk, self._open()):
            if kernel.rng.random() < 0.2:
                self._catchup.defer(chunk)
            else:
                self._catchup.block(chunk)
        else:
            self._ready.append(self._read(chunk))

    def _read(self, chunk: Chunk) -> ReadChunk:
        kernel = self._kernel
        values = np.zeros(chunk.sectors, np.uint32)
        refused: set[tuple[int, int]] = set()
        for i in range(chunk.sectors):
            if kernel.rng.random() < 0.1:
                kernel.happen()
            sector = chunk.disk, chunk.first_sector + i
            if sector in kernel.bad or sector in self._passed_over:
                refused.add(sector)
            else:
                values[i] = kernel.image[sector]
        self._passed_over -= refused
        kernel.bad.refused |= refused
        data = np.repeat(values, SECTOR // 4).view(np.uint8)
        return ReadChunk(chunk, data, [(sector, 1) for _, sector in sorted(refused)])
