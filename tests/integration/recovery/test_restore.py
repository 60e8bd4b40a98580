"""Restoring any point from storage and vault alone, with a real log in real blob storage."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shared.batch import SECTOR, StreamState
from shared.errors import (
    IndexDamagedError,
    LogGapError,
    SegmentMissingError,
    SnapshotError,
    WrongKeyError,
)
from shared.keys.vault import FileVault
from shared.log import names
from shared.recovery import materialise as materialise_module
from shared.recovery import point_store
from shared.recovery.catalog import Catalog
from shared.recovery.materialise import Progress, materialise
from shared.recovery.position import Position, format_ns
from shared.recovery.references import resolve
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan, verify
from tests.machine_log import ModelMachine
from tests.restores import check, restore, shown_now, snapshot_now, with_base


async def test_every_ordered_batch_is_a_point_and_restores_exactly(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    for n in range(6):
        machine.write()
        machine.fail_to_read((0, 40 * n, 30), (1, 20 * n, 30))
    await machine.publish(segments=3)
    assert len(machine.ordered) == 6
    for position in machine.ordered:
        folder = tmp_path / str(position)
        check(machine, position, folder, await restore(machine, str(position), folder))


async def test_a_restore_from_snapshots_equals_one_from_the_log_alone(
    machine: ModelMachine, tmp_path: Path
) -> None:
    base = await with_base(machine)
    machine.write(20)
    await machine.publish()

    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, await resolve(catalog, "latest"))
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
    # in mid-interval
    await machine.store.set_metadata(blob, shown_now(machine) | {"cursor": "1-3", "pending": "1-4"})
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
    await with_base(machine)
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


def test_grouping_the_pieces_of_a_fragmented_disk_looks_at_each_once() -> None:
    looks = 0

    class Piece:
        offset_b = 0

        @property
        def length_b(self) -> int:
            nonlocal looks
            looks += 1
            return 4096

    count = 70_000
    groups = list(materialise_module._groups(Piece() for _ in range(count)))  # type: ignore[misc]
    assert [len(group) for group in groups] == [65_536, count - 65_536]
    assert looks == count


@pytest.mark.parametrize("lost", ["segment", "index", "damaged-index"])
async def test_a_point_with_snapshots_restores_without_its_log_and_is_named_as_the_way_out(
    lost: str, machine: ModelMachine, tmp_path: Path
) -> None:
    doc = await with_base(machine)
    index = names.index(1, 1)
    if lost == "segment":
        await machine.store.delete(machine.writer.fold.entries[-1].blob)
    else:
        await machine.store.leases.break_now(index)
        await machine.store.delete(index)
    if lost == "damaged-index":
        await machine.store.append_create(index)
        await machine.store.append(index, b"no line\n", None, 0)
    if lost != "segment":
        with pytest.raises(IndexDamagedError, match=f"--point {doc.id}"):
            await restore(machine, "latest", tmp_path / "latest")
    for reference in (doc.id, "latest-processed"):
        manifest = await restore(machine, reference, tmp_path / reference)
        check(machine, doc.position, tmp_path / reference, manifest)
        assert manifest.time == doc.time
