"""What a round of catch-up reads of the model's disks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.stream.catchup import CatchUp, Chunk, NoChunk
from shared.batch import SECTOR
from tests.stream_model.kernel import DISKS, Kernel


@dataclass
class ReadChunk:
    chunk: Chunk
    data: npt.NDArray[np.uint8]
    unreadable: tuple[()] = ()
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

    def start(self, open_from_before: Callable[[], npt.NDArray[np.void]]) -> None:
        self._open, self._done = open_from_before, False

    @property
    def running(self) -> bool:
        return self._open is not None

    @property
    def finished(self) -> bool:
        return self.running and self._done and not self._ready

    def take(self, limit: int) -> list[ReadChunk]:
        return [
            self._ready.popleft() for _ in range(min(limit, len(self._ready), self._kernel.rng.randrange(3)))
        ]

    def release(self, chunk: ReadChunk) -> None:
        pass

    def end(self) -> None:
        self._open = None

    def forget_bad(self) -> None:
        pass

    def cancel(self) -> None:
        self._open = None
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
            values = np.zeros(chunk.sectors, np.uint32)
            for i in range(chunk.sectors):
                if kernel.rng.random() < 0.1:
                    kernel.happen()
                values[i] = kernel.image[chunk.disk, chunk.first_sector + i]
            self._ready.append(ReadChunk(chunk, np.repeat(values, SECTOR // 4).view(np.uint8)))
