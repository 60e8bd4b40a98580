"""What is said of disks, over sequences of rounds: what is the matter, the gravest first, and nothing once it is over. The real stream,
rounds and reader; modelled are the kernel, the clock, and what a disk's threads read."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.capture.layout import OPEN_WRITE
from agent.stream.catchup import CatchUp, Chunk
from agent.stream.cutter import Stream
from agent.stream.disk_threads import MOST, PARALLEL, Call
from agent.stream.lane import ANSWER_S
from agent.stream.refusals import WORD_SECTORS
from agent.stream.spans import TooMuchRefused
from agent.stream.state import AgentState, Word
from agent.stream.sync_reader import SyncReader
from shared.errors import DeviceError
from tests.epoch_ids import eid
from tests.stream_model.kernel import Kernel

DISKS, WORDS = 2, 16
SLOW, WRITTEN, REFUSED, BAD = 0, 1, (5, 6), 9
"""Words in which something is the matter, if it is."""
AMID = 8
"""Turns after which a round over everything has come to the bad word, and goes on."""
WHOLE = ("hangs", "errors", "out")
PARTS = ("slow", "write", "refused", "bad", "full")
State = frozenset[str]
WELL: State = frozenset()


class Hangs(BaseException):
    """The read is still under way."""


class Machine(Kernel):
    def __init__(self) -> None:
        super().__init__(random.Random(1), words=1024)
        self.stopped = True
        self.todo = np.zeros((DISKS, WORDS), np.uint64)
        self.bitmaps = np.zeros((2, DISKS, WORDS), np.uint64)
        self.sick = [WELL] * DISKS
        self.now = 1000.0
        self.threads: list[Threads] = []
        self.disks = [SimpleNamespace(path=f"disk {i}", number=i) for i in range(DISKS)]

    def is_in(self, disk: int, *any_of: str) -> bool:
        return any(what in self.sick[disk] for what in any_of)

    def open_writes(self) -> npt.NDArray[np.void]:
        hung = [disk for disk in range(DISKS) if self.is_in(disk, "write")]
        return np.array([(0, WRITTEN * WORD_SECTORS, 8, disk) for disk in hung], OPEN_WRITE)

    def read(
        self,
        disk: int,
        chunk: Chunk,
        _buffer: Any,
        moved: Callable[[], None],
        _known: Any,
        may_lose: int,
    ) -> list[tuple[int, int]]:
        if self.is_in(disk, "hangs") or (self.is_in(disk, "slow") and chunk.word == SLOW):
            raise Hangs
        moved()
        if self.is_in(disk, "errors", "out"):
            raise DeviceError("the model's disk gives nothing")
        refused = self.is_in(disk, "refused") and chunk.word in REFUSED
        bad = self.is_in(disk, "bad") and chunk.word == BAD
        lost = [(chunk.first_sector, chunk.sectors if refused else 1)] if refused or bad else []
        if sum(count for _, count in lost) > may_lose:
            raise TooMuchRefused(chunk, chunk.first_sector)
        return lost

    def read_again(self, disk: int, **_: Any) -> list[tuple[int, int]]:
        if self.is_in(disk, "hangs"):
            raise Hangs
        return []


class Threads:
    """`DiskThreads` that work when the model wants, and never block."""

    def __init__(self, machine: Machine, disk: Any) -> None:
        self._machine, self._disk = machine, disk.number
        self._waiting: list[tuple[Call[Any], Callable[[int], Any]]] = []
        self._begun: list[tuple[Call[Any], Callable[[int], Any]]] = []
        machine.threads.append(self)

    def run(self, call: Callable[[int], Any], _patience_s: float) -> Call[Any]:
        future: Call[Any] = Call()
        self._waiting.append((future, call))
        return future

    def tend(self, _patience_s: float) -> None:
        pass

    def close(self) -> None:
        pass

    def work(self) -> None:
        while self._waiting and self._is_one_free:
            future, call = self._waiting.pop(0)
            if future.set_running_or_notify_cancel():
                future.began = self._machine.now
                self._begun.append((future, call))
                self._go_on()
        self._go_on()

    @property
    def _is_one_free(self) -> bool:
        late = sum(self._machine.now - future.began >= ANSWER_S for future, _ in self._begun)
        return len(self._begun) < min(PARALLEL + late, MOST)

    def _go_on(self) -> None:
        for future, call in [*self._begun]:
            try:
                future.set_result(call(self._disk))
            except Hangs:
                continue
            except (DeviceError, TooMuchRefused) as exc:
                future.set_exception(exc)
            self._begun.remove((future, call))


class Life:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.catchup = CatchUp([WORDS * WORD_SECTORS] * DISKS, [machine.todo[i] for i in range(DISKS)])
        self.state = AgentState(machine.words)
        reader = SyncReader(machine.disks, self.catchup)  # type: ignore[arg-type]
        self.reader = reader
        self.stream = Stream(machine, self.state, self.catchup, reader)  # type: ignore[arg-type]
        has_room = self.stream.unreadable.has_room

        def may_have_room(disk: int, missing: Any, sent: Any) -> bool:
            return not (missing and machine.is_in(disk, "full")) and has_room(disk, missing, sent)

        self.stream.begin_epoch(eid(1))
        self.stream.unreadable.has_room = may_have_room  # type: ignore[method-assign]
        self.stream.rounds.settle()

    def want(self, words: Iterable[int] = range(WORDS)) -> None:
        for disk in range(DISKS):
            for word in words:
                self.catchup.mark_range(disk, word * WORD_SECTORS, WORD_SECTORS)
        self.stream.rounds.lose_order("the model wants a round")

    def become(self, disk: int, state: State) -> None:
        self.machine.sick[disk] = state
        self.stream.rounds.leave_out(i for i in range(DISKS) if self.machine.is_in(i, "out"))

    async def turn(self) -> None:
        await self.stream.rounds.begin_if_due()
        cut = self.stream.cut()
        if cut is not None:
            self.stream.acknowledged(cut.batch.number, cut.batch.number)
        for threads in self.machine.threads:
            threads.work()
        for _ in range(6):
            await asyncio.sleep(0)
        self.machine.now += 0.5

    async def begin(self) -> None:
        begun = self.state[Word.ROUNDS]
        await self.until(lambda: self.state[Word.ROUNDS] > begun)

    async def round(self) -> None:
        await self.begin()
        await self.until(lambda: self.catchup.round is None)

    async def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(1000):
            if is_so():
                return
            await self.turn()
        pytest.fail(f"a round does not end: {self.machine.sick}")

    @property
    def said(self) -> list[str]:
        found = self.stream.rounds.unread()
        return [found[disk].code if disk in found else "" for disk in range(DISKS)]


@contextlib.contextmanager
def life() -> Iterator[Life]:
    machine = Machine()
    fake = SimpleNamespace(**{**vars(time), "monotonic": lambda: machine.now})
    with ExitStack() as patches:
        patch: Callable[[str, Any], Any] = lambda name, value: patches.enter_context(  # noqa: E731
            mock.patch(f"agent.stream.{name}", value)
        )
        for module in ("lane", "sync_reader", "rounds", "cutter"):
            patch(f"{module}.time", fake)
        patch("lane.DiskThreads", lambda disk: Threads(machine, disk))
        patch("sync_reader.read_span", machine.read)
        patch("sync_reader.read_again", machine.read_again)
        patch("sync_reader._HUNG_PROBE_S", 0.0001)
        patch("sync_reader._BLOCKED_PROBE_S", 0.0)
        patch("refusals.AT_ONCE", 64)
        yield Life(machine)


def may_say(state: State) -> set[str]:
    """Of a disk that is in this state for some rounds."""
    if "out" in state:
        return {""}
    if "hangs" in state:
        return {"US592"}
    if "errors" in state:
        return {"US410"}
    if "refused" in state:
        return {"US593", "US594"} if "full" in state and "bad" in state else {"US593"}
    parts = {"US586"} if "slow" in state else {"US587"} if "write" in state else {""}
    if "bad" in state:
        # Where a part was refused before, it is waited for as if it belonged to that.
        return {"US593", "US594"} if "full" in state else {"US593"} | parts
    return parts


whole = st.sampled_from([WELL, *(frozenset([what]) for what in WHOLE)])
states = whole | st.frozensets(st.sampled_from(PARTS))
steps = st.lists(st.tuples(states, states, st.integers(0, 2), st.booleans()), max_size=5)


def so(*what: str) -> State:
    return frozenset(what)


@given(steps)
@example([(so("bad", "full"), WELL, 0, True)])
@example([(so("refused", "slow"), so("refused", "full"), 2, True), (so("out"), so("slow"), 2, False)])
@settings(max_examples=10, deadline=None)
def test_what_is_said_of_a_disk_is_the_gravest_that_is_the_matter_and_ends_with_it(
    steps: list[tuple[State, State, int, bool]],
) -> None:
    async def run() -> None:
        with life() as one:
            for *now, rounds, is_given_up in steps:
                for disk, state in enumerate(now):
                    one.become(disk, state)
                for _ in range(rounds):
                    one.want()
                    await one.round()
                if rounds == 2:
                    for said, state in zip(one.said, now, strict=True):
                        assert said in may_say(state), (said, sorted(state))
                if is_given_up:
                    one.want()
                    await one.begin()
                    for _ in range(AMID):
                        await one.turn()
                    one.stream.rounds.give_up(0.0)
            for disk in range(DISKS):
                one.become(disk, WELL)
            for _ in range(2):
                if one.catchup.needs_round:
                    await one.round()
            assert one.said == ["", ""]
            assert not one.catchup.needs_round, "in order"
            await one.stream.close()

    asyncio.run(run())


async def test_a_disk_that_answers_does_not_hang_though_a_write_keeps_all_that_is_wanted_of_it_from_being_asked_for() -> (
    None
):
    with life() as one:
        one.become(0, so("hangs"))
        one.want([WRITTEN])
        await one.round()
        assert one.said == ["US592", ""]
        one.become(0, so("hangs", "write"))
        await one.round()
        assert one.said == ["US592", ""], "nothing came"
        one.become(0, so("write"))
        await one.round()
        assert one.said == ["US587", ""]
        await one.stream.close()


async def test_a_disk_that_hangs_is_said_to_also_where_there_was_no_room_before_in_the_same_round() -> None:
    with life() as one:
        one.become(0, so("bad", "full"))
        one.want()
        await one.begin()
        await one.until(lambda: one.said == ["US594", ""])
        one.become(0, so("hangs"))
        await one.until(lambda: one.catchup.round is None)
        assert one.said == ["US592", ""]
        await one.stream.close()
