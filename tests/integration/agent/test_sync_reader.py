"""Reading chunks of a disk: rounds that are given up while threads read, and blocks that cannot be read."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.capture.disks import Disk, find_disk
from agent.capture.layout import OPEN_WRITE
from agent.stream import clock, sync_reader
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.disk_threads import PARALLEL
from agent.stream.spans import read_span
from agent.stream.sync_reader import _MAPPED, SyncReader
from shared.batch import SECTOR
from shared.errors import DeviceError
from shared.waiting import wait_for
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


async def test_what_a_given_up_round_reads_never_gets_into_the_next_one(
    disk: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDisk()
    todo = np.zeros(DISK_B // CHUNK_B, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    reader = SyncReader([find_disk(Path(disk))], catchup)
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
    assert sorted(words) == [*range(10, 30)]
    reader.end()
    lane = reader._lanes[0]
    async with asyncio.timeout(30):  # a read of the first round may still be under way in the other thread
        while len(lane.free) < _MAPPED:
            lane.room.clear()
            await lane.room.wait()
    assert len(lane.free) == _MAPPED
    reader.close()


async def test_a_read_that_began_before_capture_had_settled_is_not_final(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDisk()
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    todo = np.zeros(DISK_B // CHUNK_B, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    reader = SyncReader([find_disk(Path(disk))], catchup)
    round_over(catchup, todo, range(4))
    reader.start(lambda: NOTHING_OPEN)
    for _ in range(PARALLEL):
        await asyncio.to_thread(slow.begun.acquire)
    catchup.settled = True
    slow.go_on.set()
    final = []
    async with asyncio.timeout(30):
        while not reader.finished:
            final += [read.is_final for read in reader.take(4)]
            await asyncio.sleep(0.01)
    assert sorted(final) == [False, False, True, True]
    reader.end()
    reader.close()


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
            assert read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, []) == [
                (first, sectors)
            ]
            expected = content[: bad.start] + bytes(len(bad)) + content[bad.stop : CHUNK_B]
            assert buffer[:] == expected
        os.close(fd)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing.unlink()


class Outage:
    """Reads of whole chunks fail, and of what follows those that are told."""

    def __init__(self, fails: Callable[[int, int], bool], error: int = errno.EIO) -> None:
        self._fails = fails
        self._error = error
        self._count = 0
        self._real = os.preadv

    def read(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self._count += 1
        if len(buffers[0]) == CHUNK_B or self._fails(self._count, offset):
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
            read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, [])
    finally:
        os.close(fd)


def test_what_failed_in_an_outage_that_is_over_is_read(
    disk: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", Outage(lambda count, offset: count in (100, 300, 301)).read)
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, CHUNK_B) as buffer:
            assert read_span(fd, Chunk(0, 0, 2**64 - 1, 0, 2048), buffer, lambda: None, []) == []
            assert buffer[:] == content[:CHUNK_B]
    finally:
        os.close(fd)


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


async def test_a_disk_that_never_answers_holds_up_neither_the_others_nor_the_end(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDisk()
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    two = TwoDisks([disk, disk])
    reader, catchup = two.reader, two.catchup
    reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.has_all_of(1))
    assert not reader.finished
    reader._lanes[0].moved_at -= sync_reader.ANSWER_S
    await two.take_until(lambda: reader.finished)
    assert [*reader.problems] == [0]
    assert "does not answer" in str(reader.problems[0])
    reader.end()
    assert not catchup.finish_reading(0, 0)
    # The next round asks it for nothing while it hangs, and the other disk is read again.
    asked = len(reader._lanes[0].under_way)
    catchup.begin_round(0, 0)
    two.words = [[], []]
    reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: reader.finished)
    assert two.has_all_of(1)
    assert len(reader._lanes[0].under_way) == asked
    (hung_fd,) = slow.fds
    reader.close()
    os.fstat(hung_fd)  # it is not another's while a thread works on it
    slow.go_on.set()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(f"disk {disk}")]
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(hung_fd)


async def test_a_disk_that_answers_again_is_read_again(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDisk()
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    monkeypatch.setattr(sync_reader, "ANSWER_S", 0.0)
    two = TwoDisks([disk])
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    two.reader.end()
    two.catchup.finish_reading(0, 0)
    slow.go_on.set()
    monkeypatch.setattr(sync_reader, "ANSWER_S", 30.0)
    await two.take_until(lambda: not two.reader._lanes[0].under_way)
    two.catchup.begin_round(0, 0)
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    assert two.has_all_of(0)
    assert two.reader.problems == {}
    two.reader.close()


async def test_two_slow_sectors_do_not_keep_the_rest_of_their_disk_from_being_read(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def read(fd: int, chunk: Chunk, *rest: Any) -> list[tuple[int, int]]:
        if chunk.word in (3, 7):
            go_on.wait(30)
        return read_span(fd, chunk, *rest)

    monkeypatch.setattr(sync_reader, "read_span", read)
    monkeypatch.setattr(sync_reader, "_HUNG_PROBE_S", 0.001)
    monkeypatch.setattr(sync_reader, "ANSWER_S", 0.3)
    one = TwoDisks([disk])
    todo = one.catchup._todo[0]

    async def one_round() -> None:
        one.reader.start(lambda: NOTHING_OPEN)
        await one.take_until(lambda: one.reader.finished)
        one.reader.end()
        assert not one.catchup.finish_reading(0, 0)
        todo[one.words[0]] = 0
        todo[20] = 1  # it is written
        one.catchup.begin_round(0, 0)

    async with asyncio.timeout(20):
        while len({*one.words[0]}) < DISK_B // CHUNK_B - 2:
            await one_round()
        while [error.code for error in one.reader.problems.values()] != ["US586"]:
            await one_round()
    assert not {3, 7} & {*one.words[0]}
    assert len(one.reader._lanes[0].threads._threads) > PARALLEL
    go_on.set()
    async with asyncio.timeout(30):
        while len(one.reader._lanes[0].threads._threads) > PARALLEL:
            await wait_for(asyncio.Event(), 0.001)
    one.reader.close()


async def test_a_part_of_a_disk_that_is_away_is_waited_for_before_it_is_called_unreadable(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [*range(20, DISK_B // CHUNK_B)]

    def read(fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        if chunk.word in away:
            return [(chunk.first_sector, chunk.sectors)]
        return [*read_span(fd, chunk, buffer, *rest), (chunk.first_sector, chunk.sectors - 1)]

    monkeypatch.setattr(sync_reader, "read_span", read)
    todo = np.full(DISK_B // CHUNK_B, 2**64 - 1, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    reader = SyncReader([find_disk(Path(disk))], catchup)

    async def one_round() -> tuple[list[int], bool]:
        catchup.begin_round(0, 0)
        reader.start(lambda: NOTHING_OPEN)
        words = []
        async with asyncio.timeout(30):
            while not reader.finished:
                reader.wakeup.clear()
                for read in reader.take(4):
                    words.append(read.chunk.word)
                    reader.release(read)
                await wait_for(reader.wakeup, 0.001)
        reader.end()
        return sorted(words), catchup.finish_reading(0, 0)

    everything = [*range(DISK_B // CHUNK_B)]
    assert await one_round() == (everything[:20], False)
    assert [error.code for error in reader.problems.values()] == ["US593"]
    assert reader.troubled
    reader._lanes[0].refused_since -= sync_reader.REFUSED_S
    assert await one_round() == (everything, True)
    assert reader.problems == {}
    assert await one_round() == (everything[:20], False), "another outage is waited for anew"
    away.clear()
    assert await one_round() == (everything, True)
    assert reader.problems == {}
    reader.close()


async def test_a_slow_read_while_nothing_is_taken_for_long_is_not_a_disk_that_gives_nothing(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = BadSector()
    monkeypatch.setattr(sync_reader, "read_span", bad.read)
    monkeypatch.setattr(sync_reader, "_HUNG_PROBE_S", 0.001)
    one = TwoDisks([disk])
    lane = one.reader._lanes[0]
    one.reader.start(lambda: NOTHING_OPEN)
    await one.take_until(lambda: bad.WORD in [*one.words[0], *(word for word, _ in lane.under_way.values())])
    async with asyncio.timeout(30):
        while len(lane.under_way) > 1 or lane.has_room:
            one.reader.wakeup.clear()
            await wait_for(one.reader.wakeup, 0.001)
    lane.moved_at -= sync_reader.ANSWER_S  # no credit for so long
    await one.take_until(lambda: len(one.words[0]) == DISK_B // CHUNK_B - 1)
    bad.fails.set()
    async with asyncio.timeout(30):
        while not one.reader.finished:
            for read in one.reader.take(4):
                assert read.unreadable == [(bad.SECTOR, 1)]
                one.reader.release(read)
            await asyncio.sleep(0.001)
    assert one.reader.problems == {}
    one.reader.close()


async def test_what_this_machine_lacks_for_a_read_leaves_the_disk_to_later_and_loses_no_buffer(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(fd: int, chunk: Chunk, *rest: Any) -> list[tuple[int, int]]:
        if chunk.disk == 0:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return read_span(fd, chunk, *rest)

    monkeypatch.setattr(sync_reader, "read_span", no_memory)
    two = TwoDisks([disk, disk])
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished and not two.reader._lanes[0].under_way)
    assert (two.words[0], two.has_all_of(1)) == ([], True)
    assert "Cannot allocate memory" in two.reader.problems[0].cause
    assert [len(lane.free) for lane in two.reader._lanes] == [_MAPPED, _MAPPED]
    two.reader.close()


async def test_a_disk_that_gives_errors_only_is_no_disk_full_of_zeroes(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = TwoDisks([disk, disk])
    real_read = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fd == two.reader._lanes[0].threads._fd:
            raise OSError(errno.EIO, "Input/output error")
        return real_read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    assert two.words[0] == []
    assert two.has_all_of(1)
    assert "errors only" in str(two.reader.problems[0])
    two.reader.close()


async def test_a_disk_that_cannot_be_opened_or_is_gone_is_left_out_until_it_can(
    disk: str, tmp_path: Path
) -> None:
    link = tmp_path / "by-id"
    nowhere = replace(find_disk(Path(disk)), name="no-such-disk", path=link)
    two = TwoDisks([disk, nowhere, disk])
    two.reader.leave_out([0])
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    assert two.words[0] == two.words[1] == []
    assert two.has_all_of(2)
    assert [*two.reader.problems] == [1]
    assert two.reader.troubled
    two.reader.end()
    assert not two.catchup.finish_reading(0, 0)
    link.symlink_to(disk)
    two.reader.leave_out([])
    two.catchup.begin_round(0, 0)
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    assert two.has_all_of(1)
    assert two.reader.problems == {}
    two.reader.close()


@pytest.mark.parametrize("by", ["number", "diskseq"])
async def test_what_is_read_is_the_captured_disk_wherever_its_path_leads_by_now(
    disk: str, content: bytes, tmp_path: Path, by: str
) -> None:
    with loop_disk(tmp_path / "clone", DISK_B) as clone:
        link = tmp_path / "by-id"
        link.symlink_to(clone)
        mine = replace(find_disk(Path(disk)), path=link)
        there = find_disk(Path(clone))
        other = replace(there, major=1) if by == "number" else replace(there, diskseq=mine.diskseq)
        two = TwoDisks([other, mine])
        two.reader.start(lambda: NOTHING_OPEN)
        await two.take_until(lambda: two.reader.finished)
        assert two.words[0] == []
        assert "another disk stands there" in str(two.reader.problems[0])
        assert two.has_all_of(1)
        two.reader.close()


async def test_what_was_read_while_the_medium_was_exchanged_is_not_believed(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = TwoDisks([disk])

    def exchanged(fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        two.reader._lanes[0].threads._disk = replace(find_disk(Path(disk)), diskseq=1)
        return read_span(fd, chunk, buffer, *rest)

    monkeypatch.setattr(sync_reader, "read_span", exchanged)
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    assert two.words[0] == []
    assert "was exchanged while it was read" in str(two.reader.problems[0])
    two.reader.close()


class BadSector:
    """Sector 3 * 2048 + 8, which a drive reads for minutes before it gives it up: until `fails` is set."""

    WORD, SECTOR = 3, 3 * 2048 + 8

    def __init__(self) -> None:
        self.fails = threading.Event()
        self.asked = 0

    def read(
        self,
        fd: int,
        chunk: Chunk,
        buffer: mmap.mmap,
        moved: Callable[[], None],
        known: list[tuple[int, int]],
    ) -> list[tuple[int, int]]:
        if chunk.word == self.WORD and not known:
            self.asked += 1
            self.fails.wait(30)
            return [(self.SECTOR, 1)]
        return read_span(fd, chunk, buffer, moved, known)


async def test_a_sector_that_takes_minutes_to_fail_holds_up_nothing_behind_it_and_is_asked_for_once(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = BadSector()
    monkeypatch.setattr(sync_reader, "read_span", bad.read)
    monkeypatch.setattr(sync_reader, "_HUNG_PROBE_S", 0.01)
    todo = np.full(DISK_B // CHUNK_B, 2**64 - 1, np.uint64)
    catchup = CatchUp([DISK_B // SECTOR], [todo])
    catchup.settled = True
    reader = SyncReader([find_disk(Path(disk))], catchup)
    copied: list[int] = []

    async def one_round(patience_s: float) -> tuple[list[tuple[int, int]], bool]:
        """What is unreadable, and whether the round ends ordered."""
        monkeypatch.setattr(sync_reader, "ANSWER_S", patience_s)
        catchup.begin_round(0, 0)
        reader.start(lambda: NOTHING_OPEN)
        unreadable = []
        async with asyncio.timeout(30):
            while not reader.finished:
                for read in reader.take(4):
                    copied.append(read.chunk.word)
                    unreadable += read.unreadable
                    todo[read.chunk.word] = 0
                    reader.release(read)
                await asyncio.sleep(0.001)
        reader.end()
        return unreadable, catchup.finish_reading(0, 0)

    assert await one_round(0.3) == ([], False)
    assert sorted(copied) == [word for word in range(DISK_B // CHUNK_B) if word != bad.WORD]
    assert "does not answer" in str(reader.problems[0])
    copied.clear()
    todo[20] = 1  # it is written, while the sector is still being read
    assert await one_round(0.3) == ([], False)
    assert copied == [20]
    assert [error.code for error in reader.problems.values()] == ["US586"]
    assert reader.troubled
    bad.fails.set()
    await asyncio.wait([*reader._lanes[0].under_way], timeout=30)
    assert await one_round(30.0) == ([(bad.SECTOR, 1)], True)
    assert (bad.asked, reader.problems) == (1, {})
    todo[bad.WORD] = 1  # it is written, or found to be given: it may be well
    assert (await one_round(30.0), bad.asked) == (([(bad.SECTOR, 1)], True), 2)
    reader._lanes[0].known_bad.append((float("inf"), bad.SECTOR, 1))
    reader.forget_bad()
    todo[bad.WORD] = 1
    assert (await one_round(30.0), bad.asked) == (([(bad.SECTOR, 1)], True), 3)
    reader.close()


async def test_a_write_that_does_not_complete_is_named_and_the_rest_of_its_disk_is_read(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_reader, "BLOCKED_PATIENCE_S", 0.0)
    opened = np.zeros(1, OPEN_WRITE)
    opened["sector"], opened["sectors"], opened["since_ns"] = 64, 8, clock.boot_ns()
    one = TwoDisks([disk])
    for since_ns, named in ((clock.boot_ns(), []), (1, ["US587"])):
        opened["since_ns"] = since_ns
        one.reader.start(lambda: opened)
        await one.take_until(lambda: one.reader.finished)
        assert sorted(one.words[0]) == [*range(1, DISK_B // CHUNK_B)]
        assert [error.code for error in one.reader.problems.values()] == named
        assert one.reader.troubled is bool(named)
        one.reader.end()
        assert not one.catchup.finish_reading(0, 0)
        one.words = [[]]
        one.catchup.begin_round(0, 0)
    one.reader.close()
