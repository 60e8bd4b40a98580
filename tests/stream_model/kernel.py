"""Ring, bitmaps, open writes and disks: the kernel of the model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from agent.capture.layout import DATA_B, FLAG_LAST, OPEN_WRITE, RECORD, RECORD_SIZE
from agent.capture.ring import Window
from agent.stream.bios import PIECE_SECTORS
from shared.batch import Op
from tests.stream_model.bad_sectors import BadSectors

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
Missing = npt.NDArray[np.bool_]
"""(DISKS, SECTORS): which sectors of an image were named unreadable, and not sent since."""


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

    def __init__(self, rng: random.Random, bad_sectors: int = 0, words: int = 1) -> None:
        """`bad_sectors`: most that cannot be read at once. `words`: room to name them (`Capture.unreadable`)."""
        self.rng = rng
        self.bad = BadSectors(rng, bad_sectors, DISKS, SECTORS)
        self.image: Image = np.zeros((DISKS, SECTORS), np.uint32)
        self.states: list[list[Image]] = [[self._half(cpu)] for cpu in range(2)]
        """Per writer: its half of the disks after each of its writes."""
        self.needs: list[list[int]] = [[0], [0]]
        """Per writer and write: how many of the other's writes had completed when it was issued."""
        self.completed = [0, 0]
        self.bios: dict[int, Bio] = {}
        self.stopped = self.quiet = False
        """Nothing is written: for good, or for a while, in which order comes and trials are made."""
        self.loss = 0
        self.active = 0
        self.bitmaps = np.zeros((2, DISKS, WORDS), np.uint64)
        self.todo = np.zeros((DISKS, WORDS), np.uint64)
        self.words = np.zeros(96 + REMEMBERED, np.uint64)
        self.unreadable = np.zeros(1 + words, np.uint64)
        self.headers = np.zeros(RECORDS, RECORD)
        self.data = np.zeros((RECORDS, DATA_B), np.uint8)
        self.busy: set[int] = set()
        self.discarded: set[int] = set()
        self.producer_seq = self.consumer_seq = self.cursor = 0
        self.disks = [SimpleNamespace(path=f"disk {i}") for i in range(DISKS)]

    def _half(self, cpu: int) -> Image:
        return self.image[:, cpu * HALF : (cpu + 1) * HALF].copy()

    # -- what happens by itself

    def happen(self) -> None:
        """What may happen between any two looks of the agent."""
        for _ in range(self.rng.randrange(5)):
            self.step(self.rng.randrange(2))
        self.bad.happen()

    def step(self, cpu: int) -> None:
        bio = self.bios.get(cpu)
        if bio is None:
            if not (self.stopped or self.quiet):
                self.bios[cpu] = self._submit(cpu)
        elif bio.running:
            bio.running = next(bio.program, "ended") != "ended"
        elif bio.left:
            sector = bio.left.pop(self.rng.randrange(len(bio.left)))
            self.image[bio.disk, sector] = bio.value
            self.bad.written((bio.disk, sector))
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

    def is_possible(self, image: Image, missing: Missing, at_least: tuple[int, int]) -> bool:
        """Whether the image is that after some k writes of each writer, at least so many, and none without what it was issued after. Of
        what is missing it tells nothing."""
        halves = [np.s_[:, cpu * HALF : (cpu + 1) * HALF] for cpu in range(2)]
        ks = [
            [k for k, s in enumerate(self.states[cpu]) if ((s == image[half]) | missing[half]).all()]
            for cpu, half in enumerate(halves)
        ]
        return any(
            self.needs[0][a] <= b and self.needs[1][b] <= a and a >= at_least[0] and b >= at_least[1]
            for a in ks[0]
            for b in ks[1]
        )
