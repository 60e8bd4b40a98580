"""A machine that never was: random writes to small disks, its log in real blob storage, and what each point must restore to.

`ModelMachine` keeps the disks as byte arrays, makes the batches that an agent would send for what is done to them, writes real
segments and index entries, and remembers the disks' content after every batch.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from shared import batch as batches
from shared.batch import (
    NO_DIGEST,
    SECTOR,
    Batch,
    BatchMeta,
    BatchNumber,
    Epoch,
    Mark,
    Op,
    Seq,
    StreamState,
    make_extents,
)
from shared.blob import BlobStore
from shared.keys.sealing import MachineKey
from shared.keys.vault import FileVault, machine_key
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochDisk, allocate_epoch
from shared.log.writer import IndexWriter
from shared.recovery.position import Position
from tests.lives import forget_log, set_back
from tests.logs import Made, put_segment

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS
"""When the first batch is captured; each further batch one second later."""
SIZES_B = (256 * 1024, 96 * 1024 + 512)


class ModelMachine:
    def __init__(
        self,
        store: BlobStore,
        vault: FileVault,
        key: MachineKey,
        name: str = "web1",
        sizes_b: Sequence[int] = SIZES_B,
        seed: int = 0,
    ) -> None:
        self.store = store
        self.vault = vault
        self.key = key
        self.name = name
        self.rng = random.Random(seed)
        self.disks = [bytearray(size_b) for size_b in sizes_b]
        self.position = Position.of(0, 0)
        self.captured_ns = START_NS
        self.digests: dict[Position, list[str]] = {}
        """Position → SHA-256 of each disk after it."""
        self.missing: dict[Position, frozenset[tuple[int, int]]] = {}
        """Position → (disk number, sector) of each that was named as unreadable, and not written since."""
        self._missing: set[tuple[int, int]] = set()
        self.ordered: list[Position] = []
        self.marked: list[Position] = []
        self._pending: list[Made] = []
        self._last_digest = NO_DIGEST
        self._writer: IndexWriter | None = None

    @classmethod
    async def create(
        cls,
        store: BlobStore,
        folder: Path,
        name: str = "web1",
        seed: int = 0,
        sizes_b: Sequence[int] = SIZES_B,
    ) -> ModelMachine:
        path = folder / "vault.json"
        vault = FileVault(path) if path.exists() else FileVault.create(path)
        key = await machine_key(store, vault, name, create=True)
        return cls(store, vault, key, name, sizes_b, seed)

    @property
    def id(self) -> EpochId:
        """Of the current epoch."""
        assert self._writer is not None
        return self._writer.id

    @property
    def disk_names(self) -> list[str]:
        return [f"loop{n}" for n in range(len(self.disks))]

    @property
    def writer(self) -> IndexWriter:
        """Of the current epoch's index."""
        assert self._writer is not None
        return self._writer

    def sha256(self) -> list[str]:
        return [hashlib.sha256(disk).hexdigest() for disk in self.disks]

    async def begin_epoch(
        self,
        reason: str = "first replication",
        *,
        batches: int = 3,
        suspect_since_ns: int = 0,
        suspect_after: Position | None = None,
        above: int | None = None,
    ) -> None:
        """A new epoch, and its full replication, in that many batches. Its number follows `above`; None: the newest in storage."""
        if self._writer is not None:
            await self.publish()
        info = await allocate_epoch(
            self.store,
            self.name,
            disks=[
                EpochDisk(n, name, f"serial-{n}", len(disk) // SECTOR)
                for n, (name, disk) in enumerate(zip(self.disk_names, self.disks, strict=True))
            ],
            reason=reason,
            agent_id="test",
            suspect_since_ns=suspect_since_ns,
            suspect_after=suspect_after,
            above=above,
        )
        self.position = Position.of(info.epoch, 0)
        self._last_digest = NO_DIGEST
        self._missing = set()
        self._writer = await IndexWriter.take(self.store, self.name, info.id, "ps1")
        rows = []
        for number, disk in enumerate(self.disks):
            for at in range(0, len(disk), 32 * SECTOR):
                piece = disk[at : at + 32 * SECTOR]
                op = Op.SYNC if any(piece) else Op.SYNC_ZERO
                rows.append((number, at // SECTOR, len(piece) // SECTOR, op))
        step = -(-len(rows) // batches)
        for at in range(0, len(rows), step):
            self._add(rows[at : at + step], StreamState.INITIAL_REPLICATION, (), "first replication")

    def write(
        self, count: int = 5, *, mark: str | None = None, state: StreamState = StreamState.ORDERED
    ) -> Position:
        """One batch of `count` random writes and clears; with `mark` a recovery point is asked for behind it."""
        rows = []
        for _ in range(count):
            disk = self.rng.randrange(len(self.disks))
            sectors = len(self.disks[disk]) // SECTOR
            first = self.rng.randrange(sectors)
            length = min(self.rng.choice([1, 2, 8, 24]), sectors - first)
            rows.append((disk, first, length, Op.ZERO if self.rng.random() < 0.2 else Op.WRITE))
        payload = bytearray()  # where writes of a batch overlap, each has its own data: the order must decide
        for disk, first, length, op in rows:
            data = self.rng.randbytes(length * SECTOR) if op == Op.WRITE else bytes(length * SECTOR)
            self.disks[disk][first * SECTOR : (first + length) * SECTOR] = data
            if op == Op.WRITE:
                payload += data
        marks = () if mark is None else (Mark(mark),)
        self._add(rows, state, marks, "" if state == StreamState.ORDERED else "ring full", bytes(payload))
        return self.position

    def fail_to_read(self, *ranges: tuple[int, int, int]) -> None:
        """One batch that names them."""
        self._add([], StreamState.CATCHING_UP, (), "ring full", unreadable=ranges)

    def _add(
        self,
        rows: list[tuple[int, int, int, Op]],
        state: StreamState,
        marks: tuple[Mark, ...],
        cause: str,
        payload: bytes | None = None,
        unreadable: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        """One batch; without `payload` it carries what the disks hold now."""
        self.position = Position.of(self.position.epoch, self.position.batch + 1)
        self.captured_ns += SECOND_NS
        if payload is None:
            payload = b"".join(
                self.disks[disk][first * SECTOR : (first + length) * SECTOR]
                for disk, first, length, op in rows
                if op in (Op.WRITE, Op.SYNC)
            )
        batch = Batch(
            epoch=Epoch(self.position.epoch),
            number=BatchNumber(self.position.batch),
            end_seq=Seq(self.position.batch * 10),
            captured_ns=self.captured_ns,
            state=state,
            predecessor=self._last_digest,
            extents=make_extents(rows),
            payload=payload,
            meta=BatchMeta(marks=marks, cause=cause, unreadable=unreadable),
        )
        buffers, self._last_digest = batches.encode(batch)
        self._pending.append(Made(b"".join(bytes(b) for b in buffers), batch, self._last_digest))
        self.digests[self.position] = self.sha256()
        self._missing -= {(disk, first + i) for disk, first, length, _ in rows for i in range(length)}
        self._missing |= {(disk, first + i) for disk, first, length in unreadable for i in range(length)}
        self.missing[self.position] = frozenset(self._missing)
        if state == StreamState.ORDERED:
            self.ordered.append(self.position)
            if marks:
                self.marked.append(self.position)

    async def lose_log(self) -> None:
        """Storage forgets the current epoch's log; what stands beside it stays. Another life may begin, with another content."""
        await forget_log(self.store, self.position.epoch)
        self._writer, self._pending, self.marked = None, [], []
        for disk in self.disks:
            disk[:] = self.rng.randbytes(len(disk))

    async def set_back(self, older: dict[str, tuple[bytes, dict[str, str]]], as_it_was: ModelMachine) -> None:
        """Storage has an older copy of the log again, and the machine goes on from there otherwise. `as_it_was` is what this was then."""
        epoch = self.id
        await set_back(self.store, older)
        for disk, then in zip(self.disks, as_it_was.disks, strict=True):
            disk[:] = then
        self.position, self._last_digest = as_it_was.position, as_it_was._last_digest
        self.marked, self._pending = [*as_it_was.marked], []
        self._missing = {*as_it_was._missing}
        self._writer = await IndexWriter.take(self.store, self.name, epoch, "ps2")

    def as_it_is(self) -> ModelMachine:
        """For `set_back`."""
        now = copy.copy(self)
        now.disks, now.marked = [bytearray(disk) for disk in self.disks], [*self.marked]
        now._missing = {*self._missing}
        return now

    async def publish(self, *, segments: int = 1) -> None:
        """Upload what was made since the last time, in that many segments, and list it."""
        size = -(-len(self._pending) // segments) or 1
        for at in range(0, len(self._pending), size):
            made = self._pending[at : at + size]
            entry = await put_segment(
                self.store,
                made,
                term=self.writer.term,
                key=self.key,
                machine=self.name,
                claim=self.writer.id.claim,
            )
            await self.writer.append([entry])
        self._pending = []
