"""Restoring any point from storage and vault alone, with a real log in real blob storage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from shared.batch import SECTOR, StreamState
from shared.blob import BlobStore
from shared.errors import (
    LogGapError,
    RestoreFolderError,
    SegmentMissingError,
    SnapshotError,
    WrongKeyError,
)
from shared.recovery import materialise as materialise_module
from shared.recovery import point_store
from shared.recovery.catalog import Catalog
from shared.recovery.folder import JOURNAL, MANIFEST, Manifest, open_folder
from shared.recovery.materialise import Progress, materialise
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position, format_ns
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan, verify
from shared.vault import FileVault
from tests.machine_log import ModelMachine

MIB = 1024 * 1024


class Interrupted(Exception):
    pass


async def restore(
    machine: ModelMachine, reference: str, to_dir: Path, vault: FileVault | None = None
) -> Manifest:
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, await catalog.resolve(reference))
    return await materialise(machine.store, vault or machine.vault, plan, to_dir)


async def snapshot_now(machine: ModelMachine) -> PointDoc:
    """The point at the machine's last batch, snapshotted: seed disks as a master target would leave them."""
    snapshots = {}
    for name, disk in zip(machine.disk_names, machine.disks, strict=True):
        blob = seed_blob(name)
        await machine.store.delete(blob)
        await machine.store.pages.create(blob, -(-len(disk) // MIB) * MIB + 512)
        step_b = 4096 if len(disk) < MIB else MIB
        for at in range(0, len(disk), step_b):
            piece = bytes(disk[at : at + step_b])
            if any(piece):
                await machine.store.pages.write(blob, at, piece)
        await machine.store.set_metadata(
            blob, {"cursor": str(machine.position), "pending": str(machine.position)}
        )
        snapshots[name] = await machine.store.snapshot(blob)
    logged = logged_point(machine.name, machine.position, machine.captured_ns, "crash", ["p"])
    doc = PointDoc(
        **{f: getattr(logged, f) for f in logged.__struct_fields__}
        | {"state": "snapshotted", "target": "page-blob", "snapshots": snapshots}
    )
    await point_store.write_new(machine.store, doc)
    return doc


def check(machine: ModelMachine, position: Position, folder: Path, manifest: Manifest) -> None:
    assert Position.of(manifest.epoch, manifest.batch) == position
    for name, disk, digest, entry in zip(
        machine.disk_names, machine.disks, machine.digests[position], manifest.disks, strict=True
    ):
        data = (folder / f"{name}.raw").read_bytes()
        assert len(data) == len(disk) == entry.size_b
        assert hashlib.sha256(data).hexdigest() == digest == entry.sha256
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [MANIFEST, *(f"{name}.raw" for name in machine.disk_names)]
    )


@pytest.fixture
async def machine(store: BlobStore, tmp_path: Path) -> ModelMachine:
    return await ModelMachine.create(store, tmp_path)


async def test_every_ordered_batch_is_a_point_and_restores_exactly(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    for _ in range(6):
        machine.write()
    await machine.publish(segments=3)
    assert len(machine.ordered) == 6
    for position in machine.ordered:
        folder = tmp_path / str(position)
        check(machine, position, folder, await restore(machine, str(position), folder))


async def test_a_restore_from_snapshots_equals_one_from_the_log_alone(
    machine: ModelMachine, tmp_path: Path
) -> None:
    machine.disks[0][:] = machine.rng.randbytes(len(machine.disks[0]))
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    base = await snapshot_now(machine)
    machine.write(20)
    await machine.publish()

    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, await catalog.resolve("latest"))
    assert plan.base == base
    assert [(s.first, s.last) for s in plan.replay] == [(5, 5)]
    check(machine, machine.position, tmp_path / "a", await restore(machine, "latest", tmp_path / "a"))
    check(machine, base.position, tmp_path / "b", await restore(machine, "latest-processed", tmp_path / "b"))
    await point_store.delete(machine.store, base.position)
    check(machine, machine.position, tmp_path / "c", await restore(machine, "latest", tmp_path / "c"))


async def test_a_base_whose_snapshot_is_gone_or_of_another_position_is_not_used(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    doc = await snapshot_now(machine)
    blob = seed_blob("loop1")
    await machine.store.set_metadata(blob, {"cursor": "1-3", "pending": "1-4"})  # in mid-interval
    torn = await machine.store.snapshot(blob)
    for bad in (torn, "2020-01-01T00:00:00.0000000Z"):
        stored = await point_store.read(machine.store, doc.position)
        assert stored is not None
        changed = msgspec.structs.replace(doc, snapshots=doc.snapshots | {"loop1": bad})
        await point_store.change(machine.store, changed, stored.etag)
        catalog = await Catalog.load(machine.store, machine.name)
        plan = await make_plan(machine.store, catalog, machine.position)
        assert plan.base is None
        with pytest.raises(SnapshotError, match="loop1"):
            await verify(machine.store, machine.vault, catalog, machine.position)
    check(machine, machine.position, tmp_path / "a", await restore(machine, "latest", tmp_path / "a"))


async def test_points_of_both_epochs_restore_after_an_epoch_change(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    first = machine.write(mark="p")
    await machine.publish()
    await snapshot_now(machine)
    machine.disks[0][:4096] = b"x" * 4096  # written while nobody looked
    await machine.begin_epoch("the ring was lost")
    second = machine.write()
    await machine.publish()
    for position in (first, second):
        folder = tmp_path / str(position)
        check(machine, position, folder, await restore(machine, str(position), folder))


async def test_images_are_sparse(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    machine.disks[0][:SECTOR] = b"x" * SECTOR
    await machine.begin_epoch("again")
    machine.write(0)
    await machine.publish()
    await restore(machine, "latest", tmp_path / "out")
    for name, disk in zip(machine.disk_names, machine.disks, strict=True):
        assert (tmp_path / "out" / f"{name}.raw").stat().st_blocks * 512 <= len(disk) // 4


async def test_progress_reaches_its_totals_stage_by_stage(machine: ModelMachine, tmp_path: Path) -> None:
    machine.disks[0][:] = machine.rng.randbytes(len(machine.disks[0]))
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    await snapshot_now(machine)
    machine.write()
    await machine.publish()
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, machine.position)
    seen: list[Progress] = []
    await materialise(machine.store, machine.vault, plan, tmp_path / "out", seen.append)
    assert list(dict.fromkeys(p.stage for p in seen)) == ["base", "log", "check"]
    for stage in ("base", "log", "check"):
        reports = [p for p in seen if p.stage == stage]
        assert reports[-1].done_b == reports[-1].total_b > 0
        assert sorted(p.done_b for p in reports) == [p.done_b for p in reports]


async def test_a_folder_with_anything_else_in_it_is_refused(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    first = machine.write()
    machine.write()
    await machine.publish()
    out = tmp_path / "out"
    await restore(machine, "latest", out)
    with pytest.raises(RestoreFolderError, match="the finished restore of web1 at 1-5"):
        await restore(machine, "latest", out)

    out = tmp_path / "other"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(RestoreFolderError, match="not empty"):
        await restore(machine, "latest", out)
    assert [p.name for p in out.iterdir()] == ["letter.txt"]
    with pytest.raises(RestoreFolderError, match="not a folder"):
        await restore(machine, "latest", out / "letter.txt")

    out = tmp_path / "unfinished"
    catalog = await Catalog.load(machine.store, machine.name)
    with open_folder(out, await make_plan(machine.store, catalog, machine.position)):
        pass  # as when it is cut off here
    assert [p.name for p in out.iterdir() if p.suffix == ".json"] == [JOURNAL]
    with pytest.raises(RestoreFolderError, match=r"unfinished restore of web1 at 1-5.*--point 1-5"):
        await restore(machine, str(first), out)
    check(machine, machine.position, out, await restore(machine, "latest", out))


async def test_what_is_missing_in_the_log_is_named(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    await machine.publish()
    machine.write()
    await machine.publish()
    catalog = await Catalog.load(machine.store, machine.name)
    found = await verify(machine.store, machine.vault, catalog, machine.position)
    assert (found.id, found.base, found.segments, found.batches) == ("1-4", None, 2, 4)
    await machine.store.delete(catalog.history[-1][1].blob)
    with pytest.raises(SegmentMissingError):
        await verify(machine.store, machine.vault, catalog, machine.position)
    with pytest.raises(LogGapError):
        await make_plan(machine.store, catalog, Position.of(1, 9))


async def test_an_unordered_machine_restores_to_the_last_ordered_point(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    good = machine.write()
    machine.write(state=StreamState.BITMAP)
    await machine.publish()
    await machine.begin_epoch("agent restarted")
    await machine.publish()
    manifest = await restore(machine, "latest", tmp_path / "out")
    check(machine, good, tmp_path / "out", manifest)
    assert manifest.time == format_ns(machine.captured_ns - 4 * 1_000_000_000)


async def test_the_wrong_vault_is_found_before_anything_is_downloaded(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    await snapshot_now(machine)
    machine.write()
    await machine.publish()
    out = tmp_path / "restored"
    with pytest.raises(WrongKeyError):
        await restore(machine, "latest", out, FileVault.create(tmp_path / "other.json"))
    assert not out.exists()


async def test_a_base_in_several_reads_and_groups_is_whole_however_often_its_restore_was_interrupted(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads are cut at 4 MiB, and the journal is written after a group of them."""
    machine = await ModelMachine.create(store, tmp_path, sizes_b=(21 * MIB + 512, 9 * MIB))
    for disk in machine.disks:
        for at in range(0, len(disk) - 2 * MIB, 5 * MIB):  # with holes of 3 MiB
            disk[at : at + 2 * MIB] = machine.rng.randbytes(2 * MIB)
    machine.disks[0][5 * MIB : 15 * MIB] = machine.rng.randbytes(10 * MIB)
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    await snapshot_now(machine)
    machine.write(20)
    await machine.publish()
    monkeypatch.setattr(materialise_module, "_JOURNAL_B", 5 * MIB)
    groups = 0

    def interrupted(point: str) -> None:
        nonlocal groups
        if point == "restore.after-base-group":
            groups += 1
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(materialise_module, "reach", interrupted)
        while True:
            try:
                manifest = await restore(machine, "latest", tmp_path / "a")
            except Interrupted:
                continue
            break
    assert groups == 3  # two of the first disk, one of the second
    check(machine, machine.position, tmp_path / "a", manifest)
