"""One machine's log brought to its seed disks, with points: real log, real page blobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from master_target import follow
from master_target.apply import Interval, make_interval
from master_target.follow import Follower
from master_target.machine import Machine
from master_target.stepping import Stepper
from master_target.targets.base import Target
from master_target.targets.image_file import ImageTarget
from master_target.targets.page_blob import PageBlobTarget
from shared.batch import SECTOR, Op, StreamState
from shared.blob import BlobStore
from shared.daemon.threads import in_thread
from shared.errors import IndexDamagedError, IndexMissingError, SeedDiskError
from shared.log import chain, names
from shared.log.chain import IndexChain
from shared.log.index import IndexEntry
from shared.log.reader import LogReader
from shared.log.writer import IndexWriter
from shared.recovery import point_store
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from tests.epoch_ids import id_in
from tests.machine_log import ModelMachine
from tests.master_parts import (
    SETTINGS,
    check_points,
    running,
    sectors_of,
    seed_digests,
    until,
    until_applied,
    until_snapshotted,
)


async def test_every_mark_becomes_a_point_with_snapshots(model: ModelMachine, tmp_path: Path) -> None:
    await model.begin_epoch()
    await model.publish()
    async with running(model) as machine:
        for i in range(4):
            model.write()
            model.write(mark=f"m{i}")
            model.write()
            await model.publish()
        docs = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    assert [d.marks for d in docs] == [("m0",), ("m1",), ("m2",), ("m3",)]
    await check_points(model, tmp_path / "restored")
    report = machine.report()
    assert report.errors == []
    assert (report.lag_s, report.lag_b, report.last_point) == (0.0, 0, docs[-1].id)
    assert report.rates["amplification"] >= 1.0


async def test_a_mark_is_not_passed_while_its_document_is_being_written(
    model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await model.begin_epoch()
    model.write(mark="first")
    await model.publish()
    applying, documenting, go_on, write = (asyncio.Event() for _ in range(4))
    finish, write_new = PageBlobTarget.finish, point_store.write_new

    async def busy_finish(target: PageBlobTarget) -> None:
        applying.set()
        await go_on.wait()
        await finish(target)

    async def slow_write_new(store: BlobStore, doc: PointDoc) -> bool:
        documenting.set()
        await write.wait()
        return await write_new(store, doc)

    settings = msgspec.structs.replace(SETTINGS, interval_b=1, behind_interval_b=1)
    async with running(model, settings) as machine:
        await until_snapshotted(machine, model)
        monkeypatch.setattr(PageBlobTarget, "finish", busy_finish)
        monkeypatch.setattr(point_store, "write_new", slow_write_new)
        model.write()
        await model.publish()
        await applying.wait()  # so apply sees what is listed meanwhile as soon as it goes on
        marked = model.write(mark="second")
        model.write()
        await model.publish()
        await documenting.wait()
        go_on.set()
        await until(machine, lambda: machine.report().applied >= marked.batch)
        write.set()
        await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()


async def test_an_interval_ends_at_a_mark_that_was_seen_while_other_epochs_are_still_being_read(
    model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await model.begin_epoch()
    marked = model.write(mark="m")
    model.write()
    await model.begin_epoch("agent restarted")
    await model.publish()
    reading, go_on = asyncio.Event(), asyncio.Event()
    read_on = IndexChain.read_on

    async def slow_read_on(chain: IndexChain) -> AsyncIterator[list[IndexEntry]]:
        if chain.epoch == 2:
            reading.set()
            await go_on.wait()
        async for entries in read_on(chain):
            yield entries

    monkeypatch.setattr(IndexChain, "read_on", slow_read_on)
    follower = Follower(model.store, model.vault, model.name)
    refresh = asyncio.create_task(follower.refresh(1))
    await reading.wait()
    interval = await follower.next(Position.of(1, 0), None, 1 << 30)
    assert interval is not None
    assert interval.end == marked
    go_on.set()
    assert [point.position for point in await refresh] == [marked]
    await follower.close()


async def test_an_image_folder_serves_as_target(model: ModelMachine, tmp_path: Path) -> None:
    await model.begin_epoch()
    model.write(mark="m")
    model.write()
    await model.publish()
    async with running(model, image_dir=tmp_path / "images") as machine:
        (doc,) = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    assert doc.target == "image"
    for name, disk in zip(model.disk_names, model.disks, strict=True):
        assert (tmp_path / "images" / model.name / f"{name}.img").read_bytes() == disk
    await check_points(model, tmp_path / "restored")


async def test_a_mark_is_a_point_before_it_is_applied_and_only_where_order_is_kept(
    model: ModelMachine,
) -> None:
    await model.begin_epoch()
    model.write(mark="kept")
    model.write(mark="lost", state=StreamState.BITMAP)
    await model.publish()
    seed = seed_blob("loop0")
    await model.store.pages.create(seed, 512)  # a foreign blob in the way: nothing can be applied
    async with running(model) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        await until(machine, lambda: bool(machine.report().last_point))
        assert [(d.marks, d.state) for d in await point_store.list_docs(model.store, model.name)] == [
            (("kept",), "logged")
        ]
        assert seed in machine.report().errors[0].what
        await model.store.leases.break_now(seed)
        await model.store.delete(seed)
        await until_snapshotted(machine, model)


async def test_a_restarted_master_target_goes_on_where_it_was(model: ModelMachine, tmp_path: Path) -> None:
    await model.begin_epoch()
    for i in range(3):
        model.write(mark=f"m{i}")
        await model.publish()
        async with running(model) as machine:
            await until_snapshotted(machine, model)
    model.write()
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    assert len(await check_points(model, tmp_path / "restored")) == 3


async def test_the_old_epoch_is_finished_before_the_new_one_overwrites_the_disks(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    model.write(mark="a")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    model.write(mark="b")
    await model.begin_epoch("agent restarted")
    model.write(mark="c")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
        assert [d.position for d in docs] == model.marked
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    await check_points(model, tmp_path / "restored")


async def test_disks_that_come_grow_and_go_with_an_epoch_are_followed(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    model.write(mark="a")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        model.disks[1] += bytearray(b"grown" * 1024 * 10)[: 64 * 1024]
        model.disks.append(bytearray(b"new" * 1024 * 512)[: 128 * 1024])
        await model.begin_epoch("disks changed")
        model.write(10, mark="b")
        await model.publish()
        docs = await until_snapshotted(machine, model)
        await until_applied(machine, model.position)
    assert set(docs[1].snapshots) == {"loop0", "loop1", "loop2"}
    assert await seed_digests(model) == model.sha256()


async def test_a_deleted_seed_disk_is_rebuilt_from_the_log(model: ModelMachine) -> None:
    await model.begin_epoch()
    model.write(mark="a")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    await model.store.delete(seed_blob("loop1"))
    model.write(mark="b")
    model.write()
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    docs = await point_store.list_docs(model.store, model.name)
    assert [d.state for d in docs] == ["snapshotted", "snapshotted"]
    assert await seed_digests(model, docs[1].snapshots) == model.digests[docs[1].position]


async def test_small_intervals_and_bridging_give_the_same_disks(model: ModelMachine) -> None:
    await model.begin_epoch()
    for _ in range(6):
        model.write(40)
    await model.publish(segments=2)
    async with running(
        model, msgspec.structs.replace(SETTINGS, interval_b=64 * 1024, behind_interval_b=64 * 1024)
    ) as machine:
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    assert machine.report().rates["amplification"] > 1.0


async def test_a_second_master_target_waits_until_the_first_ends(model: ModelMachine) -> None:
    await model.begin_epoch()
    await model.publish()
    async with running(model, msgspec.structs.replace(SETTINGS, owner="mt2")) as second:
        await until_applied(second, model.position)
        async with running(model) as first:
            await until(first, lambda: "another master target" in first.report().state)
            assert not first.report().errors
    # One with the same name takes over at once: it is its own restart.
    async with running(model) as first:
        await until_applied(first, model.position)
        async with running(model) as again:
            await until_applied(again, model.position)
            model.write()
            await model.publish()
            await until_applied(again, model.position)
            await until(first, lambda: first.report().state != "following")


async def test_work_that_hangs_and_is_cut_off_twice_leaves_no_disk_locked(
    model: ModelMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that reads ahead comes back late: whoever bears the name next would find the image in use until a restart."""
    await model.begin_epoch()
    model.write()
    await model.publish()
    images = tmp_path / "images"

    async def open_image(_: BlobStore, machine: str, disk: str, disk_b: int) -> Target:
        return await ImageTarget.open(images, machine, disk, disk_b)

    closing, cancelled = asyncio.Event(), follow._cancelled

    async def waits(task: asyncio.Task[Any]) -> None:
        closing.set()
        await cancelled(task)

    monkeypatch.setattr(follow, "_cancelled", waits)
    machine = Machine(model.store, model.vault, model.name, SETTINGS, open_image)
    work, back = asyncio.create_task(machine.run(asyncio.Event())), threading.Event()
    try:
        await until_applied(machine, model.position)
        assert machine._work is not None
        log = machine._work._log
        log._ahead = cast(IndexEntry, None), cast(Any, asyncio.create_task(in_thread(back.wait)))
        work.cancel()
        await closing.wait()
        work.cancel()
    finally:
        back.set()
        await asyncio.gather(work, return_exceptions=True)
    for name, disk in zip(model.disk_names, model.disks, strict=True):
        target = await ImageTarget.open(images, model.name, name, len(disk))
        await target.close()


