"""Two master targets own one machine's points, one after the other, and the first does not know: it is stopped before each of its writes
in turn, the second does its whole work meanwhile, and then the first goes on. Real storage; what counts is what readers see afterwards.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from master_target.apply import DiskTarget
from master_target.points import PointMaker
from master_target.retention import Pruner, RetentionPolicy
from master_target.roll import OwnedRoll
from master_target.targets.state import DiskInterval
from shared.blob import BlobStore
from shared.errors import LeaseLostError, SeedDiskError, StorageError
from shared.log import names
from shared.log.epochs import EpochDisk, allocate_epoch
from shared.recovery import point_store, points
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position
from tests.epoch_ids import CLAIM
from tests.marks import some
from tests.master_parts import open_page_blob, stored_apart

DISK_B = 64 * 1024
HOUR_NS = 3600 * 1_000_000_000


class GatedStore(BlobStore):
    """A store that stops before its write number `stop_at`, until `go_on` is set."""

    stop_at: int
    writes: int
    stopped: asyncio.Event
    go_on: asyncio.Event

    @classmethod
    def over(cls, store: BlobStore, stop_at: int) -> GatedStore:
        gated = copy.copy(store)
        gated.__class__ = cls
        assert isinstance(gated, GatedStore)
        gated.stop_at, gated.writes = stop_at, 0
        gated.stopped, gated.go_on = asyncio.Event(), asyncio.Event()
        return gated

    async def _gate(self) -> None:
        self.writes += 1
        if self.writes == self.stop_at:
            self.stopped.set()
            await self.go_on.wait()

    async def create(self, name: str, data: bytes, metadata: Mapping[str, str] | None = None) -> str:
        await self._gate()
        return await super().create(name, data, metadata)

    async def replace(
        self, name: str, data: bytes, if_match: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> str:
        await self._gate()
        return await super().replace(name, data, if_match, metadata)

    async def delete(self, *args: Any, **more: Any) -> bool:
        await self._gate()
        return await super().delete(*args, **more)

    async def snapshot(self, *args: Any, **more: Any) -> str:
        await self._gate()
        return await super().snapshot(*args, **more)


@pytest.fixture(autouse=True)
def an_hour_between_points(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_apart(monkeypatch, 3600)


async def unknown(_: Position) -> int:
    return 0


async def untold(_: Position) -> str:
    return ""


def mark(batch: int) -> PointDoc:
    return logged_point("web1", Position.of(1, batch), CLAIM, batch * HOUR_NS, "crash", [f"m{batch}"])


async def own(store: BlobStore, marks: Sequence[int]) -> None:
    """What an owner does from its start to its end: points for the marks 1-1, 1-2, …, snapshots at each; old ones expire on the way."""
    maker = PointMaker(store, "web1")
    await maker.take()
    seed = await open_page_blob(store, "web1", "sda", DISK_B)
    disks = [DiskTarget(0, DISK_B, seed)]
    pruner = Pruner(store, "web1", RetentionPolicy(all_s=1.5 * 3600, hourly_s=0, orphan_s=0))
    try:
        for batch in marks:
            at = seed.state.cursor
            end = Position.of(1, batch)
            await maker.document([mark(batch)], unknown, untold)
            if at < end:
                await seed.begin(DiskInterval(at if at.epoch else Position.of(1, 0), end, DISK_B, CLAIM))
                await seed.write(batch * 512, memoryview(bytes([batch]) * 512))
                await seed.finish()
            if seed.state.cursor == end:
                await maker.take_snapshots(end, disks)
            await pruner.prune(maker.roll, [seed])
        assert seed.state.clean
    finally:
        await seed.close()


async def fenced_or_done(work: Awaitable[None]) -> None:
    """A stale owner may fail, by a name of storage's or the disk's, or do what changes nothing."""
    try:
        await work
    except (StorageError, SeedDiskError):
        return


async def seen(store: BlobStore) -> list[tuple[PointDoc, bool]]:
    """What readers see: each point, and whether its snapshots are there and show its position."""
    found = []
    for doc in await point_store.list_docs(store, "web1"):
        whole = True
        for disk, snapshot in doc.snapshots.items():
            there = {i.snapshot: i.metadata async for i in store.list(f"disks/{disk}.vhd", snapshots=True)}
            whole = whole and there.get(snapshot, {}).get("cursor") == doc.id
        found.append((doc, whole))
    return found


async def writes_of_one_owner(store: BlobStore) -> int:
    gated = GatedStore.over(store, 0)
    await own(gated, (1, 2, 3))
    return gated.writes


async def clear(store: BlobStore) -> None:
    for prefix in ("points/", "disks/"):
        for name in [info.name async for info in store.list(prefix)]:
            try:
                await store.delete(name)
            except StorageError:
                await store.leases.break_now(name)
                await store.delete(name)


@pytest.mark.parametrize("newest", some((3, 5), short=(3,)))
async def test_a_stale_owner_stopped_before_any_of_its_writes_changes_nothing_that_the_new_one_made(
    store: BlobStore, newest: int
) -> None:
    count = await writes_of_one_owner(store)
    assert count > 10
    for stop_at in range(2, count + 1):  # the first is the roll itself: before that, nobody owns anything
        await clear(store)
        stale = GatedStore.over(store, stop_at)
        first = asyncio.create_task(fenced_or_done(own(stale, (1, 2, 3))))
        await stale.stopped.wait()
        await own(store, range(1, newest + 1))
        before = await seen(store)
        stale.go_on.set()
        await first
        after = await seen(store)
        assert after == before, f"stopped before write {stop_at}"
        assert [doc.batch for doc, _ in after] == [newest - 1, newest]
        assert all(whole for _, whole in after)
        # What it left behind goes with the next owner's pruning.
        maker = PointMaker(store, "web1")
        await maker.take()
        seed = await open_page_blob(store, "web1", "sda", DISK_B)
        await Pruner(store, "web1", RetentionPolicy(all_s=1.5 * 3600, hourly_s=0)).prune(maker.roll, [seed])
        await seed.close()
        left = [info.name async for info in store.list(points.FOLDER)]
        assert left == [points.blob_name(Position.of(1, b)) for b in (newest - 1, newest)] + [points.ROLL]


async def test_snapshots_that_a_late_owner_names_are_kept_for_it(store: BlobStore) -> None:
    """It took its snapshots and stopped before it could say so; the next owner, who has not come to that point, removes orphans."""
    count = 0
    while (
        True
    ):  # its third write after the roll, the document and the roll again: the document with the snapshots
        count += 1
        await clear(store)
        stale = GatedStore.over(store, count)
        first = asyncio.create_task(fenced_or_done(own(stale, (1,))))
        await stale.stopped.wait()
        if [i async for i in store.list("disks/sda.vhd", snapshots=True) if i.snapshot]:
            break
        stale.go_on.set()
        await first
    maker = PointMaker(store, "web1")
    await maker.take()
    seed = await open_page_blob(store, "web1", "sda", DISK_B)
    pruner = Pruner(store, "web1", RetentionPolicy(orphan_s=0))
    await pruner.prune(maker.roll, [seed])
    stale.go_on.set()
    await first
    await pruner.prune(maker.roll, [seed])
    await seed.close()
    ((doc, whole),) = await seen(store)
    assert (doc.state, whole) == ("snapshotted", True)


async def test_an_owner_that_lost_the_points_says_who_has_them(store: BlobStore) -> None:
    old, new = PointMaker(store, "web1"), PointMaker(store, "web1")
    await old.take()
    await new.take()
    with pytest.raises(
        StorageError, match="another master target took them: their roll has term 2, ours is 1"
    ):
        await old.document([mark(1)], unknown, untold)
    assert await point_store.list_docs(store, "web1") == []
    await new.document([mark(1)], unknown, untold)
    assert [doc.term for doc in await point_store.list_docs(store, "web1")] == [2]


async def test_points_that_are_added_while_others_expire_are_one_owners(store: BlobStore) -> None:
    roll = await OwnedRoll.take(store, "web1")
    for batch in range(1, 5):
        await roll.add(mark(batch))
    await asyncio.gather(roll.strike([Position.of(1, 1), Position.of(1, 2)]), roll.add(mark(5)), roll.check())
    found = await point_store.read_roll(store)
    assert found is not None
    assert sorted(found.positions) == [Position.of(1, batch) for batch in (3, 4, 5)]


async def put_back(store: BlobStore, name: str, data: bytes) -> None:
    await store.delete(name)
    await store.create(name, data)


async def test_an_owner_whose_terms_number_was_given_out_again_changes_no_points(store: BlobStore) -> None:
    """The roll was set back to before it took the machine. The next owner's is the same to the letter, but for its claim."""
    await (await OwnedRoll.take(store, "web1")).add(mark(1))
    copied = await store.read(points.ROLL)
    first = await OwnedRoll.take(store, "web1")
    await put_back(store, points.ROLL, copied)
    second = await OwnedRoll.take(store, "web1")
    assert second.term == first.term
    with pytest.raises(LeaseLostError, match="set back"):
        await first.check()
    await second.add(mark(2))
    with pytest.raises(LeaseLostError):  # the very same change is not its own
        await first.add(mark(2))
    await second.check()


