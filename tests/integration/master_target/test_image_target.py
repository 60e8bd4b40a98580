"""What only image files have: their state in a document beside them."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from master_target.targets import image_file
from master_target.targets.image_file import ImageTarget
from master_target.targets.state import DiskInterval
from shared.batch import Buffer
from shared.errors import ImageFileError, LeaseHeldError, LeaseLostError, SeedDiskError
from shared.host import durable
from shared.recovery.position import NOWHERE, Position
from shared.recovery.sparse import SparseFile
from tests.epoch_ids import CLAIM

DISK_B = 1024 * 1024
FIRST = (Position.of(1, 0), Position.of(1, 5))


@pytest.mark.parametrize("data", [b"", b'{"cursor":"\xff"}', b'{"cursor":' + b"[" * 100_000])
async def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    await (await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)).close()
    (tmp_path / "web1" / "sda.state.json").write_bytes(data)
    with pytest.raises(SeedDiskError, match=r"sda\.state\.json"):
        await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)


async def test_a_cancelled_write_ends_only_when_nothing_of_it_can_land_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    writing, go_on = threading.Event(), threading.Event()
    real = SparseFile.write

    def slow_write(image: SparseFile, offset_b: int, data: bytes | memoryview) -> None:
        writing.set()
        go_on.wait()
        real(image, offset_b, data)

    monkeypatch.setattr(SparseFile, "write", slow_write)
    task = asyncio.create_task(target.write(0, memoryview(b"x" * 512)))
    await asyncio.to_thread(writing.wait)
    early = set[asyncio.Task[None]]()
    for _ in range(2):
        task.cancel()
        early |= (await asyncio.wait([task], timeout=0.05))[0]
    go_on.set()
    await asyncio.wait([task])
    assert not early
    assert task.cancelled()
    assert await target.read(0, 512) == b"x" * 512
    await target.close()


async def test_an_open_that_was_cancelled_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    real = durable.replace_file

    def slow(path: Path, data: Buffer) -> None:
        opening.set()  # and locked
        go_on.wait()
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_file", slow)
        task = asyncio.create_task(ImageTarget.open(tmp_path, "web1", "sda", DISK_B))
        await asyncio.to_thread(opening.wait)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([task])
    assert task.cancelled()
    await (await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)).close()


@pytest.mark.parametrize("full_at", ["copy", "state"])
async def test_a_snapshot_that_cannot_be_completed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def replaced(path: Path, data: Buffer) -> None:
        path.write_bytes(data)  # the document is there, and then its folder cannot be synced
        no_room()

    target = await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.write(0, memoryview(b"x" * 8192))
    await target.finish()
    with monkeypatch.context() as patch:
        if full_at == "copy":
            patch.setattr(os, "fsync", no_room)
        else:
            patch.setattr(durable, "replace_file", replaced)
        for _ in range(2):
            with pytest.raises(ImageFileError, match="No space left"):
                await target.snapshot()
    assert sorted(p.name for p in (tmp_path / "web1").iterdir()) == [
        ".sda.lock",
        "sda.img",
        "sda.state.json",
    ]
    await target.snapshot()
    assert [s.position for s in await target.snapshots()] == [FIRST[1]]
    await target.close()


async def test_an_image_that_is_removed_lets_no_second_owner_in_and_is_begun_anew(tmp_path: Path) -> None:
    owner = await begun(tmp_path)
    (tmp_path / "web1" / "sda.img").unlink()
    with pytest.raises(LeaseHeldError, match="another master target"):
        await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)
    with pytest.raises(LeaseLostError, match="removed"):
        await owner.finish()
    await owner.close()
    assert await cursor_when_opened(tmp_path) == NOWHERE


@pytest.mark.parametrize("comes_back", ["another", "a copy of before", "it"])
async def test_an_image_that_was_out_of_its_place_when_its_owner_looked_is_begun_anew_whatever_lies_there_then(
    tmp_path: Path, comes_back: str
) -> None:
    owner = await begun(tmp_path)
    image, away = tmp_path / "web1" / "sda.img", tmp_path / "away"
    copy = image.read_bytes()  # of in the middle of the interval
    await owner.finish()
    image.rename(away)
    with pytest.raises(LeaseLostError, match="removed"):
        await owner.snapshot()
    if comes_back == "it":
        away.rename(image)
    else:
        image.write_bytes(copy if comes_back == "a copy of before" else bytes(len(copy)))
    await owner.close()
    assert await cursor_when_opened(tmp_path) == NOWHERE


async def test_an_image_that_goes_while_it_is_opened_is_not_made_anew_under_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await begun(tmp_path)
    await owner.finish()
    await owner.close()
    image = tmp_path / "web1" / "sda.img"
    opened = SparseFile

    def goes_first(path: Path, size_b: int, *, create: bool = True) -> SparseFile:
        image.unlink()
        return opened(path, size_b, create=create)

    monkeypatch.setattr(image_file, "SparseFile", goes_first)
    with pytest.raises(ImageFileError, match="opened"):
        await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)
    monkeypatch.undo()
    assert await cursor_when_opened(tmp_path) == NOWHERE


@pytest.mark.parametrize("clean", [False, True])
async def test_an_image_that_is_replaced_gets_neither_state_nor_snapshot_of_the_one_that_was_written_to(
    tmp_path: Path, clean: bool
) -> None:
    owner = await begun(tmp_path)
    if clean:
        await owner.finish()
    other = tmp_path / "other"
    other.write_bytes(bytes(DISK_B))
    other.replace(tmp_path / "web1" / "sda.img")
    with pytest.raises(LeaseLostError, match="another file in its place"):
        await (owner.snapshot() if clean else owner.finish())
    assert await owner.snapshots() == []
    await owner.close()
    assert await cursor_when_opened(tmp_path) == NOWHERE


@pytest.mark.parametrize("clean", [False, True])
async def test_an_owner_whose_files_were_all_removed_touches_nothing_of_the_next_one(
    tmp_path: Path, clean: bool
) -> None:
    old = await begun(tmp_path)
    if clean:
        await old.finish()
    for path in (tmp_path / "web1").iterdir():
        path.unlink()
    new = await begun(tmp_path, 3)
    await new.finish()
    with pytest.raises(LeaseLostError):
        await (old.snapshot() if clean else old.finish())
    await old.close()
    assert await new.snapshots() == []
    await new.close()
    assert await cursor_when_opened(tmp_path) == Position.of(1, 3)


async def begun(folder: Path, end: int = 5) -> ImageTarget:
    target = await ImageTarget.open(folder, "web1", "sda", DISK_B)
    await target.begin(DiskInterval(FIRST[0], Position.of(1, end), DISK_B, CLAIM))
    await target.write(0, memoryview(bytes([end]) * 512))
    return target


async def cursor_when_opened(folder: Path) -> Position:
    target = await ImageTarget.open(folder, "web1", "sda", DISK_B)
    await target.close()
    return target.state.cursor
