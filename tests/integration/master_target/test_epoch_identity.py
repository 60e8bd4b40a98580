"""An epoch's number comes back with another claim while seed disks, snapshots, points and a running master target remember the old one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shared.errors import (
    NoPointsError,
    OtherEpochSegmentError,
    PointNotFoundError,
    RestoreFolderError,
    SnapshotError,
)
from shared.recovery import listing, point_store, points
from shared.recovery.alone import check_snapshots
from shared.recovery.catalog import Catalog
from shared.recovery.materialise import materialise
from shared.recovery.position import Position
from shared.recovery.references import resolve
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan
from tests.lives import forget_log
from tests.machine_log import ModelMachine
from tests.master_parts import (
    SETTINGS,
    check_points,
    restore,
    running,
    seed_digests,
    until,
    until_applied,
    until_snapshotted,
)


async def long_life(model: ModelMachine) -> None:
    """Twelve batches of epoch 1, two of them marked."""
    await model.begin_epoch()
    for i in range(9):
        model.write(mark=f"m{i}" if i in (3, 8) else None)
    await model.publish()


async def short_life(model: ModelMachine) -> None:
    """Six batches of another epoch 1: fewer than the first had, with marks elsewhere."""
    await model.begin_epoch(above=0)
    for i in range(3):
        model.write(mark=f"n{i}" if i == 1 else None)
    await model.publish()


async def test_seed_disks_skip_no_batch_of_another_life(model: ModelMachine, tmp_path: Path) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    old = {doc.id: doc for doc in await point_store.list_docs(model.store, model.name)}
    await model.lose_log()
    await short_life(model)
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    assert [doc.claim for doc in docs] == [model.id.claim]
    await check_points(model, tmp_path / "restored")
    # What is left of the old life stays for a person to judge.
    for doc in old.values():
        stored = await point_store.read(model.store, doc.position)
        assert stored is not None
        assert stored.doc == doc
        for disk, snapshot in doc.snapshots.items():
            await model.store.properties(seed_blob(disk), snapshot)


@pytest.mark.parametrize("begun", [True, False], ids=["in mid-interval", "clean"])
async def test_an_interval_that_was_begun_in_another_life_binds_nobody(
    model: ModelMachine, begun: bool
) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_applied(machine, model.position)
    if begun:
        for name in model.disk_names:
            blob = seed_blob(name)
            metadata = dict((await model.store.properties(blob)).metadata)
            await model.store.set_metadata(blob, metadata | {"pending": "1-99"})
    await model.lose_log()
    await short_life(model)
    async with running(model) as machine:
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()


@pytest.mark.parametrize("listed", [True, False], ids=["after batches", "before any batch"])
async def test_a_master_target_that_runs_takes_up_the_other_life(model: ModelMachine, listed: bool) -> None:
    if listed:
        await long_life(model)
    else:
        await model.begin_epoch()
    async with running(model) as machine:
        if listed:
            await until_applied(machine, model.position)
        else:
            await until(machine, lambda: machine.report().state == "following")
        await model.lose_log()
        await short_life(model)
        docs = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
        assert [doc.claim for doc in docs] == [model.id.claim]
    assert await seed_digests(model) == model.sha256()


async def test_a_state_without_claims_is_begun_anew(model: ModelMachine) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_applied(machine, model.position)
    for name in model.disk_names:
        blob = seed_blob(name)
        metadata = dict((await model.store.properties(blob)).metadata)
        del metadata["cursor_claim"], metadata["pending_claim"]
        await model.store.set_metadata(blob, metadata)
        await model.store.pages.clear(blob, 0, 4096)
    async with running(model, msgspec.structs.replace(SETTINGS, interval_b=1)) as machine:
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()


async def test_points_of_another_life_are_listed_with_the_reason_and_never_restored(
    model: ModelMachine, tmp_path: Path
) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    lost, last = (doc.position for doc in await point_store.list_docs(model.store, model.name))
    old = model.id
    await model.lose_log()
    await model.begin_epoch(above=0)
    same = [model.write() for _ in range(9)][-1]
    await model.publish()
    assert same == last
    catalog = await Catalog.load(model.store, model.name)
    shown = listing.listing(catalog).points
    assert [point.id for point in shown if not point.lost] == []
    assert [point.id for point in shown if point.lost] == [str(lost), str(last)]
    assert all(f"it was of epoch {old}" in point.lost for point in shown)
    # The position is the new life's; nothing of the old one's snapshots gets into it.
    plan = await make_plan(model.store, catalog, last)
    assert (plan.base, plan.point, plan.epoch) == (None, None, model.id)
    manifest = await restore(model, catalog, last, tmp_path / "out")
    assert [disk.sha256 for disk in manifest.disks] == model.digests[last]
    with pytest.raises(NoPointsError, match="no processed recovery point"):
        await resolve(catalog, "latest-processed")


async def test_a_logged_point_of_an_epoch_that_is_gone_says_so(model: ModelMachine) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    first = model.marked[0]
    name = points.blob_name(first)
    document = await model.store.read(name)
    logged = msgspec.structs.replace(points.decode(document, name), state="logged", snapshots={})
    await model.store.replace(name, msgspec.json.encode(logged))
    await model.begin_epoch("again")
    model.write()
    await model.publish()
    await forget_log(model.store, 1)
    catalog = await Catalog.load(model.store, model.name)
    with pytest.raises(PointNotFoundError, match="its log is gone: storage has no epoch 1"):
        await resolve(catalog, str(first))


async def test_a_snapshot_of_another_life_is_no_base_although_its_position_fits(model: ModelMachine) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    docs = await point_store.list_docs(model.store, model.name)
    await model.lose_log()
    await model.begin_epoch(above=0)
    for _ in range(9):
        model.write()
    await model.publish()
    catalog = await Catalog.load(model.store, model.name)
    lying = msgspec.structs.replace(docs[0], claim=model.id.claim)
    with pytest.raises(SnapshotError, match="of claim"):
        await check_snapshots(model.store, catalog.epochs[0].disks, lying)


async def test_a_segment_of_another_life_is_refused_by_restore(model: ModelMachine, tmp_path: Path) -> None:
    """The document of epoch 1 was restored from another copy than its log."""
    await long_life(model)
    catalog = await Catalog.load(model.store, model.name)
    plan = await make_plan(model.store, catalog, model.marked[-1])
    other = msgspec.structs.replace(plan, epoch=plan.epoch._replace(claim="f" * 16))
    with pytest.raises(OtherEpochSegmentError, match="not 1 \\(ffff"):
        await materialise(model.store, model.vault, other, tmp_path / "out")
    with pytest.raises(OtherEpochSegmentError):
        await catalog.reader.batches(other.epoch, plan.replay[0].entry, model.vault)


async def test_an_unfinished_restore_is_not_gone_on_with_from_another_life(
    model: ModelMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await long_life(model)
    catalog = await Catalog.load(model.store, model.name)

    class PowerCutError(Exception):
        pass

    def cut(name: str) -> None:
        if name == "restore.before-manifest":
            raise PowerCutError

    monkeypatch.setattr("shared.recovery.materialise.reach", cut)
    with pytest.raises(PowerCutError):
        await restore(model, catalog, Position.of(1, 6), tmp_path / "out")
    await model.lose_log()
    await model.begin_epoch(above=0)
    for _ in range(9):
        model.write()
    await model.publish()
    with pytest.raises(RestoreFolderError, match="an unfinished restore of another log"):
        await restore(model, await Catalog.load(model.store, model.name), Position.of(1, 6), tmp_path / "out")


async def test_the_roll_says_whose_points_it_names(model: ModelMachine) -> None:
    await long_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    first = model.id
    roll = points.decode_roll(await model.store.read(points.ROLL), "roll")
    assert roll.claims == {1: first.claim}
    await model.lose_log()
    await short_life(model)
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    roll = points.decode_roll(await model.store.read(points.ROLL), "roll")
    assert roll.claims == {1: model.id.claim}
    assert roll.positions == tuple(model.marked)
