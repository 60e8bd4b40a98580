"""The real stream, bios and catch-up over a random model of the kernel, the network, the process server and the agent's life.

The kernel: two CPUs, each with a writer of chained writes over two disks, whose pieces interleave in a small ring; programs that are
busy, or fail half-way; bitmaps that are swapped under running programs; writes that reach the disk sector by sector. The rest: batches
lost with their connection, a process server that forgets what was not uploaded, one that is confused about where it stands or in which
epoch, an agent that is killed, new epochs.

Held against it: every ordered batch that is stored is a state that the disks can have had (each writer's writes up to some k, and no
write without those that it was issued after); a mark holds what had completed when it was asked for; at the end the target is equal.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import agent.stream.records
import agent.stream.rounds
import agent.stream.state
import shared.wire.protocol
from agent.capture.layout import DATA_B, FLAG_LAST, OPEN_WRITE, RECORD, RECORD_SIZE
from agent.capture.ring import Window
from agent.stream.bios import PIECE_SECTORS
from agent.stream.catchup import CatchUp, Chunk, NoChunk
from agent.stream.cutter import Stream
from agent.stream.marks import Marks
from agent.stream.records import Records
from agent.stream.rounds import Rounds
from agent.stream.sender import why_not
from agent.stream.state import AgentState, Reason, Word
from shared.batch import SECTOR, Batch, Mark, Op, StreamState, decode, has_payload
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.messages import DiskInfo, Hello, Welcome, pack
from shared.wire.protocol import Connection, Failed, Side
from tests.epoch_ids import eid

DISKS = 2
HALF = 24
SECTORS = 2 * HALF
"""Of each disk; writer i writes to its half of every disk."""
GRANULE = 4
RING = 12
RECORDS = 30_000
WORDS = 1
REMEMBERED = 8

Image = npt.NDArray[np.uint32]
"""(DISKS, SECTORS): which write of its half's writer a sector holds; 0: none, or a discard."""


@dataclass
class Bio:
    cpu: int
    disk: int
    first: int
    sectors: int
    value: int
    number: int
    loss: int
    bitmap: int
    since_ns: int
    program: Iterator[None] = field(default_factory=lambda: iter(()))
    running: bool = True
    left: list[int] = field(default_factory=list)
    """Sectors that are not on the disk yet."""


