"""Running the master target's machinery in a test, and looking at what it did."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from master_target.bridge import BridgeSettings
from master_target.machine import Machine, Settings
from master_target.targets.base import Target
from master_target.targets.image_file import ImageTarget
from master_target.targets.page_blob import PageBlobTarget
from shared.blob import BlobInfo, BlobStore
from shared.recovery import point_store, points
from shared.recovery.catalog import Catalog
from shared.recovery.folder import Manifest
from shared.recovery.materialise import materialise
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from shared.recovery.unreadable import Unreadable
from shared.recovery.verify import make_plan, verify
from tests.machine_log import ModelMachine

SETTINGS = Settings(owner="mt1", poll_s=0.02, bridge=BridgeSettings(behind_s=0, request_b=8192))
_DEADLINE_S = 30.0


def stored_apart(patch: pytest.MonkeyPatch, step_s: float) -> None:
    """By the storage's clock each point is so much older than the next: retention goes by that, and a test has no hours."""

    def stored_ns(info: BlobInfo) -> int:
        position = points.position_of(info.name)
        return 0 if position is None else int((position.epoch * 1000 + position.batch) * step_s * 1e9)

    patch.setattr(point_store, "stored_ns_of", stored_ns)


async def open_page_blob(store: BlobStore, machine: str, disk: str, disk_b: int) -> Target:
    return await PageBlobTarget.open(store, machine, disk, disk_b, take=True)


@contextlib.asynccontextmanager
async def running(
    model: ModelMachine, settings: Settings = SETTINGS, image_dir: Path | None = None
) -> AsyncIterator[Machine]:
    """A master target's work on the model's machine, ended gracefully at the end."""

    async def open_image(_: BlobStore, machine: str, disk: str, disk_b: int) -> Target:
        assert image_dir is not None
        return await ImageTarget.open(image_dir, machine, disk, disk_b)

    opener = open_image if image_dir else open_page_blob
    machine = Machine(model.store, model.vault, model.name, settings, opener)
    stop = asyncio.Event()
    task = asyncio.create_task(machine.run(stop))
    try:
        yield machine
    finally:
        stop.set()
        async with asyncio.timeout(_DEADLINE_S):
            await task


async def until(machine: Machine, condition: Callable[[], bool]) -> None:
    """Until `condition` holds; fails with what the machine reports when that takes too long."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - what other processes do has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still waiting; the machine reports {machine.report()}") from None


async def until_applied(machine: Machine, position: Position) -> None:
    """Until the log up to `position` is applied and the point there, if any, has its snapshots."""

    def there() -> bool:
        report = machine.report()
        return (report.epoch, report.applied) == position and report.state == "following"

    await until(machine, there)


async def until_snapshotted(machine: Machine, model: ModelMachine) -> list[PointDoc]:
    """Until all marks of the model are points with snapshots; the documents."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                docs = await point_store.list_docs(model.store, model.name)
                if [d.position for d in docs if d.state == "snapshotted"] == model.marked:
                    return docs
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"points {docs}; the machine reports {machine.report()}") from None


async def until_ended(process: asyncio.subprocess.Process, expected: int) -> None:
    """Until a child process has ended with this return code; it is killed when that takes too long."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            assert await process.wait() == expected
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def seed_digests(model: ModelMachine, snapshots: dict[str, str] | None = None) -> list[str]:
    """SHA-256 of each seed disk (page blobs), or of its snapshot, over the source disk's size."""
    return [
        hashlib.sha256(
            await model.store.pages.read(
                seed_blob(name), 0, len(disk), snapshots[name] if snapshots else None
            )
        ).hexdigest()
        for name, disk in zip(model.disk_names, model.disks, strict=True)
    ]


async def check_points(model: ModelMachine, folder: Path) -> list[PointDoc]:
    """Every document is a valid point: its snapshots show the model's disks at its position, and it restores to the same. Both say what is
    missing.

    The documents, in log order.
    """
    docs = await point_store.list_docs(model.store, model.name)
    catalog = await Catalog.load(model.store, model.name)
    for doc in docs:
        if doc.state == "snapshotted":
            assert set(doc.snapshots) == set(model.disk_names)
            assert sectors_of(doc.missing) == model.missing[doc.position]
            if doc.target == "page-blob":
                assert await seed_digests(model, doc.snapshots) == model.digests[doc.position]
        await verify(model.store, model.vault, catalog, doc.position)
        manifest = await restore(model, catalog, doc.position, folder / doc.id)
        assert [disk.sha256 for disk in manifest.disks] == model.digests[doc.position]
        assert sectors_of(manifest.missing) == model.missing[doc.position]
    return docs


def sectors_of(missing: Unreadable) -> set[tuple[int, int]]:
    assert not missing.covers
    return {(disk, first + i) for disk, first, sectors in missing.ranges for i in range(sectors)}


async def restore(model: ModelMachine, catalog: Catalog, position: Position, folder: Path) -> Manifest:
    return await materialise(
        model.store, model.vault, await make_plan(model.store, catalog, position), folder
    )
