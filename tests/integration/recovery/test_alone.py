"""Points of which the log, or the epoch's document, is gone: listed, and restored from what they themselves and their snapshots say."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from shared.blob import BlobConfig, BlobStore
from shared.errors import IndexMissingError, MachineNotFoundError, PointNotFoundError, SnapshotError
from shared.log import names
from shared.machine.storage import MachineStorage
from shared.recovery import listing, point_store
from shared.recovery.alone import UNTOLD_DISKS, UNTOLD_SUSPICION
from shared.recovery.catalog import Catalog
from shared.recovery.references import resolve
from shared.recovery.verify import make_plan, verify
from tests.cli import understudy
from tests.lives import forget_log
from tests.machine_log import ModelMachine
from tests.master_parts import restore, running, until_snapshotted


async def with_two_points(store: BlobStore, folder: Path) -> ModelMachine:
    model = await ModelMachine.create(store, folder)
    await model.begin_epoch()
    model.write(mark="first")
    model.write(mark="second")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    return model


@pytest.fixture
async def model(store: BlobStore, tmp_path: Path) -> ModelMachine:
    return await with_two_points(store, tmp_path)


async def without_disks(model: ModelMachine) -> None:
    """The points' documents as they were before these said which disks there are."""
    for doc in await point_store.list_docs(model.store, model.name):
        stored = await point_store.read(model.store, doc.position)
        assert stored is not None
        await point_store.change(model.store, msgspec.structs.replace(doc, disks=()), stored.etag)


async def test_with_all_of_the_log_gone_the_command_line_lists_and_restores_every_point(
    machine_storage: MachineStorage, blob_config: BlobConfig, tmp_path: Path
) -> None:
    """No server, no log, and documents of points that do not say which disks there were."""
    model = await with_two_points(await machine_storage.find_or_create("web1"), tmp_path)
    await without_disks(model)
    await forget_log(model.store)
    storage = [
        *("--blob-url", str(blob_config.url), "--blob-container", blob_config.container),
        *("--blob-key-file", str(blob_config.account_key_file), "--blob-ca-file", str(blob_config.ca_file)),
        *("--vault-file", str(model.vault.path)),
    ]
    shown = (await understudy("point", "list", "web1", "--output", "json", *storage)).json
    assert [point["id"] for point in shown] == [str(position) for position in model.marked]
    assert all("restored from its snapshots" in point["remark"] and point["suspect"] for point in shown)
    first, to = model.marked[0], tmp_path / "out"
    done = await understudy("restore", "web1", "--point", str(first), "--to", str(to), *storage)
    assert done.exit_code == 0, done.stderr
    manifest = json.loads((to / "manifest.json").read_text())
    assert [disk["sha256"] for disk in manifest["disks"]] == model.digests[first]
    assert [disk["serial"] for disk in manifest["disks"]] == ["", ""]
    assert {UNTOLD_DISKS, UNTOLD_SUSPICION} < set(manifest["remarks"])


@pytest.mark.parametrize("lost", ["document", "epoch"])
async def test_a_newer_epoch_is_no_hindrance_and_its_document_tells_what_is_suspect(
    model: ModelMachine, tmp_path: Path, lost: str
) -> None:
    first, second = model.marked
    await model.begin_epoch("capture audit shortfall", suspect_after=first)
    model.write(mark="third")
    await model.publish()
    if lost == "document":
        await model.store.delete(names.epoch_document(1))
    else:
        await forget_log(model.store, 1)
    catalog = await Catalog.load(model.store, model.name)
    shown = {point.id: (point.lost, point.suspect) for point in listing.listing(catalog).points}
    assert shown == {str(first): ("", False), str(second): ("", True), str(model.position): ("", False)}
    for position in (first, second):
        assert await resolve(catalog, str(position)) == position
        await verify(model.store, model.vault, catalog, position)
        manifest = await restore(model, catalog, position, tmp_path / str(position))
        assert [disk.sha256 for disk in manifest.disks] == model.digests[position]
        assert [disk.serial for disk in manifest.disks] == ["serial-0", "serial-1"]
        assert (manifest.suspect, len(manifest.remarks)) == (position == second, 1)
    assert await resolve(catalog, "latest-processed") == second
    assert await resolve(catalog, "latest") == model.position