class Kernel:
    """Ring, bitmaps, open writes and disks; what a `Capture` is to the stream."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.image: Image = np.zeros((DISKS, SECTORS), np.uint32)
        self.states: list[list[Image]] = [[self._half(cpu)] for cpu in range(2)]
        """Per writer: its half of the disks after each of its writes."""
        self.needs: list[list[int]] = [[0], [0]]
        """Per writer and write: how many of the other's writes had completed when it was issued."""
        self.completed = [0, 0]
        self.bios: dict[int, Bio] = {}
        self.stopped = False
        self.loss = 0
        self.active = 0
        self.bitmaps = np.zeros((2, DISKS, WORDS), np.uint64)
        self.todo = np.zeros((DISKS, WORDS), np.uint64)
        self.words = np.zeros(96 + REMEMBERED, np.uint64)
        self.unreadable = np.zeros(2, np.uint64)
        self.headers = np.zeros(RECORDS, RECORD)
        self.data = np.zeros((RECORDS, DATA_B), np.uint8)
        self.busy: set[int] = set()
        self.discarded: set[int] = set()
        self.producer_seq = self.consumer_seq = self.cursor = 0
        self.disks = [None] * DISKS

    def _half(self, cpu: int) -> Image:
        return self.image[:, cpu * HALF : (cpu + 1) * HALF].copy()

    # -- what happens by itself

    def happen(self) -> None:
        """What may happen between any two looks of the agent."""
        for _ in range(self.rng.randrange(5)):
            self.step(self.rng.randrange(2))

    def step(self, cpu: int) -> None:
        bio = self.bios.get(cpu)
        if bio is None:
            if not self.stopped:
                self.bios[cpu] = self._submit(cpu)
        elif bio.running:
            bio.running = next(bio.program, "ended") != "ended"
        elif bio.left:
            sector = bio.left.pop(self.rng.randrange(len(bio.left)))
            self.image[bio.disk, sector] = bio.value
        else:
            self.completed[cpu] += 1
            del self.bios[cpu]

    def _submit(self, cpu: int) -> Bio:
        first = self.rng.randrange(HALF)
        sectors = self.rng.randrange(1, HALF - first + 1)
        number = len(self.states[cpu])
        bio = Bio(
            cpu=cpu,
            disk=self.rng.randrange(DISKS),
            first=cpu * HALF + first,
            sectors=sectors,
            value=0 if self.rng.random() < 0.1 else number,
            number=number,
            loss=self.loss,
            bitmap=self.active,
            since_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        )
        bio.left = [*range(bio.first, bio.first + sectors)]
        after = self.states[cpu][-1].copy()
        after[bio.disk, first : first + sectors] = bio.value
        self.states[cpu].append(after)
        self.needs[cpu].append(self.completed[1 - cpu])
        bio.program = self._capture(bio)
        return bio

    def _capture(self, bio: Bio) -> Iterator[None]:
        pieces = [(0, bio.sectors)] if bio.value == 0 else self._cut(bio.sectors)
        for piece, (offset, sectors) in enumerate(pieces):
            yield
            if self.producer_seq - self.consumer_seq >= RING:
                break
            seq = self.producer_seq
            self.producer_seq += 1
            self.busy.add(seq)
            yield
            self.busy.discard(seq)
            if self.rng.random() < 0.02:
                self.discarded.add(seq)
                break
            record = self.headers[seq]
            record["time_ns"], record["bio"], record["loss"] = bio.since_ns, 4096 + bio.cpu, bio.loss
            record["sector"], record["sectors"], record["disk"] = bio.first + offset, sectors, bio.disk
            record["op"] = Op.ZERO if bio.value == 0 else Op.WRITE
            record["flags"] = FLAG_LAST if offset + sectors == bio.sectors else 0
            record["piece"], record["bio_sectors"] = piece, bio.sectors
            self.data[seq].view(np.uint32)[:] = bio.value
        else:
            return
        yield
        for sector in range(bio.first, bio.first + bio.sectors):
            self.bitmaps[bio.bitmap, bio.disk, 0] |= np.uint64(1 << sector // GRANULE)
        yield
        self.loss += 1

    def _cut(self, sectors: int) -> list[tuple[int, int]]:
        pieces, at = [], 0
        while at < sectors:
            length = min(self.rng.randrange(1, PIECE_SECTORS + 1), sectors - at)
            pieces.append((at, length))
            at += length
        return pieces

    # -- Capture

    @property
    def ring(self) -> Kernel:
        return self

    def loss_count(self) -> int:
        self.happen()
        return self.loss

    def open_missed(self) -> int:
        return 0

    def loss_cause(self) -> str:
        return "the ring was full"

    def swap_dirty(self) -> None:
        self.happen()
        self.wait_for_programs(lambda: setattr(self, "active", self.active ^ 1))

    def wait_for_programs(self, begin: Callable[[], None] = lambda: None) -> None:
        running = [bio for bio in self.bios.values() if bio.running]
        begin()
        while any(bio.running for bio in running):  # the grace period
            self.step(self.rng.choice(running).cpu)
            self.happen()

    def inactive_dirty(self, disk: int) -> npt.NDArray[np.uint64]:
        words: npt.NDArray[np.uint64] = self.bitmaps[self.active ^ 1, disk]
        return words

    def open_writes(self) -> npt.NDArray[np.void]:
        self.happen()
        rows = [(bio.since_ns, bio.first, bio.sectors, bio.disk) for bio in self.bios.values()]
        return np.array(rows, OPEN_WRITE)

    # -- Ring

    @property
    def used_b(self) -> int:
        return (self.producer_seq - self.consumer_seq) * RECORD_SIZE

    @property
    def size_b(self) -> int:
        return RING * RECORD_SIZE

    def rewind_to(self, seq: int) -> None:
        assert self.consumer_seq <= seq <= self.producer_seq
        self.cursor = seq

    def free_to(self, seq: int) -> None:
        assert self.consumer_seq <= seq <= self.producer_seq
        # What is freed is written over.
        self.headers["bio"][self.consumer_seq : seq] = 0
        self.data[self.consumer_seq : seq] = 0xFF
        self.consumer_seq = seq

    def peek(self, limit: int) -> Window:
        self.happen()
        first, end = self.cursor, min(self.cursor + limit, self.producer_seq)
        end = min([end, *(seq for seq in self.busy if seq >= first)])
        valid = np.array([seq not in self.discarded for seq in range(first, end)], np.bool_)
        return Window(first, self.headers[first:end], self.data[first:end], valid)

    # -- what the disks can have been

    def is_possible(self, image: Image, at_least: tuple[int, int]) -> bool:
        """Whether the image is that after some k writes of each writer, at least so many, and none without what it was issued after."""
        halves = [image[:, cpu * HALF : (cpu + 1) * HALF] for cpu in range(2)]
        ks = [
            [k for k, s in enumerate(self.states[cpu]) if np.array_equal(s, halves[cpu])] for cpu in range(2)
        ]
        return any(
            self.needs[0][a] <= b and self.needs[1][b] <= a and a >= at_least[0] and b >= at_least[1]
            for a in ks[0]
            for b in ks[1]
        )


@dataclass
class ReadChunk:
    chunk: Chunk
    data: npt.NDArray[np.uint8]
    unreadable: tuple[()] = ()
    is_final: bool = True


class Reader:
    """A `SyncReader` that reads when the model wants."""

    def __init__(self, kernel: Kernel, catchup: CatchUp) -> None:
        self._kernel = kernel
        self._catchup = catchup
        self._ready: deque[ReadChunk] = deque()
        self._done = self.troubled = False
        self._open: Callable[[], npt.NDArray[np.void]] | None = None
        self.wakeup = asyncio.Event()

    def start(self, open_from_before: Callable[[], npt.NDArray[np.void]]) -> None:
        self._open, self._done = open_from_before, False

    @property
    def running(self) -> bool:
        return self._open is not None

    @property
    def finished(self) -> bool:
        return self.running and self._done and not self._ready

    def take(self, limit: int) -> list[ReadChunk]:
        return [
            self._ready.popleft() for _ in range(min(limit, len(self._ready), self._kernel.rng.randrange(3)))
        ]

    def release(self, chunk: ReadChunk) -> None:
        pass

    def end(self) -> None:
        self._open = None

    def forget_bad(self) -> None:
        pass

    def cancel(self) -> None:
        self._open = None
        self._ready.clear()

    def _next_chunk(self) -> Chunk | None:
        """Of any disk that has one left."""
        for disk in self._kernel.rng.sample(range(DISKS), DISKS):
            while (chunk := self._catchup.next_chunk(disk)) is not NoChunk.LEFT:
                if isinstance(chunk, Chunk):
                    return chunk
        return None

    def read(self) -> None:
        kernel = self._kernel
        if self._open is None or self._done:
            return
        chunk = self._next_chunk()
        if chunk is None:
            self._done = True
        elif not self._catchup.may_read(chunk, self._open()):
            if kernel.rng.random() < 0.2:
                self._catchup.defer(chunk)
            else:
                self._catchup.block(chunk)
        else:
            values = np.zeros(chunk.sectors, np.uint32)
            for i in range(chunk.sectors):
                if kernel.rng.random() < 0.1:
                    kernel.happen()
                values[i] = kernel.image[chunk.disk, chunk.first_sector + i]
            self._ready.append(ReadChunk(chunk, np.repeat(values, SECTOR // 4).view(np.uint8)))


class Model:
    """The agent's life, and a process server that keeps all versions of the target which may be needed again."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kernel = Kernel(self.rng)
        self.stored: list[tuple[int, int, bytes, Image]] = [(0, 0, bytes(16), self.kernel.image.copy())]
        """Number, ring position, digest and target of the batches from the last uploaded one on."""
        self.on_the_way: deque[bytes] = deque()
        self.asked: dict[str, tuple[int, int]] = {}
        """Marks, and how many writes of each writer had completed when each was asked for."""
        self.kept: dict[str, int] = {}
        """Marks in stored batches, by batch number."""
        self.answered: set[str] = set()
        """Marks that an earlier life of the agent told to be stored: nobody asks for them again."""
        self.epoch = self.marks = self.ordered = self.believed_after_loss = 0
        """The last: restarts after a loss, with order up to it."""
        self.problems: list[str] = []
        self.lies = 0

    async def run(self, steps: int) -> None:
        await self.restart()
        actions = {
            self.kernel.happen: 30,
            self.turn: 30,
            self.read: 20,
            self.deliver: 25,
            self.acknowledge: 15,
            self.look_for_orphans: 3,
            self.mark: 2,
            self.reconnect: 2,
            self.forget: 1,
            self.restart: 1,
            self.new_epoch: 0.2,
            self.confuse: 0.5,
        }
        for _ in range(steps):
            done: Any = self.rng.choices([*actions], [*actions.values()])[0]()
            if done is not None:
                await done
        self.kernel.stopped = True
        for _ in range(400):
            self.kernel.happen()
            await self.turn()
            self.read()
            self.deliver()
            self.acknowledge()
        while self.on_the_way:
            self.deliver()
        if not np.array_equal(self.stored[-1][3], self.kernel.image):
            self.problems.append("the target differs at the end")
        if missing := self.asked.keys() - self.kept.keys():
            self.problems.append(f"marks never placed: {missing}")
        if self.stream.state != StreamState.ORDERED:
            self.problems.append("order never came back")

    async def restart(self) -> None:
        """The agent is killed and starts again."""
        kernel = self.kernel
        catchup = CatchUp([SECTORS] * DISKS, [kernel.todo[i] for i in range(DISKS)], GRANULE)
        self.state = AgentState(kernel.words)
        self.reader = Reader(kernel, catchup)
        self.stream = Stream(kernel, self.state, catchup, self.reader)  # type: ignore[arg-type]
        await self.stream.rounds.recover()
        expected = self.stream.catchup.loss_at_order
        self.believed_after_loss += expected is not None and expected != kernel.loss
        self.stream.rounds.settle()
        self.answered |= self.kept.keys()
        for id_ in self.asked.keys() - self.kept.keys():
            # Whoever asked has no answer yet, so it is asked again.
            self.stream.mark(Mark(id_))
        await self.reconnect()

    async def reconnect(self) -> None:
        self.on_the_way.clear()
        if not self.state[Word.EPOCH]:
            self.epoch += 1
            await self.stream.rounds.everything_is_to_do("the model begins")
            self.stream.begin_epoch(eid(self.epoch))
            self.stored = [(0, 0, bytes(16), self.stored[-1][3])]
        number, seq, digest, _ = self.stored[-1]
        assert number >= self.state[Word.FREED]
        assert self.state.is_ours(number, digest, seq)
        self.stream.resume(number, seq, digest, self.stored[0][0])

    async def forget(self) -> None:
        """The process server burns down; its successor knows what was uploaded."""
        if self.stored[0][0] >= self.state[Word.FREED]:
            del self.stored[1:]
            self.keep_uploaded_marks()
            await self.reconnect()

    async def new_epoch(self) -> None:
        self.state.want_epoch(Reason.MANUAL)
        self.keep_uploaded_marks()
        self.kept = dict.fromkeys(self.kept, 0)
        await self.reconnect()

    async def confuse(self) -> None:
        """A process server that stands elsewhere than it says, or in another life of the epoch, welcomes the agent."""
        number, seq, digest, _ = self.stored[-1]
        truth = Welcome(
            epoch=self.epoch,
            claim=eid(self.epoch).claim,
            spooled=number,
            spooled_seq=seq,
            spooled_digest=digest,
            uploaded=self.stored[0][0],
            uploaded_seq=self.stored[0][1],
            credit_b=1,
        )
        lie = self.rng.choice(
            [
                replace(truth, spooled_seq=seq + self.rng.randrange(1, 4)),
                replace(truth, spooled_seq=max(truth.uploaded_seq, seq - self.rng.randrange(1, 4))),
                replace(truth, uploaded=number + self.rng.randrange(1, 4)),
                replace(truth, spooled_digest=bytes(range(16))),
                replace(truth, claim=eid(self.epoch, life=2).claim),
                replace(truth, epoch=self.epoch + 1),
            ]
        )
        self.on_the_way.clear()
        if lie == truth or (not number and lie.spooled_seq):
            await self.reconnect()
            return
        agent = Connection(Side.AGENT)
        disks = (DiskInfo(number=0, name="sda", serial="", sectors=SECTORS),)
        epoch = self.state.epoch
        hello = Hello(
            machine="m",
            epoch=epoch.number,
            claim=epoch.claim,
            disks=disks,
            last_sent=self.state[Word.LAST_CUT],
        )
        agent.send_hello(hello)
        body = pack(lie)
        [answer] = agent.receive_data(frames.header(FrameType.WELCOME, len(body)) + body)
        self.lies += 1
        if isinstance(answer, Failed):
            assert not answer.error.ends_epoch
            await self.reconnect()
            return
        if why_not(self.state, lie) is not None:
            await self.new_epoch()
            return
        if (lie.epoch_id, lie.spooled_digest) != (truth.epoch_id, truth.spooled_digest):
            self.problems.append(f"another history was gone on with: {lie}")
        if lie.uploaded > lie.spooled:
            self.problems.append("what was never spooled is taken for uploaded")
        self.stream.resume(lie.spooled, lie.spooled_seq, lie.spooled_digest, truth.uploaded)

    def keep_uploaded_marks(self) -> None:
        gone = {id_ for id_, number in self.kept.items() if number > self.stored[0][0]}
        for id_ in gone:
            del self.kept[id_]
            if id_ in self.answered:
                del self.asked[id_]

    async def look_for_orphans(self) -> None:
        await self.stream.drop_orphans_if_due()

    def mark(self) -> None:
        self.marks += 1
        id_ = str(self.marks)
        self.asked[id_] = self.kernel.completed[0], self.kernel.completed[1]
        self.stream.mark(Mark(id_))

    async def turn(self) -> None:
        await self.stream.rounds.begin_if_due()
        cut = self.stream.cut()
        if cut is not None:
            self.on_the_way.append(b"".join(cut.parts))

    def read(self) -> None:
        self.reader.read()

    def deliver(self) -> None:
        if not self.on_the_way:
            return
        batch, digest = decode(self.on_the_way.popleft())
        number, _, before, target = self.stored[-1]
        assert (batch.number, batch.predecessor) == (number + 1, before)
        target = target.copy()
        apply(batch, target)
        self.stored.append((batch.number, batch.end_seq, digest, target))
        self.kept |= {mark.id: batch.number for mark in batch.meta.marks}
        if batch.state == StreamState.ORDERED:
            self.ordered += 1
            asked = [self.asked[mark.id] for mark in batch.meta.marks]
            at_least = max([0, *(a for a, _ in asked)]), max([0, *(b for _, b in asked)])
            if not self.kernel.is_possible(target, at_least):
                self.problems.append(f"batch {batch.number} is no prefix, or lacks what its marks promise")

    def acknowledge(self) -> None:
        uploaded = self.rng.randrange(len(self.stored))
        del self.stored[:uploaded]
        self.stream.acknowledged(self.stored[-1][0], self.stored[0][0])


def apply(batch: Batch, target: Image) -> None:
    payload, at = memoryview(batch.payload), 0
    for e, has in zip(batch.extents, has_payload(batch.extents), strict=True):
        disk, first, sectors = int(e["disk"]), int(e["sector"]), int(e["sectors"])
        values: Any = 0
        if has:
            values = np.frombuffer(payload[at : at + sectors * SECTOR], np.uint32)[:: SECTOR // 4]
            at += sectors * SECTOR
        target[disk, first : first + sectors] = values


@pytest.fixture(scope="module", autouse=True)
def small_and_impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent.stream.records, "MAX_RECORDS", 5)
        patch.setattr(agent.stream.records, "MAX_PIECES", 7)
        patch.setattr(agent.stream.rounds, "LOSS_QUIET_S", 0.0)
        patch.setattr(agent.stream.records, "HOLD_PATIENCE_S", 0.0)
        yield


def problems_of(seed: int, steps: int = 1200) -> list[str]:
    model = Model(seed)
    asyncio.run(model.run(steps))
    if not model.ordered:
        model.problems.append("nothing was ever ordered: the model shows nothing")
    return model.problems


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_what_is_stored_is_always_a_state_that_the_disks_had(seed: int) -> None:
    assert problems_of(seed) == []


def test_the_model_restarts_the_agent_between_a_loss_and_its_notice() -> None:
    believed_after_loss = lies = 0
    for seed in range(30):
        model = Model(seed)
        asyncio.run(model.run(1200))
        assert model.problems == []
        believed_after_loss += model.believed_after_loss
        lies += model.lies
        if believed_after_loss and lies:
            return
    raise AssertionError(f"of two things one was never seen: {believed_after_loss}, {lies}")


def orphans_by_any_window(self: Records, end: int) -> int:
    return self._grace[0]


def nothing_held(self: Records, emitted_to: int, hold_from: int | None) -> None:
    self.emitted_to = self.hold_from = emitted_to


def forgetful_marks(self: Marks, stored: object) -> None:
    pass


def believe_order_whatever_is_to_do(self: Rounds) -> bool:
    return bool(self._state[Word.ORDERED])


def resume_without_void(self: CatchUp, spooled: int) -> bool:
    self._pending.drop_behind(spooled)
    return False


_word = agent.stream.state._word


def word_without_place(number: int, digest: bytes, _end_seq: int, remembered: int) -> int:
    return _word(number, digest, 0, remembered)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (Records, "_dead_before", orphans_by_any_window),
        (Records, "go_to", nothing_held),
        (Marks, "lost_behind", forgetful_marks),
        (CatchUp, "resume", resume_without_void),
        (Rounds, "_may_believe_order", believe_order_whatever_is_to_do),
        (AgentState, "may_cut", property(lambda self: True)),
        (agent.stream.state, "_word", word_without_place),
        (AgentState, "is_ours", lambda self, number, digest, end_seq: True),
        (shared.wire.protocol, "_check_epoch", lambda hello, welcome: None),
        (shared.wire.protocol, "_check_positions", lambda welcome: None),
    ],
)
def test_a_rule_that_is_broken_is_noticed(
    owner: object, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    for seed in range(200):
        try:
            if problems_of(seed):
                return
        except AssertionError:
            return
    pytest.fail(f"{name} was not noticed: the model does not exercise that rule")
