"""The real catch-up code in a random model of the kernel: a chained writer, a small ring, swapped bitmaps, slow reads.

Two things are counted: batches called ordered that equal no state after exactly some k writes, and targets that differ from the disk
after all has quietened. With the real rules both must be zero; with any one rule removed, the model must show a violation.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stream.catchup import CatchUp, Chunk, NoChunk, Round
from shared.batch import EXTENT, SECTOR, Op, has_payload

GRANULE = 2
SECTORS = 12
RING = 5
OPEN = np.dtype([("disk", "u2"), ("sector", "u8"), ("sectors", "u4")])


class Model:
    def __init__(self, rng: random.Random, catchup: type[CatchUp], steps: int) -> None:
        self.rng = rng
        self.disk = [0] * SECTORS
        self.target = [0] * SECTORS
        self.history = {tuple(self.disk)}
        self.k = 0
        self.in_flight: tuple[range, int, int] | None = None
        self.ring: list[tuple[range, int, int]] = []
        self.held = 0
        self.producer = self.emitted_to = 0
        self.loss = 0
        self.bits = [np.zeros(1, np.uint64), np.zeros(1, np.uint64)]
        self.active = 0
        self.todo = np.zeros(1, np.uint64)
        self.catchup = catchup([SECTORS], [self.todo], GRANULE)
        self.catchup.settled = True
        self.catchup.loss_at_order = 0
        self.open_before: npt.NDArray[np.void] = np.zeros(0, OPEN)
        self.open_limit = 0
        self.reading: tuple[Chunk, list[int]] | None = None
        self.number = 0
        self.uploaded = 0
        self.ordered_batches = self.violations = 0
        for _ in range(steps):
            self.step()
        self.quiesce()

    # -- the kernel

    def submit(self) -> None:
        if self.in_flight is not None:
            return
        self.k += 1
        first = self.rng.randrange(SECTORS)
        where = range(first, min(SECTORS, first + self.rng.randrange(1, 4)))
        if len(self.ring) + self.held < RING:
            self.ring.append((where, self.k, self.loss))
            self.producer += 1
        else:
            for s in where:
                self.bits[self.active][0] |= np.uint64(1 << s // GRANULE)
            self.loss += 1
        self.in_flight = (where, self.k, self.k)

    def complete(self) -> None:
        if self.in_flight is None:
            return
        where, value, _ = self.in_flight
        for s in where:
            self.disk[s] = value
        self.in_flight = None
        self.history.add(tuple(self.disk))

    def world(self) -> None:
        """What may happen between any two looks of the agent."""
        for _ in range(self.rng.randrange(4)):
            self.rng.choice((self.submit, self.complete, self.complete, self.free))()

    def free(self) -> None:
        self.held = 0

    # -- the agent

    def cut(self) -> None:
        c = self.catchup
        batch = self.ring[: self.rng.randrange(4)]
        if c.loss_at_order is not None:
            wrong = [i for i, (_, _, loss) in enumerate(batch) if loss != c.loss_at_order]
            if wrong and wrong[0] == 0:
                c.lose_order()
            elif wrong:
                batch = batch[: wrong[0]]
            elif not self.ring and self.loss != c.loss_at_order:
                c.lose_order()
        self.world()
        extents = np.zeros(len(batch), EXTENT)
        for i, (where, value, _) in enumerate(batch):
            extents[i] = (where.start, len(where), 0, Op.WRITE, 0)
            for s in where:
                self.target[s] = value
        stands = np.arange(self.emitted_to, self.emitted_to + len(batch))
        self.emitted_to += len(batch)
        del self.ring[: len(batch)]
        self.held += len(batch)
        c.records_emitted(extents, stands)
        self.number += 1
        if c.is_ordered(self.emitted_to):
            self.ordered_batches += 1
            self.violations += tuple(self.target) not in self.possible()

    def possible(self) -> set[tuple[int, ...]]:
        states = set(self.history)
        if self.in_flight is not None:
            after = list(self.disk)
            for s in self.in_flight[0]:
                after[s] = self.in_flight[1]
            states.add(tuple(after))
        return states

    def begin(self) -> None:
        c = self.catchup
        loss = self.loss
        self.world()
        self.active ^= 1
        self.world()
        start = self.producer
        self.world_without_submit()
        w = self.in_flight
        before = w is not None and w[2] <= self.k
        self.open_limit = self.k
        self.open_before = self.open_rows() if before else np.zeros(0, OPEN)
        inactive = self.bits[self.active ^ 1]
        c.harvest(0, inactive.copy())
        inactive[:] = 0
        c.begin_round(loss, start)

    def world_without_submit(self) -> None:
        if self.rng.random() < 0.3:
            self.complete()

    def open_rows(self) -> npt.NDArray[np.void]:
        w = self.in_flight
        if w is None or w[2] > self.open_limit:
            return np.zeros(0, OPEN)
        return np.array([(0, w[0].start, len(w[0]))], OPEN)

    def catch_up(self) -> None:
        c = self.catchup
        if c.round is None:
            if c.needs_round:
                self.begin()
            return
        if self.reading is None:
            if not c.may_begin_reading(self.emitted_to):
                return
            chunk = c.next_chunk(0)
            if chunk is NoChunk.YET:
                return
            if chunk is NoChunk.LEFT:
                end = self.producer
                self.world()
                c.finish_reading(end, self.loss)
                return
            assert isinstance(chunk, Chunk)
            if not c.may_read(chunk, self.open_rows()):
                c.defer(chunk)
                return
            values = []
            for s in range(chunk.first_sector, chunk.first_sector + chunk.sectors):
                if self.rng.random() < 0.2:
                    self.world()
                values.append(self.disk[s])
            self.reading = (chunk, values)
            return
        chunk, values = self.reading
        self.reading = None
        data = np.repeat(np.array(values, np.uint32), SECTOR // 4).view(np.uint8)
        extents, payload = c.emit(chunk, data)
        parts = iter(payload)
        for e, has in zip(extents, has_payload(extents), strict=True):
            got = next(parts).view(np.uint32)[:: SECTOR // 4].tolist() if has else [0] * int(e["sectors"])
            for i, value in enumerate(got):
                self.target[int(e["sector"]) + i] = value
        self.number += 1
        c.sent(self.number, [chunk])

    def upload(self) -> None:
        self.uploaded = self.rng.randrange(self.uploaded, self.number + 1)
        self.catchup.uploaded(self.uploaded)

    def step(self) -> None:
        weights = {
            self.submit: 30,
            self.complete: 25,
            self.free: 5,
            self.cut: 17,
            self.catch_up: 20,
            self.upload: 3,
        }
        self.rng.choices(list(weights), list(weights.values()))[0]()

    def quiesce(self) -> None:
        self.complete()
        for _ in range(60):
            self.free()
            self.cut()
            self.complete()
            self.catch_up()
            self.complete()
            self.upload()
        while self.ring or self.catchup.round is not None or self.catchup.needs_round:
            self.free()
            for step in (self.cut, self.complete, self.catch_up, self.complete):
                step()
        # The loops above let the world go on; now it stands still.
        self.rng = _Still()
        for _ in range(200):
            self.complete()
            self.free()
            self.ring_all()
            self.catch_up()

    def ring_all(self) -> None:
        while self.ring:
            self.cut()
        self.cut()

    @property
    def diverged(self) -> bool:
        return self.target != self.disk


class _Still(random.Random):
    """A world in which nothing happens by itself."""

    def random(self) -> float:
        return 1.0

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        if stop is not None:
            return stop - 1
        return 3 if start == 4 and getattr(self, "cutting", True) else 0

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return lambda: None


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_every_ordered_batch_is_a_prefix_and_the_target_ends_equal(seed: int) -> None:
    model = Model(random.Random(seed), CatchUp, 1500)
    assert model.violations == 0
    assert not model.diverged
    assert model.ordered_batches > 0


class WithoutRuleA(CatchUp):
    def _rule_a(self, emitted_to: int) -> bool:
        return True


class WithoutRuleB(CatchUp):
    def _rule_b(self, stands: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.ones(len(stands), np.bool_)


class WithoutRuleC(CatchUp):
    def _rule_c(self, emitted_to: int) -> bool:
        return True


class WithoutRuleD(CatchUp):
    def _rule_d(self, ended: Round, loss: int) -> bool:
        return True


class WithoutOpenWriteCheck(CatchUp):
    def may_read(self, chunk: Chunk, open_from_before: npt.NDArray[np.void]) -> bool:
        return True


class WithoutCarried(CatchUp):
    def records_emitted(self, extents: npt.NDArray[np.void], stands: npt.NDArray[np.int64]) -> None:
        pass


class WithPendingKeptAcrossHarvest(CatchUp):
    def harvest(self, disk: int, marked: npt.NDArray[np.uint64], first_word: int = 0) -> None:
        self._todo[disk] |= marked


@pytest.mark.parametrize(
    "mutant",
    [
        WithoutRuleA,
        WithoutRuleB,
        WithoutRuleC,
        WithoutRuleD,
        WithoutOpenWriteCheck,
        WithoutCarried,
        WithPendingKeptAcrossHarvest,
    ],
)
def test_without_any_one_rule_the_model_shows_a_violation(mutant: type[CatchUp]) -> None:
    for seed in range(400):
        model = Model(random.Random(seed), mutant, 1500)
        if model.violations or model.diverged:
            return
    pytest.fail(f"{mutant.__name__} was not caught: the model does not exercise that rule")