async def test_a_roll_that_was_set_back_loses_no_point_that_has_snapshots(store: BlobStore) -> None:
    await own(store, [1])
    copied = await store.read(points.ROLL)
    for _ in range(2):
        await own(store, [2, 3])
    await put_back(store, points.ROLL, copied)
    before = await seen(store)
    assert [(doc.id, doc.state, whole) for doc, whole in before][-2:] == [
        ("1-2", "snapshotted", True),
        ("1-3", "snapshotted", True),
    ]
    maker = PointMaker(store, "web1")
    await maker.take()
    assert maker.roll.newest == Position.of(1, 3)
    assert maker.roll.term > max(doc.term for doc, _ in before)
    await maker.document([mark(2), mark(3)], unknown, untold)  # found in the index again
    assert await seen(store) == before


async def test_a_stale_owner_with_our_number_may_still_name_the_snapshots_of_its_point(
    store: BlobStore,
) -> None:
    """They are no orphans, although its document carries our term's number."""
    stale = PointMaker(store, "web1")
    await stale.take()
    await stale.document([mark(1)], unknown, untold)
    stored = await point_store.read(store, mark(1).position)
    assert stored is not None
    await store.delete(points.ROLL)
    await point_store.delete(store, mark(1).position)
    roll = await OwnedRoll.take(store, "web1")
    await point_store.write_new(store, stored.doc)  # late
    await roll.add(mark(1))
    assert roll.term == stored.doc.term
    seed = await open_page_blob(store, "web1", "sda", DISK_B)
    try:
        await seed.begin(DiskInterval(Position.of(1, 0), Position.of(1, 1), DISK_B, CLAIM))
        await seed.finish()
        await seed.snapshot()
        pruner = Pruner(store, "web1", RetentionPolicy(orphan_s=0))
        for _ in range(2):
            await pruner.prune(roll, [seed])
        assert len(await seed.snapshots()) == 1
    finally:
        await seed.close()