async def test_points_name_what_could_not_be_read_until_it_is_written(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    model.write(mark="before")
    model.fail_to_read((0, 0, 400), (1, 8, 8), (1, 16, 1))
    model.write(mark="after")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    # A master target that begins anew goes on with what the one before knew.
    async with running(model) as machine:
        model.write(mark="later")
        model._add([(0, 0, 400, Op.SYNC), (1, 8, 12, Op.SYNC_ZERO)], StreamState.CATCHING_UP, (), "trial")
        model.disks[1][8 * SECTOR : 20 * SECTOR] = bytes(12 * SECTOR)
        model.write(mark="last")
        await model.publish()
        await until_snapshotted(machine, model)
    docs = await check_points(model, tmp_path)
    assert [bool(d.unreadable) for d in docs] == [False, True, True, False]


async def test_a_disk_that_is_rebuilt_lacks_what_could_not_be_read_and_the_others_what_they_lacked(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    for mark in ("one", "two"):
        model.fail_to_read((0, 0, 400), (1, 0, 192))
        model.write(20, mark=mark)
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    name = seed_blob(model.disk_names[1])
    await model.store.delete(name)  # an administrator's; its snapshots go with it
    model.write(mark="three")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
    assert sectors_of(docs[-1].missing) == model.missing[model.position]
    await check_points(model, tmp_path)  # the snapshots that went with the blob were taken anew


async def replace(store: BlobStore, blob: str, old: bytes, new: bytes) -> None:
    """Change bytes of an append or block blob behind everybody's back."""
    data = (await store.read(blob)).replace(old, new, 1)
    if "/index-" not in blob:
        await store.replace(blob, data)
        return
    await store.leases.break_now(blob)
    await store.delete(blob)
    await store.append_create(blob)
    await store.append(blob, data, None, 0)


async def damage_segment(model: ModelMachine) -> None:
    entry = (await LogReader(model.store, model.name).entries(model.id))[-1]
    data = await model.store.read(entry.blob)
    await model.store.replace(entry.blob, data[:200] + bytes(8) + data[208:])


async def delete_segment(model: ModelMachine) -> None:
    await model.store.delete(
        (await LogReader(model.store, model.name).entries(await id_in(model.store, 1)))[-1].blob
    )


async def write_beyond_the_end(model: ModelMachine) -> None:
    model._add([(0, len(model.disks[0]) // SECTOR, 8, Op.ZERO)], StreamState.ORDERED, (), "")
    await model.publish()


async def name_another_disk(model: ModelMachine) -> None:
    model.fail_to_read((77, 0, 8))
    await model.publish()


async def name_what_no_disk_has(model: ModelMachine) -> None:
    model.fail_to_read((1 << 63, 0, 8))
    await model.publish()


async def damage_index(model: ModelMachine) -> None:
    await replace(model.store, names.index(1, 1), b"ps1", b"ps\xff")


async def damage_epoch_document(model: ModelMachine) -> None:
    await replace(model.store, names.epoch_document(1), b"first", b"\xff")


async def delete_epoch_document(model: ModelMachine) -> None:
    await model.store.delete(names.epoch_document(1))


@pytest.mark.parametrize(
    ("target", "damage"),
    [
        ("page-blob", damage_segment),
        ("page-blob", delete_segment),
        ("page-blob", write_beyond_the_end),
        ("image", write_beyond_the_end),
        ("page-blob", name_another_disk),
        ("page-blob", name_what_no_disk_has),
        ("page-blob", damage_index),
        ("page-blob", damage_epoch_document),
        ("page-blob", delete_epoch_document),
    ],
)
async def test_what_cannot_be_applied_is_shown_until_a_newer_epoch_heals_it(
    model: ModelMachine,
    tmp_path: Path,
    target: str,
    damage: Callable[[ModelMachine], Awaitable[None]],
) -> None:
    images = tmp_path / "images" if target == "image" else None
    await model.begin_epoch()
    await model.publish()
    async with running(model, image_dir=images) as machine:
        await until_applied(machine, model.position)
    model.write()
    await model.publish()
    await damage(model)
    async with running(model, image_dir=images) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        await model.begin_epoch("resynchronised")
        await until(
            machine, lambda: bool(machine.report().errors)
        )  # it has no batch: nothing can be taken up
        model.write(mark="healed")
        await model.publish()
        await until_applied(machine, model.position)
        await until_snapshotted(machine, model)
        await until(machine, lambda: not machine.report().errors)
    if images:
        for name, disk in zip(model.disk_names, model.disks, strict=True):
            assert (images / model.name / f"{name}.img").read_bytes() == disk
    else:
        assert await seed_digests(model) == model.sha256()


async def test_a_newer_epoch_heals_what_this_program_fails_by(
    model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await model.begin_epoch()
    await model.publish()

    async def make(start: Position, *args: Any) -> Interval:
        if start.epoch == 1 and start.batch:
            raise OverflowError("Python int too large to convert to C long")
        return await make_interval(start, *args)

    monkeypatch.setattr(follow, "make_interval", make)
    async with running(model) as machine:
        await until_applied(machine, model.position)
        model.write()
        await model.publish()
        await until(machine, lambda: any("OverflowError" in e.cause for e in machine.report().errors))
        await model.begin_epoch("resynchronised")
        model.write(mark="healed")
        await model.publish()
        await until_snapshotted(machine, model)
        await until(machine, lambda: not machine.report().errors)
    assert await seed_digests(model) == model.sha256()


async def test_what_fails_each_time_is_an_error_also_while_it_is_tried_again(
    model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails at the end of each interval, after seconds of work: nothing is applied, and polls go well."""
    real_step, tries = Stepper.step, 0

    async def step(stepper: Stepper, *args: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries <= 2:
            await asyncio.sleep(20 * SETTINGS.poll_s)
            raise SeedDiskError("The seed disk could not be written", cause="EIO")
        return await real_step(stepper, *args)

    monkeypatch.setattr(Stepper, "step", step)
    await model.begin_epoch()
    model.write()
    await model.publish()
    async with running(model) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        errors = set()
        while tries <= 2:
            errors.add(tuple(error.code for error in machine.report().errors))
            await asyncio.sleep(SETTINGS.poll_s)
        assert errors == {(SeedDiskError.code,)}
        await until(machine, lambda: not machine.report().errors)
        assert machine.report().applied == model.position.batch


async def test_damage_in_an_epoch_that_is_still_looked_at_is_shown(model: ModelMachine) -> None:
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        await model.begin_epoch("agent restarted")
        await model.publish()
        await until_applied(machine, model.position)
    await damage_index(model)
    async with running(model) as machine:
        await until_applied(machine, model.position)
        await until(machine, lambda: bool(machine.report().errors))
        assert "index" in machine.report().errors[0].what


async def test_the_marks_before_damage_in_an_index_are_points(
    model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await model.begin_epoch()
    marked = model.write(mark="m")
    await model.publish()
    for _ in range(3):
        model.write()
        await model.publish()
    await model.begin_epoch("resynchronised")
    await model.publish()
    await replace(model.store, names.index(1, 1), b'"first":7', b'"first":\xff')
    monkeypatch.setattr(chain, "_PIECE_B", 10)  # one line at a time
    follower = Follower(model.store, model.vault, model.name)
    for points in ([marked], []):
        assert [point.position for point in await follower.refresh(1)] == points
        assert [type(error) for error in follower.damaged] == [IndexDamagedError]
    assert (follower.end(1), follower.end(2)) == (Position.of(1, 6), model.position)
    await follower.close()


async def test_a_log_that_lost_what_was_begun_is_left_for_the_next_epoch(model: ModelMachine) -> None:
    await model.begin_epoch()
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
    for name in model.disk_names:  # as after a crash in an interval whose log storage forgot
        info = await model.store.properties(seed_blob(name))
        await model.store.set_metadata(info.name, info.metadata | {"pending": "1-50"})
    async with running(model) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        assert "The log does not lead to position 1-50" in machine.report().errors[0].what
        await model.begin_epoch("storage lost data")
        model.write()
        await model.publish()
        await until_applied(machine, model.position)
    assert await seed_digests(model) == model.sha256()
    assert model.position == Position.of(2, 4)


async def test_an_interval_that_changes_nothing_is_no_news(
    model: ModelMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        capsys.readouterr()
        model._add([], StreamState.ORDERED, (), "")  # a heartbeat
        await model.publish()
        await until_applied(machine, model.position)
    said = [line for line in capsys.readouterr().out.splitlines() if "interval applied" in line]
    assert len(said) == 1
    assert "debug" in said[0]


@pytest.mark.parametrize("lost", ["between", "newest-epoch"])
async def test_a_log_that_lost_what_is_applied_already_is_no_log_that_is_followed(
    lost: str, model: ModelMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = IndexWriter.take.__func__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "max_blocks", 2)
    for _ in range(2):
        await model.begin_epoch()
        for _ in range(4):
            model.write()
            await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
    gone = names.index(2, 3 if lost == "between" else 1)
    await model.store.leases.break_now(gone)
    await model.store.delete(gone)
    async with running(model) as machine:
        await until(machine, lambda: any(e.code == IndexMissingError.code for e in machine.report().errors))


async def test_disks_that_stand_behind_the_end_of_the_index_are_not_followed(
    model: ModelMachine, tmp_path: Path
) -> None:
    """Storage was restored from a copy, and its page blobs are newer than its append blobs."""
    await model.begin_epoch()
    model.write()
    await model.publish()
    images = tmp_path / "images"
    images.mkdir()
    index = names.index(1, 1)
    older = await model.store.read(index)
    model.write()
    await model.publish()
    async with running(model, image_dir=images) as machine:
        await until_applied(machine, model.position)
    await model.store.leases.break_now(index)
    await model.store.delete(index)
    await model.store.append_create(index)
    await model.store.append(index, older, None, 0)
    async with running(model, image_dir=images) as machine:
        await until(machine, lambda: any(e.code == IndexMissingError.code for e in machine.report().errors))
        assert "seed disks stand at batch 5" in str(machine.report().errors)
