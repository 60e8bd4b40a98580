"""Storage that goes away, expired points, orphan snapshots."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from master_target import leases, retention
from master_target.claim import Claim
from master_target.follow import Follower
from master_target.retention import Pruner, RetentionPolicy
from master_target.roll import OwnedRoll
from master_target.targets.image_file import ImageTarget
from shared.blob import BlobStore
from shared.errors import (
    ImageFileError,
    LeaseHeldError,
    SnapshotError,
    StorageRoleError,
)
from shared.log import names
from shared.log.epochs import EpochDisk, allocate_epoch
from shared.recovery import point_store
from shared.recovery.alone import check_snapshots
from shared.recovery.catalog import Catalog
from shared.recovery.references import resolve
from shared.recovery.seed import seed_blob
from tests.azurite import Azurite
from tests.machine_log import SECOND_NS, ModelMachine
from tests.master_parts import (
    SETTINGS,
    open_page_blob,
    running,
    seed_digests,
    stored_apart,
    until,
    until_applied,
    until_snapshotted,
)
from tests.storage_faults import Answer, FaultProxy


async def test_a_storage_outage_is_reported_and_waited_out(tmp_path: Path) -> None:
    with Azurite(tmp_path / "azurite", persistent=True) as azurite:
        async with BlobStore.connect(azurite.config("outage")) as store:
            await store.ensure_container()
            model = await ModelMachine.create(store, tmp_path)
            await model.begin_epoch()
            model.write(mark="before")
            await model.publish()
            async with running(model) as machine:
                await until_snapshotted(machine, model)
                await asyncio.to_thread(azurite.stop)
                await until(machine, lambda: bool(machine.report().errors))
                await asyncio.to_thread(azurite.start)
                model.write(mark="after")
                await model.publish()
                await until_snapshotted(machine, model)
                await until(machine, lambda: not machine.report().errors)
            assert await seed_digests(model) == model.sha256()


async def test_expired_points_go_at_once_and_their_snapshots_an_hour_later(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    for i in range(4):
        model.write(mark=f"m{i}")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
    seed = await open_page_blob(store, model.name, "loop0", len(model.disks[0]))
    orphan = await seed.snapshot()
    # The policy keeps what is at most one second older than the newest: the last two points.
    stored_apart(monkeypatch, 1)
    pruner = Pruner(store, model.name, RetentionPolicy(all_s=1, hourly_s=0))

    roll = await OwnedRoll.take(store, model.name)
    await pruner.prune(roll, [seed])
    assert [d.id for d in await point_store.list_docs(store, model.name)] == [d.id for d in docs[2:]]
    assert len(await seed.snapshots()) == 9  # two disks at four points, and the orphan
    later = time.monotonic() + 3601
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later)
        await pruner.prune(roll, [seed])
    left = {s.id for s in await seed.snapshots()}
    assert left == {s for d in docs[2:] for s in d.snapshots.values()}
    assert orphan not in left
    await seed.close()

    # Expired points are not listed any more, but their batches still restore from the log.
    catalog = await Catalog.load(store, model.name)
    assert [p.id for p in catalog.points()] == [d.id for d in docs[2:]]
    assert await resolve(catalog, docs[0].id) == docs[0].position


async def test_the_snapshots_of_a_point_stay_while_its_document_cannot_be_read(
    store: BlobStore, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    for i in range(3):
        model.write(mark=f"m{i}")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
    newer = msgspec.structs.replace(docs[1], v=2)
    stored = await point_store.read(store, newer.position)
    assert stored is not None
    await point_store.change(store, newer, stored.etag)
    seed = await open_page_blob(store, model.name, "loop0", len(model.disks[0]))
    second_of_last = await seed.snapshot()
    pruner = Pruner(store, model.name, RetentionPolicy(orphan_s=0))
    await pruner.prune(await OwnedRoll.take(store, model.name), [seed])
    left = {s.id for s in await seed.snapshots()}
    assert left == {s for d in docs for s in d.snapshots.values()}
    assert second_of_last not in left
    await seed.close()


async def test_an_orphan_goes_in_its_time_although_the_work_on_its_machine_keeps_failing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    async with running(model) as machine:
        (doc,) = await until_snapshotted(machine, model)
    seed = await open_page_blob(store, model.name, "loop0", len(model.disks[0]))
    orphan = await seed.snapshot()
    await seed.close()

    async def fails(*_: object) -> None:
        raise ImageFileError("It failed", cause="there is no room")

    monkeypatch.setattr(Follower, "next", fails)
    monkeypatch.setattr(retention, "_PRUNE_S", 0.0)
    # Longer than any one try works, shorter than the pause before the next one.
    settings = msgspec.structs.replace(SETTINGS, retention=RetentionPolicy(orphan_s=0.4))
    seed_name = seed_blob("loop0")
    async with running(model, settings):
        left = {orphan}
        async with asyncio.timeout(30):
            while orphan in left:
                left = {info.snapshot or "" async for info in store.list(seed_name, snapshots=True)}
    assert doc.snapshots["loop0"] in left


async def test_a_point_whose_snapshot_was_deleted_is_told_apart(store: BlobStore, tmp_path: Path) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    async with running(model) as machine:
        (doc,) = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    catalog = await Catalog.load(store, model.name)
    await check_snapshots(store, catalog.epochs[0].disks, doc)
    await store.delete(seed_blob("loop1"), doc.snapshots["loop1"])
    with pytest.raises(SnapshotError, match="loop1"):
        await check_snapshots(store, catalog.epochs[0].disks, doc)
    with pytest.raises(SnapshotError, match="names none"):
        await check_snapshots(store, catalog.epochs[0].disks, msgspec.structs.replace(doc, snapshots={}))


@pytest.mark.parametrize("kind", ["page-blob", "image"])
async def test_snapshots_of_a_disk_that_left_the_machine_go_with_their_points(
    store: BlobStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images" if kind == "image" else None
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write(mark="old")
    await model.publish()
    async with running(model, image_dir=images) as machine:
        await until_snapshotted(machine, model)
    model.disks.pop()
    await model.begin_epoch("a disk left")
    model.captured_ns += 3600 * SECOND_NS
    model.write(mark="new")
    await model.publish()

    async def of_left_disk() -> list[str]:
        if images:
            return [path.name for path in (images / model.name).glob("loop1@*")]
        return [i.snapshot async for i in store.list(seed_blob("loop1"), snapshots=True) if i.snapshot]

    async with running(model, image_dir=images) as machine:
        docs = await until_snapshotted(machine, model)
        assert await of_left_disk()  # a point names it
    monkeypatch.setattr(retention, "_PRUNE_S", 0.0)
    stored_apart(monkeypatch, 2)
    settings = msgspec.structs.replace(SETTINGS, retention=RetentionPolicy(all_s=1, hourly_s=0, orphan_s=0))
    async with running(model, settings, image_dir=images):
        async with asyncio.timeout(30):
            while await of_left_disk():  # noqa: ASYNC110 - storage has no event
                await asyncio.sleep(0.01)
    assert [d.id for d in await point_store.list_docs(store, model.name)] == [docs[-1].id]


async def test_disks_that_would_share_a_seed_disk_are_refused_by_name(
    store: BlobStore, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await allocate_epoch(
        store, model.name, disks=[EpochDisk(n, "loop0", "", 512) for n in (0, 1)], reason="x", agent_id="x"
    )
    async with running(model) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        assert "two disks with the name loop0" in machine.report().errors[0].what


async def test_a_machine_is_followed_although_nothing_of_it_may_be_deleted(
    azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An identity without that right, or an account under a legal hold."""
    monkeypatch.setattr(retention, "_PRUNE_S", 0.0)
    stored_apart(monkeypatch, 2)
    settings = msgspec.structs.replace(SETTINGS, retention=RetentionPolicy(all_s=0, hourly_s=0, orphan_s=0))
    with FaultProxy(azurite) as proxy:
        async with BlobStore.connect(proxy.config("nothing-is-deleted")) as store:
            await store.ensure_container()
            model = await ModelMachine.create(store, tmp_path)
            await model.begin_epoch()
            proxy.add(Answer(403, "AuthorizationPermissionMismatch"), method="DELETE", times=None)
            async with running(model, settings) as machine:
                for i in range(4):
                    model.write(mark=f"m{i}")
                    await model.publish()
                    await until_applied(machine, model.position)
                refused = StorageRoleError.code
                await until(machine, lambda: [e.code for e in machine.report().errors] == [refused])
                proxy.clear()
                await model.publish()
                model.write(mark="again")
                await model.publish()
                await until_applied(machine, model.position)
                await until(machine, lambda: not machine.report().errors)


