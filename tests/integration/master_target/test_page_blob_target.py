"""What only page blobs have: a VHD that others can read, and fences against stale writers."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from master_target.targets import vhd
from master_target.targets.page_blob import PageBlobTarget
from shared.blob import BlobStore
from shared.errors import LeaseLostError, PreconditionError, SeedDiskError
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob

BLOB = seed_blob("web1", "sda")
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
    await target.begin(*FIRST, disk_b)
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
    await target.begin(*FIRST, MIB)
    earlier = target.state.sequence
    await target.finish()
    await target.begin(*SECOND, MIB)
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
    await old.begin(*FIRST, MIB)
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
    await new.begin(*FIRST, MIB)
    await new.finish()
    with pytest.raises(LeaseLostError):
        await store.snapshot(BLOB, old._lease.id)
    await new.close()
    await old.close()


async def test_a_stray_write_between_finish_and_snapshot_does_not_stop_the_snapshot(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", MIB)
    await target.begin(*FIRST, MIB)
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
        await target.begin(*FIRST, MIB)
    await target.close()


async def test_shrinking_and_growing_leave_no_old_bytes_behind_the_disk(store: BlobStore) -> None:
    target = await PageBlobTarget.open(store, "web1", "sda", 3 * MIB)
    await target.begin(*FIRST, 3 * MIB)
    await target.write(0, memoryview(b"x" * 3 * MIB))
    await target.finish()
    disk_b = 2 * MIB - 4096
    await target.begin(Position.of(2, 0), Position.of(2, 1), disk_b)
    await target.finish()
    await target.close()
    assert (await store.properties(BLOB)).size_b == 2 * MIB + 512
    assert await store.read(BLOB, disk_b, 4096) == bytes(4096)
    assert vhd.disk_size_b(await store.read(BLOB, 2 * MIB, 512)) == 2 * MIB
