"""Reading chunks of a disk: rounds that are given up while threads read, disks that are left to later, or are not what was captured."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.capture.disks import find_disk
from agent.stream import sync_reader
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.disk_threads import PARALLEL
from agent.stream.lane import MAPPED
from agent.stream.spans import read_span
from agent.stream.sync_reader import SyncReader
from shared.batch import SECTOR
from tests.catch_up_reads import CHUNK_B, DISK_B, NOTHING_OPEN, SlowDisk, TwoDisks, round_over
from tests.loopdisk import loop_disk


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
        while len(lane.free) < MAPPED:
            lane.room.clear()
            await lane.room.wait()
    assert len(lane.free) == MAPPED
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
    assert [len(lane.free) for lane in two.reader._lanes] == [MAPPED, MAPPED]
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
