"""The agent's life, the network and the process server; what is held against the stream."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

import agent.stream.cutter
import agent.stream.records
import agent.stream.rounds
import agent.stream.unreadable
from agent.stream.catchup import CatchUp
from agent.stream.cutter import Stream
from agent.stream.sender import why_not
from agent.stream.state import AgentState, Reason, Word
from shared.batch import SECTOR, Batch, Mark, StreamState, decode, has_payload
from shared.wire import frames
from shared.wire.frames import FrameType
from shared.wire.messages import DiskInfo, Hello, Welcome, pack
from shared.wire.protocol import Connection, Failed, Side
from tests.epoch_ids import eid
from tests.stream_model.kernel import DISKS, GRANULE, SECTORS, Image, Kernel, Missing
from tests.stream_model.kills import Killed, Kills
from tests.stream_model.reader import Reader


@dataclass(frozen=True)
class Hardships:
    """What else the agent has to bear."""

    bad_sectors: int = 0
    """At once."""
    words: int = 1
    """Room to name them, each a word for sixteen neighbours."""
    kills: float = 0.0
    """In which share of its acts one becomes due, at any line."""
    kills_within: str = ""
    """The only function in which they fall."""


def hard(seed: int, kills_within: str = "") -> Hardships:
    """Little room to name what is bad, and much, by turns."""
    return Hardships(bad_sectors=10, words=(1, 2, 64)[seed % 3], kills=0.03, kills_within=kills_within)


class Stored(NamedTuple):
    """A batch that the process server has, and the target behind it."""

    number: int
    seq: int
    digest: bytes
    target: Image
    missing: Missing


class WatchedCatchUp(CatchUp):
    """Tells the reader's trials what is put to do."""

    reader: Reader

    def mark_sectors(self, disk: int, sectors: npt.NDArray[np.int64]) -> None:
        self.reader.trials.put_to_do(disk, sectors.tolist())
        super().mark_sectors(disk, sectors)


class Model:
    """The agent's life, and a process server that keeps all versions of the target which may be needed again."""

    def __init__(self, seed: int, hardships: Hardships | None = None) -> None:
        self.rng = random.Random(seed)
        hardships = hardships or Hardships()
        self.kernel = Kernel(self.rng, hardships.bad_sectors, hardships.words)
        self.kills = Kills(self.rng, hardships.kills, hardships.kills_within)
        self.has_bad_sectors = hardships.bad_sectors > 0
        image = self.kernel.image
        self.stored = [Stored(0, 0, bytes(16), image.copy(), np.zeros_like(image, np.bool_))]
        """The batches from the last uploaded one on."""
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
        self.lies = self.declared = self.taken_back = self.late = self.more = 0
        """Of the last: sectors named unreadable, chunks for which there was no room, looks at trials that were let go, trials that put more
        to do than they were given."""

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
            self.rest: 2 * self.has_bad_sectors,
        }
        for _ in range(steps):
            await self.attempt(self.rng.choices([*actions], [*actions.values()])[0])
        self.kernel.stopped = True
        self.kernel.bad.heal()
        for _ in range(400):
            self.kernel.happen()
            await self.turn()
            self.read()
            self.deliver()
            self.acknowledge()
        while self.on_the_way:
            self.deliver()
        if not np.array_equal(self.stored[-1].target, self.kernel.image):
            self.problems.append("the target differs at the end")
        if self.stored[-1].missing.any() or self.stream.unreadable.sectors:
            self.problems.append(
                f"what can be read is still named unreadable: {self.stream.unreadable.ranges()}"
            )
        if missing := self.asked.keys() - self.kept.keys():
            self.problems.append(f"marks never placed: {missing}")
        if self.stream.state != StreamState.ORDERED:
            self.problems.append("order never came back")
        self.note_trials()

    async def attempt(self, act: Callable[[], Awaitable[None] | None]) -> None:
        is_of_agent = act not in (self.kernel.happen, self.deliver, self.read, self.rest)
        try:
            with self.kills.may_fall() if is_of_agent else nullcontext():
                done = act()
                if done is not None:
                    await done
        except Killed:
            # What a thread of it had asked of the kernel happens all the same.
            await self.stream.rounds.close()
            await self.stream._records.close()
            await self.attempt(self.restart)

    def note_trials(self) -> None:
        """Before this life of the agent's reader is forgotten."""
        self.problems += self.reader.trials.problems
        self.more += self.reader.trials.more
        self.taken_back += self.reader.taken_back

    async def restart(self) -> None:
        """The agent is killed and starts again."""
        kernel = self.kernel
        if hasattr(self, "reader"):
            self.note_trials()
        if self.has_bad_sectors and self.rng.random() < 0.05:  # somebody removed the pin
            kernel.unreadable[:] = 0
        catchup = WatchedCatchUp([SECTORS] * DISKS, [kernel.todo[i] for i in range(DISKS)], GRANULE)
        self.state = AgentState(kernel.words)
        self.reader = catchup.reader = Reader(kernel, catchup)
        self.stream = Stream(kernel, self.state, catchup, self.reader)  # type: ignore[arg-type]
        named = {(disk, first + i) for disk, first, n in self.stream.unreadable.ranges() for i in range(n)}
        if not named <= kernel.bad.refused:
            self.problems.append(f"named unreadable, and read by every round of this epoch: {named}")
        self.judge_names()
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
            self.keep_uploaded_marks()
            self.kept = dict.fromkeys(self.kept, 0)
            await self.stream.rounds.everything_is_to_do("the model begins")
            self.kernel.bad.refused.clear()
            target = self.stored[-1].target
            self.stored = [Stored(0, 0, bytes(16), target, np.zeros_like(target, np.bool_))]
            self.stream.begin_epoch(eid(self.epoch))
        number, seq, digest, *_ = self.stored[-1]
        assert number >= self.state[Word.FREED]
        assert self.state.is_ours(number, digest, seq)
        self.stream.resume(number, seq, digest, self.stored[0][0])

    def rest(self) -> None:
        self.kernel.quiet = not self.kernel.quiet

    async def forget(self) -> None:
        """The process server burns down; its successor knows what was uploaded."""
        if self.stored[0][0] >= self.state[Word.FREED]:
            del self.stored[1:]
            self.keep_uploaded_marks()
            await self.reconnect()

    async def new_epoch(self) -> None:
        self.state.want_epoch(Reason.MANUAL)
        await self.reconnect()

    async def confuse(self) -> None:
        """A process server that stands elsewhere than it says, or in another life of the epoch, welcomes the agent."""
        number, seq, digest, *_ = self.stored[-1]
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
        patience_s = 0.0 if self.rng.random() < 0.2 else math.inf
        with mock.patch.object(agent.stream.cutter, "ANSWER_S", patience_s):
            cut = self.stream.cut()
        self.late += len(self.stream._late)
        if cut is not None:
            self.on_the_way.append(b"".join(cut.parts))

    def read(self) -> None:
        self.reader.read()
        self.reader.trials.go_on()

    def deliver(self) -> None:
        if not self.on_the_way:
            return
        batch, digest = decode(self.on_the_way.popleft())
        number, _, before, target, missing = self.stored[-1]
        assert (batch.number, batch.predecessor) == (number + 1, before)
        target, missing = target.copy(), missing.copy()
        if not apply(batch, target, missing):
            self.problems.append(f"batch {batch.number} names what it carries")
        self.declared += len(batch.meta.unreadable)
        self.stored.append(Stored(batch.number, batch.end_seq, digest, target, missing))
        self.judge_names()
        self.kept |= {mark.id: batch.number for mark in batch.meta.marks}
        if batch.state == StreamState.ORDERED:
            self.ordered += 1
            asked = [self.asked[mark.id] for mark in batch.meta.marks]
            at_least = max([0, *(a for a, _ in asked)]), max([0, *(b for _, b in asked)])
            if not self.kernel.is_possible(target, missing, at_least):
                self.problems.append(f"batch {batch.number} is no prefix, or lacks what its marks promise")

    def judge_names(self) -> None:
        """What the agent names is missing, and what is missing it names; but for what a round or the ring is to bring."""
        kernel = self.kernel
        if self.on_the_way or not self.state[Word.EPOCH]:
            return
        missing = self.stored[-1].missing
        if not (self.stream.unreadable.sectors or missing.any()):
            return
        named, coming = np.zeros_like(missing), np.zeros_like(missing)
        for disk, first, sectors in self.stream.unreadable.ranges():
            named[disk, first : first + sectors] = True
        for disk in range(DISKS):
            granules = np.unpackbits(kernel.todo[disk].view(np.uint8), bitorder="little")
            coming[disk] = np.repeat(granules, GRANULE)[:SECTORS]
        for record in kernel.headers[kernel.consumer_seq : kernel.producer_seq]:
            coming[record["disk"], record["sector"] : record["sector"] + record["sectors"]] = True
        if ((named != missing) & ~coming).any():
            self.problems.append(f"named are {np.argwhere(named)}, missing {np.argwhere(missing)}")

    def acknowledge(self) -> None:
        uploaded = self.rng.randrange(len(self.stored))
        del self.stored[:uploaded]
        self.stream.acknowledged(self.stored[-1][0], self.stored[0][0])


