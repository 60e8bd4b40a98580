"""What every target must do, over every implementation: page blob (on Azurite) and image file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from master_target.targets.base import Target
from master_target.targets.image_file import ImageTarget
from master_target.targets.page_blob import PageBlobTarget
from master_target.targets.state import DiskInterval
from shared.blob import BlobStore
from shared.errors import LeaseHeldError, SeedDiskError
from shared.recovery.position import NOWHERE, Position
from shared.recovery.seed import seed_blob
from tests.epoch_ids import CLAIM

DISK_B = 1024 * 1024 + 512  # no whole number of mebibytes
FIRST = (Position.of(1, 0), Position.of(1, 5))
SECOND = (Position.of(1, 5), Position.of(1, 9))


class Kind(ABC):
    """How the tests open and look into one kind of target."""

    @abstractmethod
    async def open(self, disk_b: int = DISK_B) -> Target: ...

    @abstractmethod
    async def content(self, snapshot: str | None = None) -> bytes:
        """All bytes of the disk or of a snapshot of it, read past the target."""

    @abstractmethod
    async def delete(self) -> None:
        """Deletes the disk, as an operator would; whatever stands beside it stays."""


class PageBlobKind(Kind):
    def __init__(self, store: BlobStore) -> None:
        self.store = store

    async def open(self, disk_b: int = DISK_B) -> Target:
        return await PageBlobTarget.open(self.store, "web1", "sda", disk_b)

    async def content(self, snapshot: str | None = None) -> bytes:
        return await self.store.read(seed_blob("sda"), 0, DISK_B, snapshot)

    async def delete(self) -> None:
        await self.store.delete(seed_blob("sda"))


class ImageKind(Kind):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self, disk_b: int = DISK_B) -> Target:
        return await ImageTarget.open(self.folder, "web1", "sda", disk_b)

    async def content(self, snapshot: str | None = None) -> bytes:
        return (self.folder / "web1" / (snapshot or "sda.img")).read_bytes()

    async def delete(self) -> None:
        (self.folder / "web1" / "sda.img").unlink()


@pytest.fixture(params=["page-blob", "image"])
async def kind(request: pytest.FixtureRequest, store: BlobStore, tmp_path: Path) -> Kind:
    return PageBlobKind(store) if request.param == "page-blob" else ImageKind(tmp_path)


@pytest.fixture
async def target(kind: Kind) -> AsyncIterator[Target]:
    opened = await kind.open()
    yield opened
    await opened.close()


async def fill(target: Target, offset_b: int, byte: bytes, length_b: int = 4096) -> None:
    await target.write(offset_b, memoryview(byte * length_b))


async def test_a_snapshot_shows_the_disk_as_it_is_until_it_is_changed_or_the_snapshot_deleted(
    target: Target,
) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM, "", "d1"))
    await target.finish()
    first, second = await target.snapshot(), await target.snapshot()
    assert await target.shows_as_it_is(first)
    await target.delete_snapshot(target.name, first)
    assert [await target.shows_as_it_is(one) for one in (first, second)] == [False, True]
    await target.begin(DiskInterval(*SECOND, DISK_B, CLAIM, "d1", "d2"))
    assert not await target.shows_as_it_is(second)
    await target.finish()
    assert not await target.shows_as_it_is(second)


async def test_a_new_disk_is_zero_and_at_no_position(kind: Kind, target: Target) -> None:
    assert target.state.cursor == NOWHERE
    assert target.state.clean
    assert await target.read(0, DISK_B) == bytes(DISK_B)
    assert target.name == "sda"


async def test_an_interval_writes_clears_and_moves_the_cursor(kind: Kind, target: Target) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await fill(target, 0, b"a", 8192)
    await fill(target, DISK_B - 512, b"z", 512)
    await target.clear(512, 1024)
    await target.finish()
    assert target.state.cursor == target.state.pending == FIRST[1]
    expected = b"a" * 512 + bytes(1024) + b"a" * (8192 - 1536) + bytes(DISK_B - 8192 - 512) + b"z" * 512
    assert await kind.content() == expected
    assert await target.read(512, 2048) == bytes(1024) + b"a" * 1024


async def test_a_begun_interval_is_known_after_reopening(kind: Kind) -> None:
    target = await kind.open()
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    await target.begin(DiskInterval(*SECOND, DISK_B, CLAIM))
    await fill(target, 0, b"b")
    await target.close()

    target = await kind.open()
    assert (target.state.cursor, target.state.pending) == SECOND
    assert target.state.restart == SECOND[0]
    with pytest.raises(SeedDiskError, match="No snapshot"):
        await target.snapshot()
    with pytest.raises(SeedDiskError, match="was not applied"):  # shorter than what was begun
        await target.begin(DiskInterval(SECOND[0], Position.of(1, 8), DISK_B, CLAIM))
    await target.begin(DiskInterval(*SECOND, DISK_B, CLAIM))
    await target.finish()
    assert target.state.cursor == SECOND[1]
    await target.close()


async def test_a_disk_that_was_deleted_begins_again_from_nothing(kind: Kind) -> None:
    target = await kind.open()
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await fill(target, 0, b"a")
    await target.finish()
    await target.close()
    await kind.delete()

    target = await kind.open()
    assert target.state.cursor == NOWHERE
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    await target.close()


async def test_an_interval_that_does_not_start_at_the_cursor_is_refused(target: Target) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    for start, end in [
        ((1, 4), (1, 9)),
        ((1, 6), (1, 9)),
        ((1, 5), (1, 5)),
        ((2, 1), (2, 5)),
        ((1, 0), (1, 9)),
    ]:
        with pytest.raises(SeedDiskError):
            await target.begin(DiskInterval(Position.of(*start), Position.of(*end), DISK_B, CLAIM))
    with pytest.raises(SeedDiskError, match="size changed"):
        await target.begin(DiskInterval(*SECOND, DISK_B + 512, CLAIM))


async def test_a_snapshot_names_its_position_and_keeps_its_content(kind: Kind, target: Target) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await fill(target, 4096, b"a")
    await target.finish()
    snapshot = await target.snapshot()
    before = await kind.content()

    await target.begin(DiskInterval(*SECOND, DISK_B, CLAIM))
    await fill(target, 4096, b"b")
    await target.clear(0, 4096)
    await target.finish()
    later = await target.snapshot()

    assert await kind.content(snapshot) == before
    assert await kind.content(later) == await kind.content() != before
    known = {s.id: s.position for s in await target.snapshots()}
    assert known == {snapshot: FIRST[1], later: SECOND[1]}

    await target.delete_snapshot(target.name, snapshot)
    await target.delete_snapshot(target.name, snapshot)
    assert [s.id for s in await target.snapshots()] == [later]


async def test_two_snapshots_of_one_position_are_two_snapshots(target: Target) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    assert len({await target.snapshot(), await target.snapshot()}) == 2
    assert [s.position for s in await target.snapshots()] == [FIRST[1], FIRST[1]]


async def test_a_late_deletion_of_a_snapshot_that_is_gone_meets_no_newer_one(target: Target) -> None:
    """It may be an earlier owner's: a request of storage's, or a process that stood still."""
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    orphan = await target.snapshot()
    await target.delete_snapshot(target.name, orphan)
    named = await target.snapshot()
    await target.delete_snapshot(target.name, orphan)
    assert [s.id for s in await target.snapshots()] == [named]


async def test_a_disk_has_one_owner(kind: Kind, target: Target) -> None:
    with pytest.raises(LeaseHeldError):
        await kind.open()
    await target.close()
    again = await kind.open()
    await again.close()


async def test_a_new_epoch_may_follow_an_unfinished_interval_and_resize_the_disk(
    kind: Kind, target: Target
) -> None:
    await target.begin(DiskInterval(*FIRST, DISK_B, CLAIM))
    await target.finish()
    await target.begin(DiskInterval(*SECOND, DISK_B, CLAIM))
    await fill(target, 0, b"x")
    grown_b = DISK_B + 4096
    start, end = Position.of(2, 0), Position.of(2, 3)
    await target.begin(DiskInterval(start, end, grown_b, CLAIM))
    await fill(target, grown_b - 4096, b"y")
    with pytest.raises(SeedDiskError):
        await target.snapshot()
    await target.close()

    target = await kind.open(grown_b)
    assert target.state.restart == start
    assert target.state.pending == end
    await target.begin(DiskInterval(start, end, grown_b, CLAIM))
    await fill(target, grown_b - 4096, b"y")  # what was begun is done again, whole
    await target.finish()
    assert target.state.cursor == end
    assert await target.read(grown_b - 4096, 4096) == b"y" * 4096
    await target.close()
