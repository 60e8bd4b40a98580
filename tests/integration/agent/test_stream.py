"""Capture and catch-up beside live writes, in one process: kernel ring → batches → image files, no network."""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.capture import attach
from agent.capture.disks import find_disk
from agent.capture.maps import Capture, detach
from agent.stream import spans, unreadable
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.cutter import Stream
from agent.stream.spans import read_span
from agent.stream.state import AgentState, Reason, Word
from agent.stream.sync_reader import SyncReader
from agent.stream.unreadable import Trial, Unreadable
from shared.batch import SECTOR, Batch, Mark, StreamState
from shared.errors import DeviceError
from tests.loopdisk import attached, loop_disk
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
def replica(shm: Path) -> Iterator[Replica]:
    """Of `devices`."""
    made = Replica(shm, [DISK_B, DISK_B])
    yield made
    made.close()


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


@pytest.fixture(autouse=True)
def rounds_begin_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that are over are over at once, and who waits for a batch though nothing is written gets one soon: nothing here is about how
    long a machine is let alone."""
    monkeypatch.setattr("agent.stream.rounds.LOSS_QUIET_S", 0.02)
    monkeypatch.setattr("agent.stream.rounds.LOSS_WAIT_S", 0.2)
    monkeypatch.setattr("agent.stream.cutter.HEARTBEAT_S", 0.1)


@asynccontextmanager
async def running(pin_dir: Path, devices: list[str], ring_mib: int) -> AsyncIterator[Stream]:
    capture = Capture.attach(pin_dir, [find_disk(Path(d)) for d in devices], ring_mib << 20)
    try:
        count = len(capture.disks)
        catchup = CatchUp([d.sectors for d in capture.disks], [capture.todo(i) for i in range(count)])
        reader = SyncReader(capture.disks, catchup)
        stream = Stream(capture, AgentState(capture.state), catchup, reader)
        try:
            await stream.rounds.recover()
            yield stream
        finally:
            await stream.close()
    finally:
        capture.close()


def schedule(seed: int) -> Schedule:
    return Schedule(seed, (DISK_B // SECTOR, DISK_B // SECTOR))


async def test_every_ordered_batch_under_load_is_a_prefix(
    shm: Path, replica: Replica, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    checker = PrefixChecker(schedule(seed))
    checked: list[int] = []

    def check(batch: Batch) -> None:
        if not checked or writer.completed > checked[-1] + 50:
            checked.append(checker.check(replica.paths, at_least=0, at_most=1 << 40))

    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    async with running(pin_dir, devices, 64) as stream:
        pump = await begun_pump(stream, replica)
        pump.on_ordered = check
        await pump.until_ordered()
        async with asyncio.timeout(60):
            while len({*checked}) < 8:  # each the state after some other write
                await pump.turn()
        total = writer.stop()
        await drain(pump)
        assert checker.check(replica.paths, at_least=total, at_most=total) == total
    assert checked == sorted(checked)


async def test_after_an_overflow_order_returns_by_itself(
    shm: Path, replica: Replica, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        writer = stack.enter_context(Writer(devices, shm / "progress", seed))
        rounds = AgentState(stream._capture.state)[Word.ROUNDS]
        states, causes = set(), set()
        # Nobody drains the ring meanwhile, and 1 MiB holds some hundred records.
        await asyncio.to_thread(writer.wait_for, writer.completed + 5000)
        async with asyncio.timeout(60):
            # Two rounds, under writes that overflow it again.
            while (
                AgentState(stream._capture.state)[Word.ROUNDS] < rounds + 2
                or StreamState.CATCHING_UP not in states
            ):
                batch = await pump.turn()
                if batch is not None:
                    states.add(batch.state)
                    causes.add(batch.meta.cause)
        assert StreamState.BITMAP in states
        assert any("ring was full" in cause for cause in causes), causes
        total = writer.stop()
        await drain(pump)
        assert PrefixChecker(schedule(seed)).check(replica.paths, at_least=total, at_most=total) == total


async def test_lost_batches_and_a_restarted_agent_lose_nothing(
    shm: Path, replica: Replica, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    seed = secrets.randbits(32)
    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    pump = Pump(None, replica)  # type: ignore[arg-type]  # each turn of the loop gives it a new agent's stream
    checker = PrefixChecker(schedule(seed))
    checks = 0
    for life in range(8):
        async with running(pin_dir, devices, 64) as stream:
            pump.stream = stream
            if life == 0:
                await pump.begin()
                stream.rounds.settle()
            else:
                await pump.resume()
            if life == 4:
                await pump.until_ordered()
                AgentState(stream._capture.state).want_epoch(Reason.MANUAL)
                await pump.begin(2)
            for turns in (3 + life * 7, 15):
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


async def test_a_disk_that_cannot_be_read_stops_catch_up_and_loses_no_write(
    shm: Path,
    replica: Replica,
    devices: list[str],
    pin_dir: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = secrets.randbits(32)
    writer = stack.enter_context(Writer(devices, shm / "progress", seed, rate_mb=10))
    failures = 0

    def failing_read(fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        nonlocal failures
        if chunk.word % 7 == 3 and failures < 5:
            failures += 1
            raise DeviceError("Catch-up could not read a protected disk")
        return read_span(fd, chunk, buffer, *rest)

    monkeypatch.setattr("agent.stream.sync_reader.read_span", failing_read)
    monkeypatch.setattr("agent.stream.rounds.DEVICE_RETRY_S", 0.1)
    async with running(pin_dir, devices, 64) as stream:
        pump = await begun_pump(stream, replica)
        async with asyncio.timeout(60):
            while pump.ordered < 10:
                await pump.turn()
        total = writer.stop()
        await drain(pump)
        checker = PrefixChecker(schedule(seed))
        assert checker.check(replica.paths, at_least=total, at_most=total) == total
    assert failures == 5


async def test_why_order_is_lost_with_a_connection_is_said(
    replica: Replica, devices: list[str], pin_dir: Path
) -> None:
    async with running(pin_dir, devices, 1) as stream:
        pump = await begun_pump(stream, replica)
        async with asyncio.timeout(60):
            while stream.state != StreamState.ORDERED:
                await pump.turn(keep=False)
        await pump.resume()
        assert "batches were lost with the connection" in stream.cause


async def test_sectors_that_can_be_read_again_are_copied_and_not_called_unreadable_any_more(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(devices[0])
    bad = {64, 2048}
    refuse(monkeypatch, bad)
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        assert stream.unreadable.ranges() == [(0, 64, 8), (0, 2048, 8)]
        state = AgentState(stream._capture.state)
        kept = Unreadable(2, attach.words_at(pin_dir / attach.UNREADABLE), state[Word.CLAIM])
        assert (kept.is_known, kept.ranges()) == (True, stream.unreadable.ranges()), "a kill forgets them"
        assert not is_equal(replica.paths[0], devices[0])
        monkeypatch.setattr("agent.stream.unreadable.FIRST_S", 0.0)
        stream.unreadable._turns[0] = unreadable._Turn(0.0)  # its turn is now
        bad.remove(64)
        await until_declared(pump, [(0, 2048, 8)])
        bad.clear()
        await until_declared(pump, [])
        await pump.until_ordered()
        assert is_equal(replica.paths[0], devices[0])


async def test_an_agent_that_finds_no_words_of_what_could_not_be_read_reads_everything_again(
    replica: Replica, devices: list[str], pin_dir: Path
) -> None:
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        assert not any(stream.catchup.todo_by_disk())
    (pin_dir / attach.UNREADABLE).unlink()
    for expected in (DISK_B // SECTOR // 32, 0):
        async with running(pin_dir, devices, 1) as stream:
            assert stream.catchup.todo_by_disk() == [expected] * 2
            pump.stream = stream
            await pump.resume()
            stream.rounds.settle()
            await pump.until_ordered()


async def test_a_trial_that_hangs_is_let_go_and_other_disks_are_tried(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def hang(trial: Trial) -> asyncio.Future[list[tuple[int, int]]]:
        asked.append(trial.disk)
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr("agent.stream.cutter.ANSWER_S", 0.0)
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        monkeypatch.setattr(stream._reader, "try_again", hang)
        for disk in range(2):
            stream.unreadable.declare(disk, [(8, 1)], -unreadable.FIRST_S)
        for _ in range(4):
            stream.cut()
        assert asked == [0, 1]
        stream.unreadable.declare(0, [(4096, 1)], -unreadable.FIRST_S)
        stream.cut()
        monkeypatch.setattr("agent.stream.cutter.ANSWER_S", 60.0)
        await pump.begin(2)
        stream.catchup.round = None
        stream.unreadable.declare(1, [(8, 1)], -unreadable.FIRST_S)
        stream.cut()
        assert asked == [0, 1, 0, 1], "a trial of the epoch before is waited for"


async def test_what_a_slow_trial_is_given_before_and_after_it_is_let_go_is_copied(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, hangs = threading.Event(), asyncio.Event()
    loop, read = asyncio.get_running_loop(), spans._read_exactly

    def read_slowly(fd: int, view: memoryview, sector: int) -> bool:
        if sector == 2048:
            loop.call_soon_threadsafe(hangs.set)
            slow.wait()
        return read(fd, view, sector)

    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        stream.unreadable.declare(0, [(64, 8), (2048, 8)], -unreadable.FIRST_S)
        with monkeypatch.context() as patch:
            patch.setattr(spans, "_read_exactly", read_slowly)
            stream.cut()
            await hangs.wait()
        monkeypatch.setattr("agent.stream.cutter.ANSWER_S", 0.0)
        await until_declared(pump, [(0, 2048, 8)])
        slow.set()
        await until_declared(pump, [])


async def test_what_there_is_no_room_to_name_stays_to_do_and_is_said(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(devices[0])
    bad = {64, 2048, 4096}
    refuse(monkeypatch, bad)
    monkeypatch.setattr("agent.stream.rounds.DEVICE_RETRY_S", 0.0)
    async with running(pin_dir, devices, 1) as stream:
        stream._capture.unreadable = stream._capture.unreadable[:3]  # type: ignore[misc]
        pump = await begun_pump(stream, replica)
        state = AgentState(stream._capture.state)
        async with asyncio.timeout(20):
            while not (stream.rounds.unread() and state[Word.ROUNDS] >= 3):
                await pump.turn()
                assert stream.state != StreamState.ORDERED
        (error,) = stream.rounds.unread().values()
        assert (error.code, "Begin with" in error.action) == ("US594", False)
        assert f"Begin with {devices[0]}" in stream._too_much(1).action, "another disk is named for it"
        stream._reader.forget_bad()
        assert not stream.rounds.unread(), "in another epoch there is room"
        assert stream.unreadable.sectors == 16
        assert stream.catchup.todo_by_disk()[0] <= 64
        bad &= {first for _, first, _ in stream.unreadable.ranges()}
        await pump.until_ordered()
        assert stream.unreadable.sectors == 16
        assert not stream.rounds.unread()


async def until_declared(pump: Pump, ranges: list[tuple[int, int, int]]) -> None:
    async with asyncio.timeout(20):
        while pump.stream.unreadable.ranges() != ranges:
            await pump.turn()


async def test_a_mark_holds_what_had_completed_although_it_was_lost_from_the_ring(
    replica: Replica, devices: list[str], pin_dir: Path
) -> None:
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        write_until_one_is_lost(devices[0], stream)
        stream.mark(Mark("m"))
        await until_placed(pump, "m")
        assert is_equal(replica.paths[0], devices[0])


async def test_no_time_is_claimed_for_an_image_that_lacks_a_write_of_before(
    replica: Replica, devices: list[str], pin_dir: Path
) -> None:
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        lost_ns = write_until_one_is_lost(devices[0], stream)
        batch = await pump.turn()
        assert batch is not None
        assert batch.state == StreamState.ORDERED
        while batch is None or batch.state == StreamState.ORDERED:
            assert batch is None or batch.captured_ns <= lost_ns
            batch = await pump.turn()
        await pump.until_ordered()


async def test_a_mark_of_a_lost_batch_is_not_placed_earlier_than_before(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    async with ordered_with_a_writer(shm, devices, pin_dir, stack, ring_mib=64) as (pump, writer, checker):
        # So many writes that one batch cannot take them all, and that the ring holds.
        await asyncio.to_thread(writer.wait_for, writer.completed + 1200)
        total = writer.stop()
        pump.stream.mark(Mark("m"))
        async with asyncio.timeout(30):
            while pump.stream.marks.where("m") is None:
                await pump.turn(keep=False)
        await pump.resume()
        assert pump.stream.marks.where("m") is None
        await until_placed(pump, "m")
        assert checker.check(pump.replica.paths, at_least=total, at_most=total) == total


async def test_records_that_are_read_again_after_a_break_are_not_taken_for_orphans(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    async with ordered_with_a_writer(shm, devices, pin_dir, stack, ring_mib=64) as (pump, writer, checker):
        # Several batches' worth: bios are cut in two at their ends.
        await asyncio.to_thread(writer.wait_for, writer.completed + 1200)
        total = writer.stop()
        rounds = AgentState(pump.stream._capture.state)[Word.ROUNDS]
        pump.stream.rounds.lose_order("the round begins behind all records")
        async with asyncio.timeout(30):
            while pump.stream.state != StreamState.ORDERED:
                await pump.turn(keep=False)
        assert AgentState(pump.stream._capture.state)[Word.ROUNDS] > rounds
        await pump.resume()
        await drain(pump)
        assert checker.check(pump.replica.paths, at_least=total, at_most=total) == total


async def test_a_mark_of_an_unstored_batch_goes_to_the_next_epoch(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack
) -> None:
    async with ordered_with_a_writer(shm, devices, pin_dir, stack, ring_mib=64) as (pump, writer, checker):
        await asyncio.to_thread(writer.wait_for, 10)
        total = writer.stop()
        pump.stream.mark(Mark("m"))
        async with asyncio.timeout(30):
            while pump.stream.marks.where("m") is None:
                await pump.turn(keep=False)
        AgentState(pump.stream._capture.state).want_epoch(Reason.MANUAL)
        await pump.begin(2)
        batch = await until_placed(pump, "m")
        assert batch.epoch == 2
        assert checker.check(pump.replica.paths, at_least=total, at_most=total) == total


async def test_a_swap_whose_session_ended_hides_no_lost_write(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ordered_with_a_writer(shm, devices, pin_dir, stack, ring_mib=1) as (pump, writer, checker):
        await asyncio.to_thread(writer.wait_for, writer.completed + 2000)
        total = writer.stop()
        with monkeypatch.context() as patch:  # the round of this test is the first
            for name in ("LOSS_QUIET_S", "LOSS_WAIT_S"):
                patch.setattr(f"agent.stream.rounds.{name}", float("inf"))
            while not pump.stream.catchup.needs_round or len(pump.stream._ring.peek(1)):
                await pump.turn()
        capture = pump.stream._capture
        swapped, go_on = threading.Event(), threading.Event()

        def slow_swap() -> None:
            Capture.swap_dirty(capture)
            swapped.set()
            go_on.wait(30)

        with monkeypatch.context() as patch:
            patch.setattr(capture, "swap_dirty", slow_swap)
            session = asyncio.create_task(until_round(pump.stream))
            assert await asyncio.to_thread(swapped.wait, 30)
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        asyncio.get_running_loop().call_later(0.2, go_on.set)
        await drain(pump)
        assert checker.check(pump.replica.paths, at_least=total, at_most=total) == total


def fill(device: str) -> None:
    Path(device).write_bytes(secrets.token_bytes(DISK_B))
    subprocess.run(["blockdev", "--flushbufs", device], check=True)


def is_equal(image: Path, device: str) -> bool:
    return image.read_bytes() == Path(device).read_bytes()


async def begun_pump(stream: Stream, replica: Replica) -> Pump:
    pump = Pump(stream, replica)
    await pump.begin()
    stream.rounds.settle()
    return pump


async def ordered_pump(stream: Stream, replica: Replica) -> Pump:
    pump = await begun_pump(stream, replica)
    await pump.until_ordered()
    return pump


def refuse(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The first disk refuses eight sectors at each of `bad`, as long as it is in there."""

    def read(fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        found = read_span(fd, chunk, buffer, *rest)
        end = chunk.first_sector + chunk.sectors
        return found + [(at, 8) for at in sorted(bad) if chunk.disk == 0 and chunk.first_sector <= at < end]

    monkeypatch.setattr("agent.stream.sync_reader.read_span", read)


def write_until_one_is_lost(device: str, stream: Stream) -> int:
    """Fills the ring with writes of one record each, until the newest write does not fit. Unix ns just before that one."""
    lost_before = stream._capture.loss_count()
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            number = 0
            while stream._capture.loss_count() == lost_before:
                page[:] = secrets.token_bytes(mmap.PAGESIZE)
                before_ns = time.time_ns()
                assert os.pwrite(fd, page, number * mmap.PAGESIZE) == mmap.PAGESIZE
                number += 1
    finally:
        os.close(fd)
    return before_ns


@asynccontextmanager
async def ordered_with_a_writer(
    shm: Path, devices: list[str], pin_dir: Path, stack: ExitStack, *, ring_mib: int
) -> AsyncIterator[tuple[Pump, Writer, PrefixChecker]]:
    """An ordered stream, and a writer at full speed that has just begun; nobody drains the ring."""
    seed = secrets.randbits(32)
    replica = Replica(shm, [DISK_B, DISK_B])
    async with running(pin_dir, devices, ring_mib) as stream:
        pump = await ordered_pump(stream, replica)
        writer = stack.enter_context(Writer(devices, shm / "progress", seed))
        yield pump, writer, PrefixChecker(schedule(seed))
    replica.close()


async def until_placed(pump: Pump, mark: str) -> Batch:
    """Until the batch with the mark, and not further."""
    async with asyncio.timeout(60):
        while True:
            batch = await pump.turn()
            if batch is not None and any(found.id == mark for found in batch.meta.marks):
                return batch


async def until_round(stream: Stream) -> None:
    begun = False
    while not begun:
        begun = await stream.rounds.begin_if_due()
        await asyncio.sleep(0)


async def drain(pump: Pump) -> None:
    """Until an ordered batch that was cut after now, with nothing left in the ring."""
    async with asyncio.timeout(60):
        end = pump.stream._ring.producer_seq
        while True:
            batch = await pump.turn()
            if batch is not None and batch.state == StreamState.ORDERED and batch.end_seq >= end:
                return


async def test_a_clock_that_was_ahead_leaves_no_trace_in_later_times(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def captured_ns() -> int:
        mark = secrets.token_hex(4)
        stream.mark(Mark(mark))
        return (await until_placed(pump, mark)).captured_ns

    year_ns = 365 * 86_400 * 10**9
    async with running(pin_dir, devices, 64) as stream:
        pump = await ordered_pump(stream, replica)
        real_ns = time.time_ns
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: real_ns() + year_ns)
            before_ns = time.time_ns()
            assert before_ns <= await captured_ns() <= time.time_ns()
        before_ns = time.time_ns()
        assert before_ns <= await captured_ns() <= time.time_ns()


async def until_equal(pump: Pump, replica: Path, device: str) -> None:
    """From its beginning to its end: nothing else is written to it meanwhile."""
    copy, disk = os.open(replica, os.O_RDONLY), os.open(device, os.O_RDONLY)
    at = 0
    while at < DISK_B:
        if os.pread(copy, 1 << 20, at) == os.pread(disk, 1 << 20, at):
            at += 1 << 20
        else:
            await pump.turn()
    os.close(copy)
    os.close(disk)


async def test_beside_a_disk_that_never_answers_the_others_are_copied_and_their_writes_sent(
    replica: Replica, devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def read(fd: int, chunk: Chunk, buffer: mmap.mmap, *rest: Any) -> list[tuple[int, int]]:
        if chunk.disk == 0:
            go_on.wait(60)
        return read_span(fd, chunk, buffer, *rest)

    monkeypatch.setattr("agent.stream.sync_reader.read_span", read)
    fill(devices[1])
    async with asyncio.timeout(60):
        async with running(pin_dir, devices, 64) as stream:
            pump = await begun_pump(stream, replica)
            await until_equal(pump, replica.paths[1], devices[1])
            fd = os.open(devices[1], os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, mmap.PAGESIZE) as page:
                page[:] = secrets.token_bytes(mmap.PAGESIZE)
                os.pwrite(fd, page, 17 * mmap.PAGESIZE)
            os.close(fd)
            await until_equal(pump, replica.paths[1], devices[1])
            assert stream.state == StreamState.INITIAL_REPLICATION
        # To close waited for no disk.
        assert not go_on.is_set()
    go_on.set()


async def test_a_disk_whose_size_is_no_multiple_of_its_blocks_is_replicated_but_for_the_tail(
    shm: Path, pin_dir: Path, stack: ExitStack
) -> None:
    odd = shm / "odd"
    odd.write_bytes(os.urandom((8 << 20) + 1536))
    device = stack.enter_context(attached(odd, "--sector-size", "4096"))
    good = stack.enter_context(loop_disk(shm / "good", 8 << 20))
    (shm / "good").write_bytes(os.urandom(8 << 20))
    replica = Replica(shm, [8 << 20, 8 << 20])
    async with running(pin_dir, [device, good], 1) as stream:
        await ordered_pump(stream, replica)
    assert replica.paths[0].read_bytes() == odd.read_bytes()[: 8 << 20]
    assert replica.paths[1].read_bytes() == (shm / "good").read_bytes()
    replica.close()


async def test_after_an_overflow_and_a_restart_what_the_ring_holds_is_still_in_order(
    replica: Replica, devices: list[str], pin_dir: Path
) -> None:
    async with running(pin_dir, devices, 1) as stream:
        pump = await ordered_pump(stream, replica)
        while await pump.turn() is not None:
            pass
        write_until_one_is_lost(devices[0], stream)
        held = len(stream._ring.peek(1 << 20))
    async with running(pin_dir, devices, 1) as stream:
        pump.stream = stream
        await pump.resume()
        pieces, batch = 0, await pump.turn()
        while batch is None or batch.state == StreamState.ORDERED:
            pieces += 0 if batch is None else len(batch.extents)
            batch = await pump.turn()
        assert pieces == held > 100
        await pump.until_ordered()
        await drain(pump)
        assert is_equal(replica.paths[0], devices[0])


@pytest.mark.parametrize("call", ["swap_dirty", "wait_for_programs"])
async def test_no_descriptor_is_closed_under_a_thread_that_outlived_its_session(
    devices: list[str], pin_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[bool] = []

    async with running(pin_dir, devices, 1) as stream:
        capture = stream._capture

        def slow() -> None:
            begun.set()
            go_on.wait(30)
            os.fstat(capture._fds["dirty"])
            ended.append(True)

        monkeypatch.setattr(capture, call, slow)
        if call == "swap_dirty":
            session = asyncio.create_task(until_round(stream))
        else:
            stream._records.hold_from, stream._records._held = -1, (-1, 0.0)
            session = asyncio.create_task(stream.drop_orphans_if_due())
        await asyncio.to_thread(begun.wait, 30)
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        closing = asyncio.create_task(stream.close())
        for _ in range(2):  # stopping, and hard: whatever runs is cancelled
            await turns()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        await turns()
        assert not closing.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert ended == [True]


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
