"""The log was set back to an older copy within an epoch, and went on otherwise; the seed disks and the points were not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from master_target.apply import DiskTarget
from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.retention import Pruner, RetentionPolicy
from master_target.targets.base import Target
from master_target.targets.state import DiskState
from master_target.unreadable import NOTHING
from shared.batch import SECTOR, StreamState
from shared.blob import BlobStore
from shared.errors import LeaseLostError, SnapshotError
from shared.log.epoch_id import EpochId
from shared.recovery import listing, point_store, points
from shared.recovery.catalog import Catalog
from shared.recovery.position import Position
from shared.recovery.references import resolve
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan, verify
from tests.lives import copied, set_back
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

Log = dict[str, tuple[bytes, dict[str, str]]]


async def begun(store: BlobStore, tmp_path: Path) -> ModelMachine:
    """At 1-4, ordered."""
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish()
    return model


@pytest.fixture
def old_log() -> Log:
    """The log of the old history, once there is a model."""
    return {}


@pytest.fixture
async def model(store: BlobStore, tmp_path: Path, old_log: Log) -> ModelMachine:
    """At 1-6, a point, which is not what its log has there any more."""
    model = await begun(store, tmp_path)
    older, as_it_was = await copied(store), model.as_it_is()
    model.write()
    model.write(mark="old")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    old_log.update(await copied(store))
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


async def check_restores(model: ModelMachine, positions: Sequence[Position], folder: Path) -> None:
    catalog = await Catalog.load(model.store, model.name)
    for position in positions:
        manifest = await restore(model, catalog, position, folder / str(position))
        assert [disk.sha256 for disk in manifest.disks] == model.digests[position]


async def test_no_point_is_of_a_disk_that_was_rebuilt_and_of_one_that_another_history_left(
    model: ModelMachine, tmp_path: Path
) -> None:
    """They meet at one position, and the disk that is older is at another batch of it."""
    await model.store.delete(seed_blob(model.disk_names[0]))
    model.write()
    point = model.write(count=20, mark="new")
    await model.publish()
    async with running(model) as machine:
        await until(machine, lambda: any("set back" in problem.cause for problem in machine.report().errors))
    (doc,) = await point_store.list_docs(model.store, model.name)
    assert (doc.position, doc.marks, doc.state) == (point, ("new",), "logged")
    await check_restores(model, [point], tmp_path)


class FakeTarget:
    """It stands at 1-6."""

    kind = "page-blob"

    def __init__(self, name: str, id_: EpochId, digest: str) -> None:
        at = Position.of(1, 6)
        self.name, self.taken = name, 0
        self.state = DiskState(
            disk_b=SECTOR,
            cursor=at,
            pending=at,
            cursor_claim=id_.claim,
            pending_claim=id_.claim,
            cursor_digest=digest,
            pending_digest=digest,
            cursor_missing=NOTHING.digest,
            pending_missing=NOTHING.digest,
        )

    async def snapshot(self) -> str:
        self.taken += 1
        return f"{self.name}@{self.taken}"

    async def shows_as_it_is(self, snapshot: str) -> bool:
        return False


async def test_snapshots_are_taken_and_taken_anew_of_disks_at_one_batch_of_one_epoch_only(
    model: ModelMachine,
) -> None:
    model.write()
    point = model.write(mark="new")
    await model.publish()
    maker = await document(model)
    digest = await digest_at(model, point)
    assert digest
    strangers = [(model.id, "0" * 32), (model.id, ""), (model.id._replace(claim="f" * 16), digest)]

    def disks(*of: tuple[EpochId, str]) -> tuple[list[FakeTarget], list[DiskTarget]]:
        targets = [FakeTarget(f"sd{n}", *one) for n, one in enumerate(of)]
        return targets, [DiskTarget(n, SECTOR, cast(Target, one)) for n, one in enumerate(targets)]

    ours = (model.id, digest)
    for stranger in strangers:
        targets, all_ = disks(ours, stranger)
        assert not await maker.take_snapshots(point, all_)
        assert not any(target.taken for target in targets)
    targets, all_ = disks(ours, ours)
    assert await maker.take_snapshots(point, all_)
    for stranger in strangers:
        targets, all_ = disks(ours, stranger)
        await maker.retake_snapshots(point, all_)
        assert not any(target.taken for target in targets)
    targets, all_ = disks(ours, ours)
    await maker.retake_snapshots(point, all_)
    assert all(target.taken for target in targets)


async def test_a_point_that_an_older_version_made_of_two_histories_is_named_and_no_base(
    model: ModelMachine, tmp_path: Path
) -> None:
    """Its document is of the present history, and one of its snapshots says that it is not."""
    (old,) = await point_store.list_docs(model.store, model.name)
    model.write()
    point = model.write(mark="new")
    model.write()
    await model.publish()
    await document(model)
    stored = await point_store.read(model.store, point)
    assert stored is not None
    assert stored.doc.digest != old.digest
    mixed = msgspec.structs.replace(
        stored.doc, state=old.state, target=old.target, snapshots=old.snapshots, disks=old.disks
    )
    await point_store.change(model.store, mixed, stored.etag)
    catalog = await Catalog.load(model.store, model.name)
    with pytest.raises(SnapshotError, match="no valid snapshot of disk") as refused:
        await verify(model.store, model.vault, catalog, point)
    assert "another history of the log" in refused.value.cause
    for position in (point, model.position):
        assert (await make_plan(model.store, catalog, position)).base is None
    await check_restores(model, [point, model.position], tmp_path)


async def test_snapshots_of_another_history_are_no_base_of_a_restore(
    model: ModelMachine, tmp_path: Path
) -> None:
    model.write()
    model.write()
    same = model.position
    model.write()
    await model.publish(segments=2)
    catalog = await Catalog.load(model.store, model.name)
    for position in (same, model.position):
        assert (await make_plan(model.store, catalog, position)).base is None
    await check_restores(model, [same, model.position], tmp_path)


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
    position = await resolve(catalog, str(point))
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


async def document(model: ModelMachine) -> PointMaker:
    """What a new owner of the points does for the log that is there. Nothing is applied."""
    follower, maker = Follower(model.store, model.vault, model.name), PointMaker(model.store, model.name)
    await maker.take()
    await maker.document(await follower.refresh(1), follower.listed_ns, follower.digest)
    return maker


async def shown(model: ModelMachine) -> dict[str, tuple[str, ...]]:
    """The marks of all points that are listed as good."""
    listed = listing.listing(await Catalog.load(model.store, model.name)).points
    return {point.id: tuple(point.marks) for point in listed if not point.lost}


@pytest.mark.parametrize("further", [0, 1])
async def test_a_mark_of_the_new_history_up_to_the_old_ones_newest_point_gets_its_document(
    model: ModelMachine, further: int
) -> None:
    """The new log ends before the old point, or has gone on over it."""
    new = model.write(mark="new")
    for _ in range(further):
        model.write()
    await model.publish(segments=2)
    for _ in range(2):  # what one owner did, the next finds done
        maker = await document(model)
        stored = await point_store.read(model.store, new)
        assert stored is not None
        assert (stored.doc.marks, stored.doc.digest) == (("new",), await digest_at(model, new))
        assert new in maker.roll
        assert (await shown(model))[str(new)] == ("new",)
        assert maker.roll.is_aside(Position.of(1, 6))
    model.write(mark="behind")
    model.write()
    await model.publish()
    await document(model)
    assert set((await shown(model)).values()) >= {("new",), ("behind",)}


async def digest_at(model: ModelMachine, position: Position) -> str | None:
    return await (await Catalog.load(model.store, model.name)).digest(position)


async def test_a_point_of_the_old_history_is_set_aside_with_its_snapshots_and_comes_back_with_its_log(
    model: ModelMachine, old_log: Log, tmp_path: Path
) -> None:
    old = Position.of(1, 6)
    digests = model.digests[old]
    stored = await point_store.read(model.store, old)
    model.write()
    model.write(state=StreamState.RESYNC)
    new = model.write(mark="new")
    await model.publish()
    maker = await document(model)
    assert (old in maker.roll, maker.roll.is_aside(old)) == (False, True)
    await Pruner(model.store, model.name, RetentionPolicy(all_s=0)).prune(maker.roll, [])
    assert await shown(model) == {str(old): ("old",), str(new): ("new",)}
    catalog = await Catalog.load(model.store, model.name)
    manifest = await restore(model, catalog, await resolve(catalog, str(old)), tmp_path / "old")
    assert [disk.sha256 for disk in manifest.disks] == digests
    await set_back(model.store, old_log)
    maker = await document(model)
    assert (old in maker.roll, maker.roll.is_aside(old)) == (True, False)
    again = await point_store.read(model.store, old)
    assert stored is not None
    assert again is not None
    assert again.doc == maker.roll.sign(stored.doc)


@pytest.mark.parametrize("by", ["deleting", "damaging"])
async def test_a_newest_document_that_somebody_took_away_hides_no_point_of_another_history(
    store: BlobStore, tmp_path: Path, by: str
) -> None:
    model = await begun(store, tmp_path)
    older, as_it_was = await copied(store), model.as_it_is()
    model.write(mark="old")
    newest = model.write(mark="newest")
    await model.publish()
    await document(model)
    if by == "deleting":
        await point_store.delete(store, newest)
    else:
        await store.replace(points.blob_name(newest), b"garbage")
    await model.set_back(older, as_it_was)
    model.write()
    model.write()
    await model.publish(segments=2)
    maker = await document(model)
    assert [p for p in (Position.of(1, 5), newest) if maker.roll.is_aside(p)] == [Position.of(1, 5)]


async def test_an_owner_who_lost_the_points_sets_none_aside(model: ModelMachine) -> None:
    stale, follower = PointMaker(model.store, model.name), Follower(model.store, model.vault, model.name)
    await stale.take()
    model.write()
    model.write()
    await model.publish()
    found = await follower.refresh(1)
    await PointMaker(model.store, model.name).take()
    before = await model.store.read(points.ROLL)
    with pytest.raises(LeaseLostError, match="another master target took them"):
        await stale.document(found, follower.listed_ns, follower.digest)
    assert await model.store.read(points.ROLL) == before


class LateStore(BlobStore):
    """The answer to the creation of a document comes only after somebody has looked at the roll."""

    written: asyncio.Event
    looked: asyncio.Event

    @classmethod
    def over(cls, store: BlobStore) -> LateStore:
        made = copy.copy(store)
        made.__class__ = cls
        assert isinstance(made, LateStore)
        made.written, made.looked = asyncio.Event(), asyncio.Event()
        return made

    async def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        etag = await super().create(name, data, metadata)
        if points.position_of(name) is not None:
            self.looked.clear()
            self.written.set()
            await self.looked.wait()
        return etag

    async def read_versioned(self, name: str, most_b: int | None = None) -> tuple[bytes, str] | None:
        found = await super().read_versioned(name, most_b)
        self.looked.set()
        return found


async def test_a_document_that_the_roll_does_not_name_yet_is_not_removed_as_one_that_expired(
    model: ModelMachine,
) -> None:
    """Retention comes between the two, and the document stands before the newest point."""
    new = model.write(mark="new")
    await model.publish()
    store, follower = LateStore.over(model.store), Follower(model.store, model.vault, model.name)
    found = await follower.refresh(1)
    maker = PointMaker(store, model.name)
    await maker.take()
    making = asyncio.create_task(maker.document(found, follower.listed_ns, follower.digest))
    await store.written.wait()
    await Pruner(store, model.name, RetentionPolicy()).prune(maker.roll, [])
    await making
    assert str(new) in await shown(model)


async def test_a_log_that_was_set_back_to_an_earlier_epoch_is_the_machines_log(
    store: BlobStore, tmp_path: Path
) -> None:
    """Points and seed disks, which were not set back, are of an epoch that storage does not have any more."""
    model = await begun(store, tmp_path)
    older, as_it_was, writer = await copied(store), model.as_it_is(), model.writer
    await model.begin_epoch("rebooted")
    model.write(mark="later")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    model._writer = writer
    await model.set_back(older, as_it_was)
    new = model.write(mark="new")
    await model.publish()
    async with running(model) as machine:
        await until(machine, lambda: any("at 2-4" in problem.cause for problem in machine.report().errors))
    assert (await shown(model))[str(new)] == ("new",)


async def test_a_bookmark_of_another_history_names_nothing_in_this_one(
    store: BlobStore, tmp_path: Path
) -> None:
    """It was documented, and never applied: no disk contradicts the log."""
    model = await begun(store, tmp_path)
    older, as_it_was = await copied(store), model.as_it_is()
    model.write()
    point = model.write(mark="before-upgrade")
    await model.publish()
    await document(model)
    await model.set_back(older, as_it_was)
    model.write()
    model.write()
    model.write()
    await model.publish(segments=2)
    (shown,) = listing.listing(await Catalog.load(store, model.name)).points
    assert (shown.id, shown.marks) == (str(point), ["before-upgrade"])
    assert "was set back" in shown.lost