@pytest.mark.parametrize("seen_before", [True, False])
async def test_a_stale_owner_removes_no_document_that_a_newer_one_wrote_where_a_point_had_expired(
    store: BlobStore, seen_before: bool
) -> None:
    """As when the log was set back, and has a mark there again: before the newest point."""

    def newer(batch: int) -> PointDoc:
        return msgspec.structs.replace(mark(batch), marks=("newer",))

    stale = GatedStore.over(store, 0)
    maker = PointMaker(stale, "web1")
    await maker.take()
    await maker.document([mark(1), mark(2), mark(3)], unknown, untold)
    await maker.roll.strike([Position.of(1, 1)])
    pruned = fenced_or_done(Pruner(stale, "web1", RetentionPolicy()).prune(maker.roll, []))
    if seen_before:
        stale.stop_at = stale.writes + 1
        pruning = asyncio.create_task(pruned)
        await stale.stopped.wait()  # before it removes the document
    roll = await OwnedRoll.take(store, "web1")
    stored = await point_store.read(store, Position.of(1, 1))
    assert stored is not None
    await point_store.change(store, roll.sign(newer(1)), stored.etag)
    await roll.add(newer(1))
    stale.go_on.set()
    await (pruning if seen_before else pruned)
    assert [doc.marks for doc in await point_store.list_docs(store, "web1")] == [("newer",), ("m2",), ("m3",)]


@pytest.mark.parametrize("documented", [True, False])
async def test_a_roll_that_is_made_anew_keeps_the_points_of_the_present_epoch(
    store: BlobStore, documented: bool
) -> None:
    """A document that another epoch with the same number left stands behind all of them."""
    disks = [EpochDisk(0, "sda", "", 8)]
    epoch = await allocate_epoch(store, "web1", disks=disks, reason="test", agent_id="a")
    if not documented:
        await store.delete(names.epoch_document(1))

    def present(batch: int) -> PointDoc:
        return msgspec.structs.replace(mark(batch), claim=epoch.claim)

    await point_store.write_new(store, mark(1000))
    for batch in (10, 20):
        await point_store.write_new(store, present(batch))
    maker = PointMaker(store, "web1")
    await maker.take()
    await maker.document([present(30)], unknown, untold)
    assert [doc.batch for doc in await point_store.list_docs(store, "web1")] == [10, 20, 30]
    await Pruner(store, "web1", RetentionPolicy()).prune(maker.roll, [])
    assert [doc.batch for doc in (await point_store.survey(store, "web1")).docs] == [10, 20, 30, 1000]
