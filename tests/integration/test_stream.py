"""Capture and catch-up beside live writes, in one process: kernel ring → batches → image files, no network."""

from __future__ import annotations

import asyncio
import mmap
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agent.capture import Capture, detach
from agent.catchup import CatchUp, Chunk
from agent.disks import find_disk
from agent.state import AgentState, Reason, Word
from agent.stream import Stream
from agent.sync_reader import SyncReader, read_span
from shared.batch import SECTOR, Batch, StreamState
from shared.errors import DeviceError
from tests.loopdisk import loop_disk
from tests.prefix import PrefixChecker, Schedule, Writer
from tests.replica import Pump, Replica

DISK_B = 48 << 20


@pytest.fixture
def shm() -> Iterator[Path]:
    folder = Path("/dev/shm") / f"understudy-{secrets.token_hex(4)}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def devices(shm: Path) -> Iterator[list[str]]:
    with loop_disk(shm / "a", DISK_B) as a, loop_disk(shm / "b", DISK_B) as b:
        yield [a, b]


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
    yield path
    detach(path)


@pytest.fixture
def stack(devices: list[str]) -> Iterator[ExitStack]:
    """For writers: they end before their devices go."""
    with ExitStack() as made:
        yield made


@asynccontextmanager
async def running(pin_dir: Path, devices: list[str], ring_mib: int) -> AsyncIterator[Stream]:
    capture = Capture.attach(pin_dir, [find_disk(Path(d)) for d in devices], ring_mib << 20)
    try:
        count = len(capture.disks)
        catchup = CatchUp([d.sectors for d in capture.disks], [capture.todo(i) for i in range(count)])
        reader = SyncReader(devices, catchup)
        stream = Stream(capture, AgentState(capture.state), catchup, reader)
        try:
            await stream.recover()
            yield stream
        finally:
            await reader.close()
    finally:
        capture.close()


def schedule(seed: int) -> Schedule:
    return Schedule(seed, (DISK_B // SECTOR, DISK_B // SECTOR))


async def test_every_ordered_batch_under_load_is_a_prefix(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    replica = Replica(shm, [DISK_B, DISK_B])
    checker = PrefixChecker(schedule(seed))
    checked: list[int] = []
    last_check = 0.0

    def check(batch: Batch) -> None:
        nonlocal last_check
        if time.monotonic() - last_check > 0.7:
            last_check = time.monotonic()
            checked.append(checker.check(replica.paths, at_least=0, at_most=1 << 40))

    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    async with running(pin_dir, devices, 64) as stream:
        pump = Pump(stream, replica)
        await pump.begin()
        stream.settle()
        pump.on_ordered = check
        await pump.until_ordered()
        end = time.monotonic() + 6
        while time.monotonic() < end:
            await pump.turn()
        total = writer.stop()
        await drain(pump)
        assert checker.check(replica.paths, at_least=total, at_most=total) == total
    assert len(checked) >= 5, f"only {len(checked)} batches were checked (seed {seed})"
    replica.close()


async def test_after_an_overflow_order_returns_by_itself(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    replica = Replica(shm, [DISK_B, DISK_B])
    async with running(pin_dir, devices, 1) as stream:
        pump = Pump(stream, replica)
        await pump.begin()
        stream.settle()
        await pump.until_ordered()
        writer = stack.enter_context(Writer(devices, shm / "progress", seed))
        states, causes = set(), set()
        # Nobody drains the ring meanwhile, and 1 MiB holds some hundred records.
        await asyncio.to_thread(writer.wait_for, writer.completed + 5000)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            batch = await pump.turn()
            if batch is not None:
                states.add(batch.state)
                causes.add(batch.meta.cause)
        assert StreamState.BITMAP in states
        assert any("ring was full" in cause for cause in causes), causes
        total = writer.stop()
        await drain(pump)
        assert PrefixChecker(schedule(seed)).check(replica.paths, at_least=total, at_most=total) == total
    replica.close()


async def test_lost_batches_and_a_restarted_agent_lose_nothing(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    replica = Replica(shm, [DISK_B, DISK_B])
    pump = Pump(None, replica)  # type: ignore[arg-type]  # each turn of the loop gives it a new agent's stream
    checker = PrefixChecker(schedule(seed))
    checks = 0
    for life in range(8):
        async with running(pin_dir, devices, 64) as stream:
            pump.stream = stream
            if life == 0:
                await pump.begin()
                stream.settle()
            else:
                await pump.resume()
            if life == 4:
                await pump.until_ordered()
                AgentState(stream._capture.state).want_epoch(Reason.MANUAL)
                await pump.begin(2)
            for turns in (3 + life * 7, 40):
                for _ in range(turns):
                    await pump.turn()
                    await asyncio.sleep(0.002)
                for _ in range(3):
                    await pump.turn(keep=False)
                await pump.resume()
            if life % 2:
                await pump.until_ordered()
                checker.check(replica.paths, at_least=0, at_most=1 << 40)
                checks += 1
            if life == 7:
                assert AgentState(stream._capture.state)[Word.EPOCHS_BEGUN] == 2
                total = writer.stop()
                await drain(pump)
                assert checker.check(replica.paths, at_least=total, at_most=total) == total
    assert checks == 4
    replica.close()


async def test_a_disk_that_cannot_be_read_stops_catch_up_and_loses_no_write(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = secrets.randbits(32)
    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    replica = Replica(shm, [DISK_B, DISK_B])
    failures = 0

    def failing_read(fd: int, chunk: Chunk, buffer: mmap.mmap) -> list[tuple[int, int]]:
        nonlocal failures
        if chunk.word % 7 == 3 and failures < 5:
            failures += 1
            raise DeviceError("Catch-up could not read a protected disk")
        return read_span(fd, chunk, buffer)

    monkeypatch.setattr("agent.sync_reader.read_span", failing_read)
    async with running(pin_dir, devices, 64) as stream:
        pump = Pump(stream, replica)
        await pump.begin()
        stream.settle()
        async with asyncio.timeout(60):
            while pump.ordered < 10:
                try:
                    await pump.turn()
                except DeviceError:
                    await stream.give_up_round(0.1)
        total = writer.stop()
        await drain(pump)
        checker = PrefixChecker(schedule(seed))
        assert checker.check(replica.paths, at_least=total, at_most=total) == total
    assert failures == 5
    replica.close()


async def drain(pump: Pump) -> None:
    """Until an ordered batch that was cut after now, with nothing left in the ring."""
    async with asyncio.timeout(60):
        end = pump.stream._ring.producer_seq
        while True:
            batch = await pump.turn()
            if batch is not None and batch.state == StreamState.ORDERED and batch.last_seq >= end:
                return
