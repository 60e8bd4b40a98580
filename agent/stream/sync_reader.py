"""Reads the chunks that a catch-up round wants, a few ahead of the stream, with O_DIRECT, in threads.

Input: chunks from `CatchUp`. Output: `take()`, chunks with their data, in the order in which the reads were begun. It blocks on nothing but
the disk; how many chunks are ahead is bounded by the number of buffers, so memory is too.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.stream.catchup import GRANULE_SECTORS, WORD_GRANULES, CatchUp, Chunk
from shared.batch import SECTOR
from shared.errors import DeviceError

BUFFERS: Final = 8
PARALLEL_READS: Final = 2
BUFFER_B: Final = WORD_GRANULES * GRANULE_SECTORS * SECTOR
BLOCKED_PATIENCE_S: Final = 2.0
"""How long a round waits for open writes that keep its last chunks from being read, before it leaves those to the next round."""
_BLOCKED_PROBE_S: Final = 0.02
_BLKSSZGET: Final = 0x1268

OpenWrites = Callable[[], npt.NDArray[np.void]]


@dataclass(slots=True)
class ReadChunk:
    chunk: Chunk
    data: npt.NDArray[np.uint8]
    unreadable: list[tuple[int, int]]
    """Runs of sectors (first, count) that the disk refused to read; zeroes in `data`."""
    is_final: bool
    """No write from before capture was attached was in flight when the read began."""
    buffer: mmap.mmap


class SyncReader:
    """One round at a time: `start` it, `take` what is ready until `finished`, `cancel` it at any time."""

    def __init__(self, devices: Sequence[str], catchup: CatchUp) -> None:
        self._catchup = catchup
        self._fds = [os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC) for path in devices]
        self._free = [mmap.mmap(-1, BUFFER_B) for _ in range(BUFFERS)]
        self._ready: deque[asyncio.Task[ReadChunk]] = deque()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[ReadChunk]] = set()
        """All that are under way, those of rounds that were given up among them."""
        self.wakeup = asyncio.Event()
        """Set whenever a chunk became ready or the reading ended."""

    def start(self, open_from_before: OpenWrites) -> None:
        """Begins to read the round's chunks. `open_from_before()` gives the writes that were open at P0 and still are."""
        assert self._task is None
        self._task = asyncio.create_task(self._read_all(open_from_before), name="sync-reader")

    @property
    def running(self) -> bool:
        return self._task is not None

    @property
    def finished(self) -> bool:
        """Every chunk of the round has been read and taken."""
        return self._task is not None and self._task.done() and not self._ready

    def take(self, limit: int) -> list[ReadChunk]:
        """Up to `limit` chunks that are ready, in order. Give each back with `release` once its data was copied.

        Raises what a read raised (DeviceError): then nothing was taken, and the round can only be given up.
        """
        for task in (*self._ready, self._task):
            if task is not None and task.done():
                task.result()
        taken: list[ReadChunk] = []
        while self._ready and self._ready[0].done() and len(taken) < limit:
            taken.append(self._ready.popleft().result())
        return taken

    def release(self, chunk: ReadChunk) -> None:
        self._free.append(chunk.buffer)
        self._room.set()

    def end(self) -> None:
        """The round is over; the next may start."""
        assert self.finished
        self._task = None

    def cancel(self) -> None:
        """Gives the round up; what was read is thrown away. Threads that are reading go on, so nothing here waits for a slow disk;
        their buffers are free when they have ended, not before."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for read in self._ready:
            read.add_done_callback(self._discard)
        self._ready.clear()

    async def close(self) -> None:
        self.cancel()
        if self._reads:
            await asyncio.wait([*self._reads])
        for fd in self._fds:
            os.close(fd)

    def _discard(self, read: asyncio.Task[ReadChunk]) -> None:
        if not read.cancelled() and read.exception() is None:
            self.release(read.result())

    async def _read_all(self, open_from_before: OpenWrites) -> None:
        parallel = asyncio.Semaphore(PARALLEL_READS)
        opened = open_from_before()
        blocked_since = 0.0
        try:
            while (chunk := self._catchup.next_chunk()) is not None:
                if len(opened):
                    opened = open_from_before()
                if not self._catchup.may_read(chunk, opened):
                    blocked_since = blocked_since or time.monotonic()
                    if time.monotonic() - blocked_since > BLOCKED_PATIENCE_S:
                        self._catchup.defer(chunk)
                    else:
                        assert self._catchup.round is not None
                        self._catchup.round.blocked.append(chunk)
                        await asyncio.sleep(_BLOCKED_PROBE_S)
                    continue
                while not self._free:
                    self._room.clear()
                    await self._room.wait()
                read = asyncio.create_task(self._read(chunk, self._free.pop(), parallel), name="sync-read")
                self._reads.add(read)
                read.add_done_callback(self._reads.discard)
                self._ready.append(read)
            if self._ready:
                await asyncio.wait([*self._ready])
        finally:
            self.wakeup.set()

    async def _read(self, chunk: Chunk, buffer: mmap.mmap, parallel: asyncio.Semaphore) -> ReadChunk:
        try:
            async with parallel:
                is_final = self._catchup.settled
                unreadable = await asyncio.to_thread(read_span, self._fds[chunk.disk], chunk, buffer)
        except Exception:
            self._free.append(buffer)
            self._room.set()
            raise
        finally:
            self.wakeup.set()
        data = np.frombuffer(buffer, np.uint8, chunk.sectors * SECTOR)
        return ReadChunk(chunk, data, unreadable, is_final, buffer)


def read_span(fd: int, chunk: Chunk, buffer: mmap.mmap) -> list[tuple[int, int]]:
    """Reads the chunk's span into `buffer`; returns the runs of sectors that could not be read, zeroed.

    Raises DeviceError when the disk is gone, or shorter than it was.
    """
    with memoryview(buffer)[: chunk.sectors * SECTOR] as view:
        if _read_exactly(fd, view, chunk.first_sector):
            return []
        # Something in the span is unreadable: block by block, so that the list names exactly what is lost.
        bad: list[tuple[int, int]] = []
        block = _block_sectors(fd)
        with mmap.mmap(-1, mmap.PAGESIZE) as one, memoryview(one) as aligned:
            for i in range(0, chunk.sectors, block):
                sector, count = chunk.first_sector + i, min(block, chunk.sectors - i)
                here = view[i * SECTOR : (i + count) * SECTOR]
                if _read_exactly(fd, aligned[: len(here)], sector):
                    here[:] = aligned[: len(here)]
                    continue
                here[:] = bytes(len(here))
                if bad and sum(bad[-1]) == sector:
                    bad[-1] = (bad[-1][0], bad[-1][1] + count)
                else:
                    bad.append((sector, count))
        return bad


def _block_sectors(fd: int) -> int:
    """Sectors in a logical block, the least that can be read with O_DIRECT."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(fd, _BLKSSZGET, answer)
    except OSError as exc:
        if exc.errno != errno.ENOTTY:  # a file
            raise
        return 1
    return int.from_bytes(answer, sys.byteorder) // SECTOR


def _read_exactly(fd: int, view: memoryview, sector: int) -> bool:
    """True when all was read; False when the medium refused (EIO)."""
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], sector * SECTOR + done)
        except OSError as exc:
            if exc.errno in (errno.EIO, errno.ENODATA, errno.EILSEQ):
                return False
            raise DeviceError(
                f"Catch-up could not read a protected disk at sector {sector}",
                cause=exc.strerror or str(exc),
                action="Check that the disk is still attached; replication goes on when it is.",
            ) from exc
        if count == 0:
            raise DeviceError(
                f"A protected disk ends at sector {sector + done // SECTOR}, earlier than when it was protected",
                cause="it was made smaller or replaced",
                action="Unprotect the machine and protect it again with the new size.",
            )
        done += count
    return True
