"""Reading a chunk some blocks of which cannot be read."""

from __future__ import annotations

import errno
import math
import mmap
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.stream.catchup import Chunk
from agent.stream.spans import read_again, read_span
from agent.stream.unreadable import Trial
from shared.batch import SECTOR
from shared.errors import DeviceError
from tests.catch_up_reads import CHUNK_B


@pytest.mark.parametrize(
    ("block_b", "error"),
    [
        (512, errno.EIO),
        (4096, errno.EREMOTEIO),
        (512, errno.ETIMEDOUT),
        (512, errno.ENOLINK),
        (512, errno.EBADE),
    ],
)
def test_an_unreadable_block_is_named_and_the_rest_of_the_chunk_is_read(
    block_b: int, error: int, content: bytes, monkeypatch: pytest.MonkeyPatch
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
                raise OSError(error, os.strerror(error))
            return real_read(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        with mmap.mmap(-1, CHUNK_B) as buffer:
            first = bad.start // block_b * block_b // SECTOR
            sectors = 2 * block_b // SECTOR
            # A bad range that no block boundary cuts is exactly what is named.
            bad = range(first * SECTOR, first * SECTOR + 2 * block_b)
            assert read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, [], 2048) == [
                (first, sectors)
            ]
            expected = content[: bad.start] + bytes(len(bad)) + content[bad.stop : CHUNK_B]
            assert buffer[:] == expected
        os.close(fd)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing.unlink()


class Outage:
    """Reads of more than a page are refused, and of what follows those that are told fail."""

    def __init__(self, fails: Callable[[int, int], bool], error: int = errno.EIO) -> None:
        self._fails = fails
        self._error = error
        self._count = 0
        self._real = os.preadv

    def read(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self._count += 1
        if len(buffers[0]) > mmap.PAGESIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._fails(self._count, offset):
            raise OSError(self._error, os.strerror(self._error))
        return self._real(fd, buffers, offset)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM, errno.ENXIO])
def test_a_disk_that_fails_from_some_block_on_has_lost_none(
    disk: str, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(os, "preadv", Outage(lambda count, offset: count > 100, error).read)
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, CHUNK_B) as buffer, pytest.raises(DeviceError):
            read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, [], 2048)
    finally:
        os.close(fd)


def test_a_disk_that_is_gone_when_its_sectors_are_asked_for_again_says_so(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", Outage(lambda count, offset: count > 2, errno.ENXIO).read)
    trial = Trial(0, [(0, 64)], behind=0)
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with pytest.raises(DeviceError):
            read_again(fd, trial, lambda: None, until=math.inf)
    finally:
        os.close(fd)
    assert len(trial.given) == 2


def test_what_failed_in_an_outage_that_is_over_is_read(
    disk: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", Outage(lambda count, offset: count in (100, 300, 301)).read)
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, CHUNK_B) as buffer:
            assert read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, [], 2048) == []
            assert buffer[:] == content[:CHUNK_B]
    finally:
        os.close(fd)
