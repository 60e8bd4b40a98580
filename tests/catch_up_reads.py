"""Disks that catch-up reads, and reads of them that are slow."""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.capture.disks import Disk, find_disk
from agent.capture.layout import OPEN_WRITE
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.spans import read_span
from agent.stream.sync_reader import SyncReader
from shared.batch import SECTOR

DISK_B = 32 << 20
CHUNK_B = 1 << 20
NOTHING_OPEN = np.zeros(0, OPEN_WRITE)


class SlowDisk:
    """Reads of the first disk wait until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.fds: set[int] = set()

    def read(self, fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        if chunk.disk == 0:
            self.fds.add(fd)
            self.begun.release()
            self.go_on.wait(30)
        return read_span(fd, chunk, buffer, *rest)


def round_over(catchup: CatchUp, todo: np.ndarray, words: range) -> None:
    todo[:] = 0
    todo[words.start : words.stop] = np.uint64(2**64 - 1)
    catchup.round = None
    catchup.begin_round(0, 0)


class TwoDisks:
    """A reader of two disks with everything to do; what it gives is taken as it comes."""

    def __init__(self, disks: Sequence[str | Disk]) -> None:
        todo = [np.full(DISK_B // CHUNK_B, 2**64 - 1, np.uint64) for _ in disks]
        self.catchup = CatchUp([DISK_B // SECTOR] * len(disks), todo)
        self.catchup.begin_round(0, 0)
        found = [find_disk(Path(disk)) if isinstance(disk, str) else disk for disk in disks]
        self.reader = SyncReader(found, self.catchup)
        self.words: list[list[int]] = [[] for _ in disks]

    async def take_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                for read in self.reader.take(4):
                    assert not read.unreadable
                    self.words[read.chunk.disk].append(read.chunk.word)
                    self.reader.release(read)
                await asyncio.sleep(0.001)

    def has_all_of(self, disk: int) -> bool:
        return sorted(self.words[disk]) == [*range(DISK_B // CHUNK_B)]


class BadSector:
    """Sector 3 * 2048 + 8, which a drive reads for minutes before it gives it up: until `fails` is set."""

    WORD, SECTOR = 3, 3 * 2048 + 8

    def __init__(self) -> None:
        self.fails = threading.Event()
        self.asked = 0

    def read(self, fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        _, known, _ = rest
        if chunk.word == self.WORD and not known:
            self.asked += 1
            self.fails.wait(30)
            return [(self.SECTOR, 1)]
        return read_span(fd, chunk, buffer, *rest)
