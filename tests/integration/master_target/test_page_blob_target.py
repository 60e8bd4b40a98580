"""What only page blobs have: a VHD that others can read, and fences against stale writers."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from master_target.apply import DiskTarget, apply, make_interval
from master_target.bridge import BridgeSettings
from master_target.targets import vhd
from master_target.targets.page_blob import PageBlobTarget
from master_target.targets.state import DiskInterval
from shared.batch import Op, make_extents
from shared.blob import BlobStore
from shared.blob.pages import PageBlobs
from shared.errors import DiskTooLargeError, LeaseLostError, PreconditionError, SeedDiskError
from shared.log.epochs import EpochDisk
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from tests.epoch_ids import CLAIM, epoch_info
from tests.logs import make_batch

BLOB = seed_blob("sda")
MIB = 1024 * 1024
FIRST = (Position.of(1, 0), Position.of(1, 5))
SECOND = (Position.of(1, 5), Position.of(1, 9))


def qemu_info(path: Path) -> dict[str, Any]:
    if shutil.which("qemu-img") is None:
        pytest.fail("qemu-img is missing: run `make setup`")
    command = ["qemu-img", "info", "-f", "vpc", "--output", "json", str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


@pytest.mark.parametrize("disk_b", [512, MIB, 3 * MIB + 512, 2040 * MIB - 512])
async def test_the_blob_is_a_fixed_vhd_of_the_right_size(
    store: BlobStore, tmp_path: Path, disk_b: int
) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", disk_b)
    await target.begin(DiskInterval(*FIRST, disk_b, CLAIM))
    await target.write(disk_b - 512, memoryview(b"z" * 512))
    await target.finish()
    await target.close()

    capacity_b = -(-disk_b // MIB) * MIB
    path = tmp_path / "sda.vhd"
    with path.open("wb") as file:
        file.truncate((await store.properties(BLOB)).size_b)
        for offset, length in await store.pages.ranges(BLOB):
            file.seek(offset)
            file.write(await store.read(BLOB, offset, length))
    assert (await asyncio.to_thread(qemu_info, path))["virtual-size"] == capacity_b
    with path.open("rb") as file:
        assert path.stat().st_size == capacity_b + 512
        file.seek(capacity_b)
        assert vhd.disk_size_b(file.read()) == capacity_b
        file.seek(disk_b - 512)
        assert file.read(512) == b"z" * 512


async def test_a_write_of_an_earlier_interval_cannot_land(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)
    await target.begin(DiskInterval(*FIRST, MIB, CLAIM))
    earlier = target.state.sequence
    await target.finish()
    await target.begin(DiskInterval(*SECOND, MIB, CLAIM))
    lease = target._lease.id
    with pytest.raises(PreconditionError):
        await store.pages.write(BLOB, 0, b"x" * 512, lease, earlier)
    with pytest.raises(PreconditionError):
        await store.pages.clear(BLOB, 0, 512, lease, earlier)
    await store.pages.set_sequence_number(BLOB, earlier, lease)  # a stray raise changes nothing
    await target.write(0, memoryview(b"y" * 512))
    await target.finish()
    await target.close()


async def test_an_owner_that_lost_its_lease_changes_nothing_any_more(store: BlobStore) -> None:
    old = await PageBlobTarget.open(store, "web1", "sda", MIB)
    await old.begin(DiskInterval(*FIRST, MIB, CLAIM))
    await store.leases.break_now(BLOB)
    new = await PageBlobTarget.open(store, "web1", "sda", MIB)
    for attempt in (
        old.write(0, memoryview(b"x" * 512)),
        old.clear(0, 512),
        old.finish(),
        store.pages.set_sequence_number(BLOB, 100, old._lease.id),
    ):
        with pytest.raises(LeaseLostError):
            await attempt
    assert (await store.properties(BLOB)).metadata["cursor"] == "0-0"
    await new.begin(DiskInterval(*FIRST, MIB, CLAIM))
    await new.finish()
    with pytest.raises(LeaseLostError):
        await store.snapshot(BLOB, old._lease.id)
    await new.close()
    await old.close()


@pytest.mark.parametrize("step", ["begin", "snapshot"])
async def test_an_owner_whose_disk_went_on_under_another_is_told_of_the_takeover_and_of_no_damage(
    store: BlobStore, step: str
) -> None:
    old = await PageBlobTarget.open(store, "web1", "sda", MIB)
    new = await PageBlobTarget.open(store, "web1", "sda", MIB, take=True)
    await new.begin(DiskInterval(*FIRST, MIB, CLAIM))
    await new.finish()
    with pytest.raises(LeaseLostError):
        await (old.snapshot() if step == "snapshot" else old.begin(DiskInterval(*FIRST, MIB, CLAIM)))
    await new.close()
    await old.close()


async def test_a_stray_write_between_finish_and_snapshot_does_not_stop_the_snapshot(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)
    await target.begin(DiskInterval(*FIRST, MIB, CLAIM))
    await target.write(0, memoryview(b"x" * 512))
    await target.finish()
    await store.pages.write(BLOB, 0, b"x" * 512, target._lease.id, target.state.sequence)
    await target.snapshot()
    await target.close()


async def test_foreign_metadata_are_noticed_before_anything_is_written(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)
    foreign = target.state.encode() | {"cursor": "7-7", "pending": "7-7"}
    await store.set_metadata(BLOB, foreign, target._lease.id)
    with pytest.raises(SeedDiskError, match="changed by somebody else"):
        await target.begin(DiskInterval(*FIRST, MIB, CLAIM))
    await target.close()


async def test_shrinking_and_growing_leave_no_old_bytes_behind_the_disk(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", 3 * MIB)
    await target.begin(DiskInterval(*FIRST, 3 * MIB, CLAIM))
    await target.write(0, memoryview(b"x" * 3 * MIB))
    await target.finish()
    disk_b = 2 * MIB - 4096
    await target.begin(DiskInterval(Position.of(2, 0), Position.of(2, 1), disk_b, CLAIM))
    await target.finish()
    await target.close()
    assert (await store.properties(BLOB)).size_b == 2 * MIB + 512
    assert await store.read(BLOB, disk_b, 4096) == bytes(4096)
    assert vhd.disk_size_b(await store.read(BLOB, 2 * MIB, 512)) == 2 * MIB


class StingyPages(PageBlobs):
    """Answers page reads with `most_b` bytes at most."""

    most_b = 512

    async def read(self, name: str, offset: int, length: int, snapshot: str | None = None) -> bytes:
        return (await super().read(name, offset, length, snapshot))[: self.most_b]


def stingy(store: BlobStore, most_b: int) -> BlobStore:
    found = copy.copy(store)
    found.pages = StingyPages(store._core)
    found.pages.most_b = most_b
    return found


async def test_a_gap_that_is_read_in_short_answers_is_bridged_without_a_shift(store: BlobStore) -> None:
    target = await PageBlobTarget.open(stingy(store, 512), "web1", "sda", MIB)
    await target.begin(DiskInterval(*FIRST, MIB, CLAIM))
    old = bytes(range(1, 17)) * 32 * 16  # 16 sectors
    await target.write(0, memoryview(old))
    await target.finish()
    rows = [(0, sector, 1, Op.WRITE) for sector in (0, 8, 15)]
    made = make_batch(6).batch
    batch = msgspec.structs.replace(made, extents=make_extents(rows), payload=b"n" * 512 * 3)
    interval = await make_interval(*SECOND, [batch], epoch_info(EpochDisk(0, "sda", "", MIB // 512)))
    await apply(interval, [DiskTarget(0, MIB, target)], [0], BridgeSettings(behind_s=0))
    wanted = bytearray(old)
    for sector in (0, 8, 15):
        wanted[sector * 512 : sector * 512 + 512] = b"n" * 512
    assert await store.pages.read(BLOB, 0, len(old)) == wanted
    await target.close()


async def test_a_read_that_gets_nothing_is_an_error(store: BlobStore) -> None:
    target = await PageBlobTarget.open(stingy(store, 0), "web1", "sda", MIB)
    with pytest.raises(SeedDiskError, match="could not be read"):
        await target.read(512, 1024)
    await target.close()


async def test_apply_takes_no_short_answer_of_any_target(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)

    async def short(offset_b: int, length_b: int) -> bytes:
        return bytes(length_b - 512)

    monkeypatch.setattr(target, "read", short)
    rows = [(0, sector, 1, Op.WRITE) for sector in (0, 8, 15)]
    batch = msgspec.structs.replace(make_batch(1).batch, extents=make_extents(rows), payload=b"n" * 512 * 3)
    interval = await make_interval(*FIRST, [batch], epoch_info(EpochDisk(0, "sda", "", MIB // 512)))
    with pytest.raises(SeedDiskError, match="sda could not be read"):
        await apply(interval, [DiskTarget(0, MIB, target)], [0], BridgeSettings(behind_s=0))
    await target.close()


async def test_a_disk_beyond_the_limit_of_page_blobs_is_refused_before_anything_is_made(
    store: BlobStore,
) -> None:
    with pytest.raises(DiskTooLargeError, match="sda"):
        await PageBlobTarget.open(store, "web1", "sda", 9 << 40)
    assert [info.name async for info in store.list("disks/")] == []
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)
    with pytest.raises(DiskTooLargeError, match="sda"):  # it grew
        await target.begin(DiskInterval(*FIRST, 9 << 40, CLAIM))
    assert target.state.clean
    await target.close()
