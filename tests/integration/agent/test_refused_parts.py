"""Disks a part of which is refused: what is declared at once, what is waited for, and what that costs."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.capture.disks import find_disk
from agent.stream import refusals
from agent.stream.catchup import CatchUp
from agent.stream.refusals import AT_ONCE
from agent.stream.sync_reader import SyncReader
from agent.stream.unreadable import runs_of
from shared.batch import SECTOR, Op
from shared.errors import TooMuchUnreadableError
from shared.waiting import wait_for
from tests.catch_up_reads import CHUNK_B, DISK_B, NOTHING_OPEN
from tests.sick_disk import SickDisk, sick_disk
from tests.sick_file import STRIPE_B

WORDS = DISK_B // CHUNK_B
EVER = 1e9
"""Seconds: longer than any test runs."""


class Replica:
    """Rounds of one disk, as the cutter makes them; what they send is uploaded at their end."""

    def __init__(self, device: str, size_b: int = DISK_B) -> None:
        self.todo = np.full(size_b // CHUNK_B, 2**64 - 1, np.uint64)
        self.catchup = CatchUp([size_b // SECTOR], [self.todo])
        self.catchup.settled = True
        self.reader = SyncReader([find_disk(Path(device))], self.catchup)
        self.content = bytearray(secrets.token_bytes(size_b))
        self.declared: list[tuple[int, int]] = []
        """Of the last round."""
        self.batch = 0

    def begin(self) -> None:
        self.declared.clear()
        self.catchup.begin_round(0, 0)
        self.reader.start(lambda: NOTHING_OPEN)

    def emit(self) -> list[int]:
        """The words that it sends."""
        reads = self.reader.take(4)
        for read in reads:
            missing = self.catchup.missing(read.chunk, read.unreadable)
            self.declared += runs_of(missing, read.chunk.first_sector)
            extents, payload = self.catchup.emit(read.chunk, read.data, read.unreadable)
            parts = iter(payload)
            for extent in extents:
                at, size = int(extent["sector"]) * SECTOR, int(extent["sectors"]) * SECTOR
                self.content[at : at + size] = (
                    next(parts).tobytes() if extent["op"] == Op.SYNC else bytes(size)
                )
            self.reader.release(read)
        self.batch += 1
        self.catchup.sent(self.batch, [read.chunk for read in reads])
        return [read.chunk.word for read in reads]

    async def round(self, until: Callable[[int], bool] = lambda word: False) -> bool:
        """Whether it ends ordered. It is given up, and what it sent lost, behind a word that `until` names."""
        uploaded = self.batch
        self.begin()
        async with asyncio.timeout(30):
            while not self.reader.finished:
                self.reader.wakeup.clear()
                if any(until(word) for word in self.emit()):
                    self.catchup.resume(uploaded)
                    self.reader.cancel()
                    return False
                await wait_for(self.reader.wakeup, 0.001)
        self.reader.end()
        ordered = self.catchup.finish_reading(0, 0)
        self.catchup.uploaded(self.batch)
        return ordered

    @property
    def codes(self) -> list[str]:
        return [error.code for error in self.reader.problems.values()]


@pytest.fixture
def striped(tmp_path: Path) -> Iterator[tuple[SickDisk, bytes]]:
    content = secrets.token_bytes(3 << 20)
    with sick_disk(tmp_path / "disk", len(content)) as disk:
        fd = os.open(disk.device, os.O_RDWR | os.O_SYNC)
        os.pwrite(fd, content, 0)
        os.fsync(fd)
        os.close(fd)
        yield disk, content


async def test_a_leg_of_a_striped_volume_is_waited_for_then_declared_and_sent_when_it_is_back(
    striped: tuple[SickDisk, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, content = striped
    here = Replica(disk.device, len(content))
    expected = bytearray(here.content)
    two_stripes = 2**8 - 1  # of each MiB: one that is given, one that is not
    here.todo[:] = two_stripes
    disk.lose_leg()
    monkeypatch.setattr(refusals, "REFUSED_S", EVER)
    monkeypatch.setattr(refusals, "AT_ONCE", sectors := STRIPE_B // SECTOR)
    here.reader._lanes[0].refusals = refusals.Refusals(len(content) // SECTOR)
    for declared in (1, 0):
        assert not await here.round()
        assert (here.codes, len(here.declared)) == (["US593"], declared), "little is so only once"
    monkeypatch.setattr(refusals, "REFUSED_S", 0.0)
    assert await here.round()
    assert here.codes == []
    assert [n for _, n in here.declared] == [sectors] * 2
    for at in range(0, len(content), CHUNK_B):
        expected[at : at + STRIPE_B] = content[at : at + STRIPE_B]
    assert here.content == expected
    disk.well()
    here.todo[:] = two_stripes  # a trial was given all that it asked for
    assert await here.round()
    for at in range(0, len(content), CHUNK_B):
        expected[at : at + 2 * STRIPE_B] = content[at : at + 2 * STRIPE_B]
    assert (here.declared, here.content == expected) == ([], True)
    here.reader.close()


class Away:
    """Reads that touch these bytes fail; it counts all."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ranges: list[range] = []
        self.reads = 0
        self._real = os.preadv
        patch.setattr(os, "preadv", self.read)

    def read(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self.reads += 1
        end = offset + len(buffers[0])
        if any(offset < away.stop and away.start < end for away in self.ranges):
            raise OSError(errno.EIO, "Input/output error")
        return self._real(fd, buffers, offset)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    return Away(monkeypatch)


@pytest.fixture
async def here(disk: str, away: Away) -> AsyncIterator[Replica]:
    made = Replica(disk)
    yield made
    made.reader.close()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_is_refused_later_has_its_own_time_also_over_rounds_that_are_given_up(
    here: Replica, away: Away, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    monkeypatch.setattr(refusals, "REFUSED_S", EVER)
    bad, leg = range(2 * CHUNK_B), range(DISK_B // 2, DISK_B)
    away.ranges = [bad]
    assert not await here.round()
    here.reader._lanes[0].refusals._since[:2] -= EVER  # that was long ago
    away.ranges = [bad, leg]
    here.todo[:] = 2**64 - 1
    if cancelled:
        assert not await here.round(until=lambda word: word == 1)
        here.todo[:] = 2**64 - 1
    assert not await here.round()
    assert {sector * SECTOR // CHUNK_B for sector, _ in here.declared} == {0, 1}
    assert here.codes == ["US593"]
    away.ranges = [bad]
    assert await here.round()
    assert here.codes == []


async def test_a_part_that_is_away_costs_a_few_reads_a_round(
    here: Replica, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    away.ranges = [range(DISK_B // 2, DISK_B)]
    assert not await here.round()
    away.reads = 0
    assert not await here.round()
    assert away.reads <= WORDS // 2 * 8
    assert (here.declared, here.codes) == ([], ["US593"])
    monkeypatch.setattr(refusals, "REFUSED_S", 0.0)
    here.reader.leave_out([0])
    here.reader.leave_out([])
    assert here.codes == []
    assert not await here.round(), "what was refused before it was left out says nothing"


async def test_little_is_declared_at_once_and_granules_that_nobody_wants_cost_nothing(
    here: Replica, away: Away
) -> None:
    here.todo[:] = 0
    here.todo[3] = 0b1_0001  # between the two all is refused, and half a stripe of the second
    first, second = (3 * CHUNK_B + granule * (16 << 10) for granule in (0, 4))
    away.ranges = [range(first + (16 << 10), second + SECTOR)]
    assert await here.round()
    assert (here.declared, here.codes) == ([(second // SECTOR, 1)], [])
    assert away.reads < 50
    here.todo[:] = 0
    here.todo[4] = here.todo[5] = here.todo[9] = 2**64 - 1
    away.ranges = [range(5 * CHUNK_B - 8 * SECTOR, 5 * CHUNK_B + 8 * SECTOR)]
    assert await here.round()
    assert sum(n for _, n in here.declared) == 16
    here.todo[9] = 2**64 - 1
    away.ranges = [range(9 * CHUNK_B, 10 * CHUNK_B)]
    assert await here.round()
    assert here.declared == [(9 * CHUNK_B // SECTOR, AT_ONCE)], (
        "as much as ever, since no round left anything"
    )


async def test_whether_a_disk_works_is_not_asked_of_the_leg_that_is_away_only(
    here: Replica, away: Away
) -> None:
    here.todo[:] = 0
    here.todo[8] = 1
    away.ranges = [range(at, at + STRIPE_B) for at in range(0, DISK_B, 2 * STRIPE_B)]
    assert await here.round()
    assert (here.declared, here.codes) == ([(8 * CHUNK_B // SECTOR, 32)], [])


async def test_what_the_cutter_takes_back_is_left_to_later_and_nothing_behind_it_is_asked_block_by_block(
    here: Replica, away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    away.ranges = [range(DISK_B // 2, DISK_B)]
    assert not await here.round()
    monkeypatch.setattr(refusals, "REFUSED_S", 0.0)
    away.reads = 0
    here.begin()
    taken = []
    async with asyncio.timeout(30):
        while not here.reader.finished:
            here.reader.wakeup.clear()
            for read in here.reader.take(4):
                if read.unreadable:
                    taken.append(read.chunk.word)
                    here.reader.take_back(read, TooMuchUnreadableError("no room"))
                else:
                    here.reader.release(read)
            await wait_for(here.reader.wakeup, 0.001)
    here.reader.end()
    assert not here.catchup.finish_reading(0, 0)
    assert 1 <= len(taken) <= 6, "those that were being read"
    assert away.reads < 6 * 6500
