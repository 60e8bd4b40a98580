"""What is missing on the seed disks, as a master target keeps it in storage. Its rules: tests/property/test_missing_on_disks.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from master_target.apply import DiskTarget, Interval
from master_target.targets.base import Target
from master_target.targets.state import DiskState
from master_target.unreadable import NOTHING, RECORD, UnreadableRecord, older_record
from shared.batch import SECTOR, Range
from shared.blob import BlobStore
from shared.errors import LeaseLostError
from shared.recovery.catalog import Catalog
from shared.recovery.coalesce import DiskRuns
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from shared.recovery.unreadable import Unreadable
from tests.epoch_ids import CLAIM
from tests.machine_log import ModelMachine
from tests.master_parts import check_points, restore, running, sectors_of, until_snapshotted


async def ours() -> None:
    """The roll says so."""


async def lost() -> None:
    raise LeaseLostError("The points of machine web1 were not changed")


class Disk(msgspec.Struct):
    state: DiskState
    name: str = "sda"


def interval(
    start: int, named: tuple[Range, ...] = (), written: Mapping[int, tuple[int, int]] | None = None
) -> Interval:
    runs = {
        disk: DiskRuns(disk, np.empty((0, 2), np.int64), np.array([row]), np.empty((0, 512), np.uint8))
        for disk, row in (written or {}).items()
    }
    end = Position.of(1, start + 1)
    return Interval(Position.of(1, start), end, CLAIM, "", "", runs, 0, Unreadable(named))


class Disks:
    """One disk of 64 sectors, and whoever applies to it."""

    def __init__(self) -> None:
        self.disk = Disk(DiskState(disk_b=64 * SECTOR))
        self.all = [DiskTarget(0, 64 * SECTOR, cast(Target, self.disk))]

    async def apply(self, record: UnreadableRecord, interval: Interval) -> None:
        missing = await record.note(interval, self.all, [0])
        begun = self.disk.state.begin(interval.on(self.all[0], missing[0]))
        self.disk.state = begun.finish()


async def test_nothing_is_asked_of_storage_while_nothing_is_missing() -> None:
    record, disks = UnreadableRecord(cast(BlobStore, None), ours), Disks()
    await disks.apply(record, interval(0, written={0: (0, 64)}))
    await disks.apply(record, interval(1))
    assert await record.at(disks.all) == Unreadable()
    assert disks.disk.state.cursor_missing == NOTHING.digest


async def test_an_earlier_owner_changes_nothing_of_it_and_a_deleted_blob_is_written_again(
    store: BlobStore,
) -> None:
    first, disks = UnreadableRecord(store, lost), Disks()
    await disks.apply(first, interval(0, ((0, 0, 8),)))
    owner = UnreadableRecord(store, ours)
    assert await owner.at(disks.all) == Unreadable(((0, 0, 8),))
    before = await store.read(RECORD)
    with pytest.raises(LeaseLostError):
        await first.note(interval(1, written={0: (0, 4)}), disks.all, [0])
    assert await store.read(RECORD) == before
    await store.delete(RECORD)
    await disks.apply(owner, interval(1, written={0: (0, 2)}))
    assert await UnreadableRecord(store, ours).at(disks.all) == Unreadable(((0, 2, 6),))
    # Another's blob, created late, does not stand in the way, nor is it believed.
    await store.delete(RECORD)
    await store.create(RECORD, b"[]")
    await disks.apply(owner, interval(2, written={0: (2, 2)}))
    assert await UnreadableRecord(store, ours).at(disks.all) == Unreadable(((0, 4, 4),))


@pytest.mark.parametrize(
    "content", [b"{}", b"\0", b'{"states":[{"ranges":[],"covers":false,"unknown":false}],"v":2}']
)
async def test_what_a_damaged_record_or_one_of_another_version_does_not_tell_is_not_known(
    store: BlobStore, content: bytes
) -> None:
    disks = Disks()
    await disks.apply(UnreadableRecord(store, ours), interval(0, ((0, 0, 8),)))
    await store.delete(RECORD)
    await store.create(RECORD, content)
    record = UnreadableRecord(store, ours)
    assert await record.at(disks.all) == Unreadable(((0, 0, 64),), covers=True)
    assert record.problem is not None
    await disks.apply(record, interval(1, written={0: (0, 60)}))
    record = UnreadableRecord(store, ours)  # who comes after finds what was noted since
    assert await record.at(disks.all) == Unreadable(((0, 60, 4),), covers=True)
    assert record.problem is not None
    await disks.apply(record, interval(2, written={0: (60, 4)}))
    record = UnreadableRecord(store, ours)
    assert await record.at(disks.all) == Unreadable()
    assert record.problem is None


async def test_points_say_up_to_when_the_record_is_gone_until_the_disks_are_rebuilt(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    model.fail_to_read((0, 0, 100), (1, 0, 30))
    model.write(count=0, mark="one")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    await model.store.delete(RECORD)
    position = model.write(mark="two")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
        assert [problem.code for problem in machine.report().errors] == ["US606"]
    manifest = await restore(model, await Catalog.load(model.store, model.name), position, tmp_path / "two")
    for missing in (docs[-1].missing, manifest.missing):
        assert missing.covers
        assert sectors_of(Unreadable(missing.ranges)) > model.missing[position]
    for name in model.disk_names:
        await model.store.delete(seed_blob(name))
    model.write(mark="three")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
        assert machine.report().errors == []
    # Also the points before have snapshots again, which went with the disks, and say what is missing.
    assert [doc.state for doc in await check_points(model, tmp_path / "all")] == ["snapshotted"] * 3


async def test_an_upgrade_takes_over_what_the_older_version_named_and_invents_nothing(
    model: ModelMachine, tmp_path: Path
) -> None:
    await model.begin_epoch()
    model.fail_to_read((0, 0, 10))
    model.write(count=0, mark="one")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    for name in model.disk_names:  # what a version leaves that kept one blob an epoch
        metadata = (await model.store.properties(seed_blob(name))).metadata
        older = {key: value for key, value in metadata.items() if not key.endswith("_missing")}
        await model.store.set_metadata(seed_blob(name), older)
    await model.store.delete(RECORD)
    await model.store.create(older_record(model.id), b"[[0,4,6],[0,0,10]]")
    model.write(count=0, mark="two")
    await model.publish()
    async with running(model) as machine:
        docs = await until_snapshotted(machine, model)
        assert machine.report().errors == []
    assert docs[-1].missing == Unreadable(((0, 0, 10),), covers=True)


@pytest.mark.parametrize("content", [b"{}", b"[[0,0]]"])
async def test_what_an_older_version_left_and_nobody_can_read_is_not_known(
    store: BlobStore, content: bytes
) -> None:
    disks = Disks()
    await disks.apply(UnreadableRecord(store, ours), interval(0, written={0: (0, 64)}))
    disks.disk.state = msgspec.structs.replace(disks.disk.state, cursor_missing="", pending_missing="")
    assert await UnreadableRecord(store, ours).at(disks.all) == Unreadable()
    await store.create(older_record(disks.disk.state.cursor_epoch), content)
    for _ in range(2):
        record = UnreadableRecord(store, ours)
        assert await record.at(disks.all) == Unreadable(((0, 0, 64),), covers=True)
        assert record.problem is not None
        await store.delete(older_record(disks.disk.state.cursor_epoch))  # somebody tidies up
