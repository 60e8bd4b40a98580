"""The agent's life, the network and the process server; what is held against the stream."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import numpy as np
from msgspec.structs import replace

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
from tests.stream_model.kernel import DISKS, GRANULE, SECTORS, Image, Kernel
from tests.stream_model.reader import Reader


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


def problems_of(seed: int, steps: int = 1200) -> list[str]:
    model = Model(seed)
    asyncio.run(model.run(steps))
    if not model.ordered:
        model.problems.append("nothing was ever ordered: the model shows nothing")
    return model.problems
