"""Reading chunks of a disk: rounds that are given up while threads read, and blocks that cannot be read."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.capture.layout import OPEN_WRITE
from agent.stream import sync_reader
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.sync_reader import BUFFERS, SyncReader, read_span
from shared.batch import SECTOR
from tests.loopdisk import loop_disk

DISK_B = 32 << 20
CHUNK_B = 1 << 20
NOTHING_OPEN = np.zeros(0, OPEN_WRITE)


@pytest.fixture
def content() -> bytes:
    return secrets.token_bytes(DISK_B)


@pytest.fixture
def disk(content: bytes) -> Iterator[str]:
    backing = Path("/dev/shm") / f"understudy-{secrets.token_hex(4)}"
    with loop_disk(backing, DISK_B) as device:
        Path(device).write_bytes(content)
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        yield device


class SlowDisk:
    """Reads of it wait until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)

    def read(self, fd: int, chunk: Chunk, buffer: mmap.mmap) -> list[tuple[int, int]]:
        self.begun.release()
        self.go_on.wait(30)
        return read_span(fd, chunk, buffer)


def round_over(catchup: CatchUp, todo: np.ndarray, words: range) -> None:
    todo[:] = 0
    todo[words.start : words.stop] = np.uint64(2**64 - 1)
    catchup.round = None
    catchup.begin_round(0, 0)


async def test_what_a_given_up_round_reads_never_gets_into_the_next_one(
    disk: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDisk()
    todo = np.zeros(DISK_B // CHUNK_B, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    reader = SyncReader([disk], catchup)
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    round_over(catchup, todo, range(5))
    reader.start(lambda: NOTHING_OPEN)
    await asyncio.to_thread(slow.begun.acquire)
    reader.cancel()  # returns at once, while a thread reads
    monkeypatch.setattr(sync_reader, "read_span", read_span)
    round_over(catchup, todo, range(10, 30))
    reader.start(lambda: NOTHING_OPEN)
    asyncio.get_running_loop().call_later(0.2, slow.go_on.set)
    words = []
    async with asyncio.timeout(30):
        while not reader.finished:
            for read in reader.take(4):
                words.append(read.chunk.word)
                at = read.chunk.first_sector * SECTOR
                assert read.data.tobytes() == content[at : at + len(read.data)], f"chunk {read.chunk.word}"
                reader.release(read)
            await asyncio.sleep(0.01)
    assert words == [*range(10, 30)]
    reader.end()
    await reader.close()
    assert len(reader._free) == BUFFERS


async def test_a_read_that_began_before_capture_had_settled_is_not_final(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDisk()
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    todo = np.zeros(DISK_B // CHUNK_B, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    reader = SyncReader([disk], catchup)
    round_over(catchup, todo, range(4))
    reader.start(lambda: NOTHING_OPEN)
    for _ in range(sync_reader.PARALLEL_READS):
        await asyncio.to_thread(slow.begun.acquire)
    catchup.settled = True
    slow.go_on.set()
    final = []
    async with asyncio.timeout(30):
        while not reader.finished:
            final += [read.is_final for read in reader.take(4)]
            await asyncio.sleep(0.01)
    assert final == [False, False, True, True]
    reader.end()
    await reader.close()


@pytest.mark.parametrize("block_b", [512, 4096])
def test_an_unreadable_block_is_named_and_the_rest_of_the_chunk_is_read(
    block_b: int, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = Path("/dev/shm") / f"understudy-{secrets.token_hex(4)}"
    backing.write_bytes(content)
    command = ["losetup", "--find", "--show", "--sector-size", str(block_b), str(backing)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        bad = range(100 * SECTOR, 100 * SECTOR + 2 * block_b)
        real_read = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset < bad.stop and offset + len(buffers[0]) > bad.start:
                raise OSError(errno.EIO, "Input/output error")
            return real_read(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        with mmap.mmap(-1, CHUNK_B) as buffer:
            first = bad.start // block_b * block_b // SECTOR
            sectors = 2 * block_b // SECTOR
            # A bad range that no block boundary cuts is exactly what is named.
            bad = range(first * SECTOR, first * SECTOR + 2 * block_b)
            assert read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer) == [(first, sectors)]
            expected = content[: bad.start] + bytes(len(bad)) + content[bad.stop : CHUNK_B]
            assert buffer[:] == expected
        os.close(fd)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing.unlink()