def apply(batch: Batch, target: Image, missing: Missing) -> bool:
    """Whether it carries nothing that it names unreadable: what the target holds there, which may be a write, is to stay."""
    carried = np.zeros_like(missing)
    payload, at = memoryview(batch.payload), 0
    for e, has in zip(batch.extents, has_payload(batch.extents), strict=True):
        disk, first, sectors = int(e["disk"]), int(e["sector"]), int(e["sectors"])
        values: Any = 0
        if has:
            values = np.frombuffer(payload[at : at + sectors * SECTOR], np.uint32)[:: SECTOR // 4]
            at += sectors * SECTOR
        target[disk, first : first + sectors] = values
        carried[disk, first : first + sectors] = True
    named = np.zeros_like(missing)
    for disk, first, sectors in batch.meta.unreadable:
        named[disk, first : first + sectors] = True
    missing &= ~carried
    missing |= named
    return not (named & carried).any()


@contextmanager
def small_and_impatient() -> Iterator[None]:
    """The stream with bounds that a model reaches, and without waits."""
    with ExitStack() as undo:
        for module, name, value in (
            (agent.stream.records, "MAX_RECORDS", 5),
            (agent.stream.records, "MAX_PIECES", 7),
            (agent.stream.records, "HOLD_PATIENCE_S", 0.0),
            (agent.stream.rounds, "LOSS_QUIET_S", 0.0),
            (agent.stream.rounds, "DEVICE_RETRY_S", 0.0),
            (agent.stream.unreadable, "FIRST_S", 0.0),
            (agent.stream.unreadable, "LIMIT_S", 0.0),
            (agent.stream.unreadable, "AT_ONCE", 2),
        ):
            undo.enter_context(mock.patch.object(module, name, value))
        yield


def ran(seed: int, hardships: Hardships | None = None, steps: int = 1200) -> Model:
    model = Model(seed, hardships)
    with small_and_impatient():
        asyncio.run(model.run(steps))
    if not model.ordered:
        model.problems.append("nothing was ever ordered: the model shows nothing")
    return model
