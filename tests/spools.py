"""A process server's spool for tests, on real storage and a real folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from process_server.spool.ownership import Patience
from process_server.spool.spool import LogSettings, MachineLog, SegmentLimits, Spool
from shared.batch import Batch
from shared.blob import BlobStore, Content
from shared.errors import IndexMissingError
from shared.keys.vault import FileVault
from shared.log.reader import LogReader
from shared.machine.storage import MachineStorage
from shared.wire.messages import DiskInfo, Hello
from tests.azurite import in_one
from tests.epoch_ids import eid, id_in
from tests.logs import Made

MACHINE = "m1"
DISKS = (DiskInfo(number=0, name="sda", serial="s0", sectors=1 << 20),)


def hello(epoch: int, reason: str = "test") -> Hello:
    return Hello(machine=MACHINE, epoch=epoch, reason=reason, disks=DISKS)


async def hello_again(store: BlobStore, epoch: int) -> Hello:
    """To go on with the epoch that bears this number in storage."""
    if not epoch:
        return hello(0)
    try:
        claim = (await id_in(store, epoch)).claim
    except IndexMissingError:
        claim = eid(epoch).claim
    return Hello(machine=MACHINE, epoch=epoch, claim=claim, reason="test", disks=DISKS)


def vault_at(folder: Path) -> FileVault:
    path = folder / "vault.json"
    return FileVault(path) if path.exists() else FileVault.create(path)


def make_spool(
    folder: Path,
    store: BlobStore | MachineStorage,
    *,
    owner: str = "ps1",
    size_b: int = 1 << 20,
    age_s: float = 3600.0,
    check_seconds: float = 3600.0,
    max_blocks: int = 1000,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
) -> Spool:
    """Not started. `store`: the one container of whichever machine, or all machines'. Files are closed at `size_b`, or when asked for.
    The vault is shared by all spools beside `folder`.
    """
    settings = LogSettings(
        owner=owner,
        limits=SegmentLimits(size_b, age_s),
        check_seconds=check_seconds,
        max_blocks=max_blocks,
        patience=patience,
    )
    storage = store if isinstance(store, MachineStorage) else in_one(store)
    return Spool(folder, storage, vault_at(folder.parent), settings)


async def append_all(log: MachineLog, made: Iterable[Made]) -> None:
    """One after the other: each is durable before the next is appended."""
    for m in made:
        await log.append(m.encoded, m.batch, m.digest)


async def read_log(store: BlobStore, folder: Path, epoch: int = 1) -> list[Batch]:
    """Every batch that counts, in order, opened with the vault beside `folder`."""
    reader = LogReader(store, MACHINE)
    id_ = await id_in(store, epoch)
    entries = await reader.entries(id_)
    if not entries:
        return []
    vault = vault_at(folder.parent)
    return [batch for entry in entries for batch in await reader.batches(id_, entry, vault)]


def same_batches(found: list[Batch], made: list[Made]) -> bool:
    """Whether exactly these batches were found, in order, each with its content."""
    return [b.number for b in found] == [m.batch.number for m in made] and all(
        (bytes(b.payload), b.predecessor, b.end_seq)
        == (bytes(m.batch.payload), m.batch.predecessor, m.batch.end_seq)
        for b, m in zip(found, made, strict=True)
    )


T = TypeVar("T")


@asynccontextmanager
async def started(spool: Spool) -> AsyncIterator[MachineLog]:
    """The machine's log, which no agent has begun yet; the spool is closed at the end."""
    await spool.start()
    try:
        yield await spool.open_machine(hello(0))
    finally:
        await spool.close()


@asynccontextmanager
async def opened(spool: Spool, epoch: int = 0) -> AsyncIterator[MachineLog]:
    """The machine's log, begun; the spool is closed at the end."""
    async with started(spool) as log:
        store = await spool._resources.storage.find_or_create(MACHINE)
        await log.begin(await hello_again(store, epoch))
        yield log


async def left_behind(folder: Path, store: BlobStore, made: Iterable[Made]) -> None:
    """A process server took these batches of a new epoch, and stopped before any was uploaded."""
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, made)


def spool_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.seg"))


def epoch_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "m1").iterdir())


async def until(log: MachineLog, condition: Callable[[], bool]) -> None:
    """Waits for it; it is looked at whenever the log says that something has changed."""
    changed = asyncio.Event()
    log.on_change = changed.set
    async with asyncio.timeout(20):
        while not condition():
            changed.clear()
            await changed.wait()


def uploaded(log: MachineLog) -> int:
    return log.last_indexed.number if log.last_indexed is not None else 0


class Gated(BlobStore):
    """Storage that takes segments only while its gate is open."""

    gate: asyncio.Event

    async def create_from(self, name: str, content: Callable[[], Awaitable[Content]], size_b: int) -> str:
        if name.endswith(".seg"):
            await self.gate.wait()
        return await super().create_from(name, content, size_b)