async def test_a_seed_disk_that_is_deleted_under_its_owner_hides_no_error_and_leaves_no_lease(
    store: BlobStore, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
        await store.leases.break_now(seed_blob("loop0"))
        await store.delete(seed_blob("loop0"))
        model.write(20)
        await model.publish()
        await until(machine, lambda: machine.report().state == "failed, will try again")
        assert "release" not in str(machine.report().errors)
        await until_applied(machine, model.position)
        held = [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("lease ")]
        assert sorted(held) == sorted({*held})
    assert await seed_digests(model) == model.sha256()


async def test_a_claim_whose_blob_is_deleted_is_lost_at_the_next_renewal(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEW_S", 0.05)
    claim = await Claim.take(store, "web1", "mt1", first=True)
    await store.leases.break_now(names.MASTER)
    await store.delete(names.MASTER)
    async with asyncio.timeout(20):
        await claim.lost.wait()
    await claim.release()


async def test_a_disk_that_another_holds_is_told_although_the_machine_is_ours(
    store: BlobStore, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    await model.publish()
    image_dir = tmp_path / "images"
    held = await ImageTarget.open(image_dir, model.name, model.disk_names[0], len(model.disks[0]))
    async with running(model, image_dir=image_dir) as machine:
        await until(machine, lambda: [e.code for e in machine.report().errors] == [LeaseHeldError.code])
        await held.close()
        await until_applied(machine, model.position)
        await until(machine, lambda: not machine.report().errors)
