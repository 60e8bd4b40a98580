"""Reads that come late or never, and what is read meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.capture.disks import find_disk
from agent.capture.layout import OPEN_WRITE
from agent.stream import clock, sync_reader
from agent.stream import lane as lane_module
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.disk_threads import PARALLEL
from agent.stream.lane import MAPPED
from agent.stream.spans import read_span
from agent.stream.sync_reader import SyncReader
from shared.batch import SECTOR
from shared.errors import DeviceError
from shared.waiting import wait_for
from tests.catch_up_reads import CHUNK_B, DISK_B, NOTHING_OPEN, BadSector, SlowDisk, TwoDisks


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
    reader._lanes[0].moved_at -= lane_module.ANSWER_S
    await two.take_until(lambda: reader.finished)
    assert [*reader.problems] == [0]
    assert "does not answer" in str(reader.problems[0])
    reader.end()
    assert not catchup.finish_reading(0, 0)
    # The next round asks it for nothing while it hangs, and the other disk is read again.
    await two.take_until(
        lambda: len(under_way(reader._lanes[0])) == PARALLEL
    )  # what no thread has begun is not read
    catchup.begin_round(0, 0)
    two.words = [[], []]
    reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: reader.finished)
    assert two.has_all_of(1)
    assert len(reader._lanes[0].under_way) == PARALLEL
    (hung_fd,) = slow.fds
    reader.close()
    os.fstat(hung_fd)  # it is not another's while a thread works on it
    slow.go_on.set()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(f"disk {disk}")]
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(hung_fd)


def under_way(lane: lane_module.Lane) -> list[int]:
    """The words that are being read."""
    return [asked.chunk.word for asked in lane.under_way.values() if asked.chunk]


@pytest.mark.parametrize("while_others_came", [True, False])
async def test_what_is_behind_two_reads_that_hang_is_read_though_nothing_new_is_asked(
    disk: str, monkeypatch: pytest.MonkeyPatch, *, while_others_came: bool
) -> None:
    go_on, begun = threading.Event(), []

    def read(fd: int, chunk: Chunk, *rest: Any) -> list[tuple[int, int]]:
        begun.append(chunk.word)
        if chunk.word in (1, 2):
            go_on.wait(30)
        return read_span(fd, chunk, *rest)

    monkeypatch.setattr(sync_reader, "read_span", read)
    monkeypatch.setattr(sync_reader, "_HUNG_PROBE_S", 0.001)
    one = TwoDisks([disk])
    one.catchup._todo[0][:] = 0
    one.catchup._todo[0][[1, 2, 5, 6]] = 1
    lane = one.reader._lanes[0]
    one.reader.start(lambda: NOTHING_OPEN)
    await one.take_until(lambda: len(begun) == PARALLEL)
    if while_others_came:
        lane.moved_at = float("inf")
    monkeypatch.setattr(lane_module, "ANSWER_S", 0.05)
    if not while_others_came:
        await one.take_until(lambda: one.reader.finished)
        await one.take_until(lambda: sorted(under_way(lane)) == [1, 2])
        assert (sorted(begun), len(lane.free)) == ([1, 2], MAPPED - 2), "what no thread has begun is not read"
        (problem,) = one.reader.problems.values()
        assert (problem.code, "32 sectors at sector 2048 has not" in problem.cause) == ("US592", True)
        one.reader.end()
        assert not one.catchup.finish_reading(0, 0)
        one.catchup.begin_round(0, 0)
        one.reader.start(lambda: NOTHING_OPEN)
    await one.take_until(lambda: sorted(one.words[0]) == [5, 6])
    go_on.set()
    one.reader.close()


async def test_a_disk_that_answers_again_is_read_again(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowDisk()
    monkeypatch.setattr(sync_reader, "read_span", slow.read)
    monkeypatch.setattr(lane_module, "ANSWER_S", 0.0)
    two = TwoDisks([disk])
    two.reader.start(lambda: NOTHING_OPEN)
    await two.take_until(lambda: two.reader.finished)
    two.reader.end()
    two.catchup.finish_reading(0, 0)
    slow.go_on.set()
    monkeypatch.setattr(lane_module, "ANSWER_S", 30.0)
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
    monkeypatch.setattr(lane_module, "ANSWER_S", 0.3)
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


async def test_a_slow_read_while_nothing_is_taken_for_long_is_not_a_disk_that_gives_nothing(
    disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = BadSector()
    monkeypatch.setattr(sync_reader, "read_span", bad.read)
    monkeypatch.setattr(sync_reader, "_HUNG_PROBE_S", 0.001)
    one = TwoDisks([disk])
    lane = one.reader._lanes[0]
    one.reader.start(lambda: NOTHING_OPEN)
    await one.take_until(lambda: bad.WORD in [*one.words[0], *under_way(lane)])
    async with asyncio.timeout(30):
        while len(lane.under_way) > 1 or lane.has_room:
            one.reader.wakeup.clear()
            await wait_for(one.reader.wakeup, 0.001)
    lane.moved_at -= lane_module.ANSWER_S  # no credit for so long
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
        monkeypatch.setattr(lane_module, "ANSWER_S", patience_s)
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
    for is_asked_already in (False, True):
        (problem,) = reader.problems.values()
        assert (problem.code, reader.troubled) == ("US586", True), "all others have come"
        assert "2048 sectors at sector 6144" in problem.cause
        if not is_asked_already:
            reader._lanes[0].problem = DeviceError("of a round that asked for more")
            assert await one_round(0.3) == ([], False)
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
        assert all("or that was missed" in error.cause for error in one.reader.problems.values())
        assert one.reader.troubled is bool(named)
        one.reader.end()
        assert not one.catchup.finish_reading(0, 0)
        one.words = [[]]
        one.catchup.begin_round(0, 0)
    one.reader.close()
