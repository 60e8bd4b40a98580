"""The folder of a restore: whose it is, how an interrupted one goes on, and when it begins again."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shared.blob import BlobStore
from shared.errors import (
    ImageFileError,
    RestoreFolderError,
    SnapshotError,
)
from shared.recovery import materialise as materialise_module
from shared.recovery import point_store
from shared.recovery.catalog import Catalog
from shared.recovery.folder import JOURNAL, MANIFEST, Manifest, RestoreFolder, begun, open_folder
from shared.recovery.materialise import Progress, materialise
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan
from tests.azurite import Azurite
from tests.lives import copied
from tests.machine_log import ModelMachine
from tests.restores import MIB, Interrupted, check, interrupted, restore, shown_now, snapshot_now, with_base


async def test_a_folder_with_anything_else_in_it_is_refused(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    first = machine.write()
    machine.write()
    await machine.publish()
    out = tmp_path / "out"
    await restore(machine, "latest", out)
    with pytest.raises(RestoreFolderError, match="the finished restore of web1 at 1-5"):
        await restore(machine, str(first), out)

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


async def test_a_restore_goes_on_only_over_the_log_that_it_began_with(
    azurite: Azurite, machine: ModelMachine, tmp_path: Path
) -> None:
    """Another storage account, say, or a machine that was given the name anew: machine and position are the same."""
    async with BlobStore.connect(azurite.config("another-account")) as account:
        await account.ensure_container()
        other = await ModelMachine.create(account, tmp_path, seed=2)
        for model in (machine, other):
            model.disks[0][:] = model.rng.randbytes(len(model.disks[0]))
            await model.begin_epoch()
            for _ in range(6):
                model.write(8)
            await model.publish(segments=4)
        await interrupted(machine, "latest", tmp_path / "a", "restore.after-segment", 2)
        before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
        with pytest.raises(RestoreFolderError, match="another log"):
            await restore(other, "latest", tmp_path / "a")
        assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
        await restore(machine, "latest", tmp_path / "a")
        with pytest.raises(RestoreFolderError, match="finished restore"):
            await restore(other, "latest", tmp_path / "a")


@pytest.mark.parametrize("visits", [2, 3])
async def test_a_restore_does_not_go_on_over_another_history_of_its_epoch(
    machine: ModelMachine, tmp_path: Path, visits: int
) -> None:
    """Whether the journal claims nothing yet, or what both histories share, and more was written behind it."""
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    out, done = tmp_path / "out", tmp_path / "done"
    older, was = await copied(machine.store), machine.as_it_is()
    for _ in range(4):
        machine.write(8)
    await machine.publish(segments=4)
    target = str(machine.position)
    await interrupted(machine, target, out, "restore.after-runs", visits)
    await restore(machine, target, done)
    await machine.set_back(older, was)
    machine.rng.seed(99)
    for _ in range(4):
        machine.write(1)
    await machine.publish()
    manifest = await restore(machine, target, out)
    check(machine, machine.position, out, manifest)
    with pytest.raises(RestoreFolderError, match="of another history of the log"):
        await restore(machine, target, done)


async def test_a_journal_of_another_version_is_refused_by_name(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    await interrupted(machine, "latest", tmp_path / "a", "restore.after-segment", 1)
    journal = tmp_path / "a" / JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b'"v":2', b'"v":3'))
    with pytest.raises(RestoreFolderError, match="version 3, and this program knows 2"):
        await restore(machine, "latest", tmp_path / "a")


async def test_when_an_image_has_another_length_the_restore_begins_again(
    machine: ModelMachine, tmp_path: Path
) -> None:
    machine.disks[0][:] = machine.rng.randbytes(len(machine.disks[0]))
    await machine.begin_epoch()
    for _ in range(4):
        machine.write()
    await machine.publish(segments=4)
    out = tmp_path / "a"
    await interrupted(machine, "latest", out, "restore.after-segment", 3)
    os.truncate(out / "loop0.raw", 4096)  # a copy of the folder that ended early
    check(machine, machine.position, out, await restore(machine, "latest", out))


async def test_a_restore_that_was_finished_is_its_own_result_until_somebody_writes_to_an_image(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    out = tmp_path / "a"
    manifest = await restore(machine, "latest", out)
    assert await restore(machine, "latest", out) == manifest
    check(machine, machine.position, out, manifest)
    with (out / "loop0.raw").open("r+b") as image:
        image.write(b"booted")
    later_ns = (out / MANIFEST).stat().st_mtime_ns + 1_000_000_000
    os.utime(out / "loop0.raw", ns=(later_ns, later_ns))
    with pytest.raises(RestoreFolderError, match="finished restore"):
        await restore(machine, "latest", out)


async def test_a_restore_goes_on_from_its_own_base_although_there_is_a_newer_one(
    machine: ModelMachine, tmp_path: Path
) -> None:
    first = await with_base(machine)
    for _ in range(4):
        machine.write(8)
        await machine.publish()
    out = tmp_path / "a"
    await interrupted(machine, "latest", out, "restore.after-segment", 2)
    # As a master target leaves it: newer snapshots of the same blobs.
    for name in machine.disk_names:
        await machine.store.set_metadata(seed_blob(name), shown_now(machine))
    newer = msgspec.structs.replace(
        first,
        id=str(machine.position),
        batch=machine.position.batch,
        snapshots={name: await machine.store.snapshot(seed_blob(name)) for name in machine.disk_names},
    )
    await point_store.write_new(machine.store, newer)
    catalog = await Catalog.load(machine.store, machine.name)
    assert (await make_plan(machine.store, catalog, machine.position)).base == newer
    plan = await make_plan(machine.store, catalog, machine.position, begun(out))
    assert plan.base == first
    seen: list[Progress] = []
    check(
        machine,
        machine.position,
        out,
        await materialise(machine.store, machine.vault, plan, out, seen.append),
    )
    assert len([p for p in seen if p.stage == "log"]) == 2 + 2  # two of the four segments are left


async def test_a_restore_from_zeroes_stays_one_although_there_is_a_base_now(
    machine: ModelMachine, tmp_path: Path
) -> None:
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish(segments=2)
    out = tmp_path / "a"
    await interrupted(machine, "latest", out, "restore.after-segment", 1)
    await snapshot_now(machine)
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, machine.position, begun(out))
    assert plan.base is None
    check(machine, machine.position, out, await materialise(machine.store, machine.vault, plan, out))


async def test_a_snapshot_that_expires_under_a_restore_is_named_and_the_next_run_goes_on_without_it(
    machine: ModelMachine, tmp_path: Path
) -> None:
    doc = await with_base(machine)
    out = tmp_path / "a"
    await interrupted(machine, "latest", out, "restore.after-base-group", 1)
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, machine.position, begun(out))
    await machine.store.delete(seed_blob("loop1"), doc.snapshots["loop1"])
    with pytest.raises(SnapshotError, match=r"its point has expired.*same command again"):
        await materialise(machine.store, machine.vault, plan, out)
    plan = await make_plan(machine.store, catalog, machine.position, begun(out))
    assert plan.base is None
    check(machine, machine.position, out, await materialise(machine.store, machine.vault, plan, out))


async def test_a_fresh_file_system_is_an_empty_folder(machine: ModelMachine, tmp_path: Path) -> None:
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    out = tmp_path / "a"
    (out / "lost+found").mkdir(parents=True)
    manifest = await restore(machine, "latest", out)
    (out / "lost+found").rmdir()
    check(machine, machine.position, out, manifest)


@pytest.mark.parametrize("work", ["save", "image"])
async def test_a_cancelled_restore_holds_its_folder_until_its_threads_have_ended(
    work: str, machine: ModelMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.begin_epoch()
    for _ in range(4):
        machine.write()
    await machine.publish(segments=4)
    out = tmp_path / "a"
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, machine.position)
    begins, go_on = threading.Event(), threading.Event()

    def slow(real: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object) -> object:
            if threading.current_thread() is not threading.main_thread():
                begins.set()
                assert go_on.wait(30)
            return real(*args)

        return wrapper

    with monkeypatch.context() as patch:
        if work == "save":
            patch.setattr(RestoreFolder, "save", slow(RestoreFolder.save))
        else:
            patch.setattr(materialise_module, "_write", slow(materialise_module._write))
        task = asyncio.create_task(materialise(machine.store, machine.vault, plan, out))
        await asyncio.to_thread(begins.wait)
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        with pytest.raises(RestoreFolderError, match="another restore is writing"), open_folder(out, plan):
            pass
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    check(machine, machine.position, out, await materialise(machine.store, machine.vault, plan, out))


async def test_whoever_cancels_a_restore_whose_manifest_is_being_written_is_told_that_it_is_finished(
    machine: ModelMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    out = tmp_path / "a"
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, machine.position)
    begins, go_on = threading.Event(), threading.Event()
    complete = RestoreFolder.complete

    def slow(folder: RestoreFolder, manifest: Manifest) -> None:
        begins.set()
        assert go_on.wait(30)
        complete(folder, manifest)

    monkeypatch.setattr(RestoreFolder, "complete", slow)
    task = asyncio.create_task(materialise(machine.store, machine.vault, plan, out))
    await asyncio.to_thread(begins.wait)
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
    go_on.set()
    check(machine, machine.position, out, await task)


async def test_a_manifest_that_cannot_be_written_is_an_error_also_for_whoever_cancels_at_that_moment() -> (
    None
):
    async def full() -> None:
        task.cancel()
        raise ImageFileError("The manifest could not be written", cause="no space left on device")

    task = asyncio.create_task(materialise_module._to_the_end(full()))
    with pytest.raises(ImageFileError, match="could not be written"):
        await task


async def test_a_finished_restore_that_does_not_say_its_history_is_not_called_one_of_another(
    machine: ModelMachine, tmp_path: Path
) -> None:
    """An earlier version's manifest. What is unknown is neither the same nor another."""
    await machine.begin_epoch()
    machine.write()
    await machine.publish()
    done = await restore(machine, "latest", tmp_path / "a")
    older = msgspec.structs.replace(done, digest="")
    (tmp_path / "a" / MANIFEST).write_bytes(msgspec.json.encode(older))
    with pytest.raises(RestoreFolderError, match="nothing says whether of the same history"):
        await restore(machine, "latest", tmp_path / "a")
