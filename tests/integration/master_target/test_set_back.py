"""The log was set back to an older copy within an epoch, and went on otherwise; the seed disks and the points were not."""

from __future__ import annotations

from pathlib import Path

import pytest

from master_target.follow import Follower
from master_target.points import PointMaker
from shared.batch import StreamState
from shared.blob import BlobStore
from shared.recovery import listing, point_store
from shared.recovery.catalog import Catalog
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan, verify
from tests.lives import copied
from tests.machine_log import ModelMachine
from tests.master_parts import (
    check_points,
    restore,
    running,
    seed_digests,
    until,
    until_applied,
    until_snapshotted,
)


@pytest.fixture
async def model(store: BlobStore, tmp_path: Path) -> ModelMachine:
    """At 1-6, a point, which is not what its log has there any more."""
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish()
    older, as_it_was = await copied(store), model.as_it_is()
    model.write()
    model.write(mark="old")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    await model.set_back(older, as_it_was)
    return model


@pytest.mark.parametrize("marked", [True, False])
async def test_seed_disks_are_not_gone_on_with_behind_another_batch_of_their_number(
    model: ModelMachine, marked: bool
) -> None:
    model.write()
    model.write(mark="new" if marked else None)
    model.write()
    await model.publish(segments=2)
    async with running(model) as machine:

        def told() -> bool:
            return any("the log was set back" in problem.cause for problem in machine.report().errors)

        await until(machine, told)
        (old,) = await point_store.list_docs(model.store, model.name)
        assert (bool(old.snapshots), old.marks) == ((False, ("new",)) if marked else (True, ("old",)))
        await model.begin_epoch("resynchronised")
        await model.publish()
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()


async def test_snapshots_of_another_history_are_no_base_of_a_restore(
    model: ModelMachine, tmp_path: Path
) -> None:
    model.write()
    model.write()
    same, digests = model.position, model.sha256()
    model.write()
    await model.publish(segments=2)
    catalog = await Catalog.load(model.store, model.name)
    for position, expected in ((same, digests), (model.position, model.sha256())):
        plan = await make_plan(model.store, catalog, position)
        assert plan.base is None
        manifest = await restore(model, catalog, position, tmp_path / str(position))
        assert [disk.sha256 for disk in manifest.disks] == expected


async def test_a_point_of_another_history_is_restored_from_its_snapshots_where_the_log_has_none(
    model: ModelMachine, tmp_path: Path
) -> None:
    """What the log has at its position is not ordered: it must not be replayed as if it were a point."""
    point, digests = Position.of(1, 6), model.digests[Position.of(1, 6)]
    model.write()
    model.write(state=StreamState.RESYNC)
    assert model.position == point
    model.write()
    model.write()
    await model.publish(segments=2)
    catalog = await Catalog.load(model.store, model.name)
    (shown,) = listing.listing(catalog).points
    assert (shown.id, shown.lost) == (str(point), "")
    assert "was set back" in shown.remark
    assert [doc.position for doc in catalog.restorable()] == [point]
    position = await catalog.resolve(str(point))
    await verify(model.store, model.vault, catalog, position)
    manifest = await restore(model, catalog, position, tmp_path / "point")
    assert [disk.sha256 for disk in manifest.disks] == digests
    assert "was set back" in manifest.remarks[0]


async def test_a_mark_of_the_new_history_makes_its_own_point_where_the_old_one_had_one(
    model: ModelMachine, tmp_path: Path
) -> None:
    """The seed disks are begun anew, as by hand after such an event: so they get there, and no other batch is in the way."""
    for name in model.disk_names:
        await model.store.leases.break_now(seed_blob(name))
        await model.store.delete(seed_blob(name))
    model.write()
    point = model.write(mark="new")
    model.write()
    await model.publish(segments=2)
    async with running(model) as machine:
        await until_applied(machine, model.position)
    (doc,) = await check_points(model, tmp_path)
    assert (doc.position, doc.marks, doc.state) == (point, ("new",), "snapshotted")


async def test_a_bookmark_of_another_history_names_nothing_in_this_one(
    store: BlobStore, tmp_path: Path
) -> None:
    """It was documented, and never applied: no disk contradicts the log."""
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish()
    older, as_it_was = await copied(store), model.as_it_is()
    model.write()
    point = model.write(mark="before-upgrade")
    await model.publish()
    follower, maker = Follower(store, model.vault, model.name), PointMaker(store, model.name)
    await maker.take()
    await maker.document(await follower.refresh(1), follower.listed_ns, follower.digest)
    await model.set_back(older, as_it_was)
    model.write()
    model.write()
    model.write()
    await model.publish(segments=2)
    (shown,) = listing.listing(await Catalog.load(store, model.name)).points
    assert (shown.id, shown.marks) == (str(point), ["before-upgrade"])
    assert "was set back" in shown.lost