async def test_what_is_left_decides(model: ModelMachine) -> None:
    """Without the log what needs it is refused; without snapshots their points are; without both there is no machine."""
    await without_disks(model)
    await forget_log(model.store)
    catalog = await Catalog.load(model.store, model.name)
    with pytest.raises(IndexMissingError, match=f"--point {model.marked[1]}"):
        await resolve(catalog, "latest")
    assert await resolve(catalog, "latest-processed") == model.marked[1]
    assert [(gap.after, gap.until) for gap in catalog.gaps()] == [(None, None)]
    for info in [i async for i in model.store.list("disks/", snapshots=True)]:
        if info.snapshot is not None:
            await model.store.delete(info.name, info.snapshot)
    with pytest.raises(SnapshotError, match="does not exist"):
        await make_plan(model.store, catalog, model.marked[0])
    for doc in await point_store.list_docs(model.store, model.name):
        stored = await point_store.read(model.store, doc.position)
        assert stored is not None
        logged = msgspec.structs.replace(doc, state="logged", snapshots={})
        await point_store.change(model.store, logged, stored.etag)
    with pytest.raises(MachineNotFoundError):
        await Catalog.load(model.store, model.name)


async def test_a_point_of_another_life_is_restored_where_storage_has_nothing_else_at_its_position(
    model: ModelMachine, tmp_path: Path
) -> None:
    second, digests = model.marked[1], model.digests[model.marked[1]]
    await model.lose_log()
    await model.begin_epoch(above=0)
    model.write()
    await model.publish()
    catalog = await Catalog.load(model.store, model.name)
    assert [point.id for point in listing.listing(catalog).points if not point.lost] == [str(second)]
    manifest = await restore(model, catalog, await resolve(catalog, str(second)), tmp_path / "out")
    assert [disk.sha256 for disk in manifest.disks] == digests
    assert manifest.suspect


async def test_an_epoch_whose_document_alone_is_gone_restores_at_each_ordered_batch(
    model: ModelMachine, tmp_path: Path
) -> None:
    """Its index says the rest, but for which disk has which number: that its points with snapshots say."""
    first, second = model.marked
    between = model.write()
    third = model.write(mark="third")
    await model.publish()
    await model.store.delete(names.epoch_document(1))
    catalog = await Catalog.load(model.store, model.name)
    assert [doc.position for doc in catalog.restorable()] == [first, second, third]
    assert all("epoch.json" in point.remark for point in listing.listing(catalog).points)
    assert await resolve(catalog, "latest") == third
    for position in (between, third):
        manifest = await restore(
            model, catalog, await resolve(catalog, str(position)), tmp_path / str(position)
        )
        assert [disk.sha256 for disk in manifest.disks] == model.digests[position]
        assert [disk.serial for disk in manifest.disks] == ["serial-0", "serial-1"]
        assert "epoch.json cannot be read: it is gone" in manifest.remarks[0]
        assert not manifest.suspect


async def test_what_an_epochs_lost_document_said_of_earlier_ones_is_not_known(model: ModelMachine) -> None:
    await model.begin_epoch("capture audit shortfall", suspect_after=model.marked[0])
    model.write(mark="third")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    await model.store.delete(names.epoch_document(2))
    catalog = await Catalog.load(model.store, model.name)
    shown = {point.id: point.suspect for point in listing.listing(catalog).points}
    assert shown == {str(model.marked[0]): True, str(model.marked[1]): True, str(model.position): False}


async def test_where_nothing_says_which_disks_an_epoch_had_its_marks_are_listed_with_the_reason(
    model: ModelMachine,
) -> None:
    """A guess would write one disk's data over another's. Points with snapshots need none."""
    await without_disks(model)
    third = model.write(mark="third")
    await model.publish()
    await model.store.delete(names.epoch_document(1))
    catalog = await Catalog.load(model.store, model.name)
    assert [doc.position for doc in catalog.restorable()] == model.marked[:2]
    shown = {point.id: point.lost for point in listing.listing(catalog).points}
    assert [id_ for id_, lost in shown.items() if lost] == [str(third)]
    assert "says which disks the epoch had" in shown[str(third)]
    with pytest.raises(PointNotFoundError, match="says which disks"):
        await resolve(catalog, str(third))


async def test_what_could_not_be_read_is_told_of_no_disk_whose_number_is_not_known(
    model: ModelMachine, tmp_path: Path
) -> None:
    """A document that does not say which disks there were: they are numbered by their names, and may have been otherwise."""
    position = model.marked[1]
    stored = await point_store.read(model.store, position)
    assert stored is not None
    told = msgspec.structs.replace(stored.doc, unreadable=((1, 8, 16),))
    await point_store.change(model.store, told, stored.etag)
    await forget_log(model.store)
    manifest = await restore(model, await Catalog.load(model.store, model.name), position, tmp_path / "told")
    assert manifest.unreadable == ((1, 8, 16),)
    await without_disks(model)
    manifest = await restore(
        model, await Catalog.load(model.store, model.name), position, tmp_path / "untold"
    )
    assert manifest.unreadable == ()
    assert any("16 from 8 on of disk 1" in remark for remark in manifest.remarks)
