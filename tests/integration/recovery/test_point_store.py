"""Point documents in real blob storage."""

from __future__ import annotations

import base64

import msgspec
import pytest

from master_target.retention import Pruner, RetentionPolicy
from master_target.roll import OwnedRoll
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.errors import IntegrityError, PreconditionError
from shared.log.epochs import EpochDisk
from shared.recovery import point_store, points
from shared.recovery.folder import Journal, Origin
from shared.recovery.points import PointDoc, Roll, logged_point
from shared.recovery.position import Position
from shared.recovery.unreadable import MOST_RUNS, Unreadable, after
from shared.vocabulary import PointState
from tests.epoch_ids import CLAIM


def doc(batch: int, disks: int = 1) -> PointDoc:
    made = logged_point("web1", Position.of(1, batch), CLAIM, batch, "crash", ["m"])
    return msgspec.structs.replace(
        made, snapshots={f"disk{i}": "2024-01-01T00:00:00.0000000Z" for i in range(disks)}
    )


async def test_documents_small_and_large_are_listed_in_log_order(store: BlobStore) -> None:
    docs = [doc(12), doc(9), doc(100, disks=200), doc(3)]
    for made in docs:
        assert await point_store.write_new(store, made)
    listed = await point_store.list_docs(store, "web1")
    assert listed == sorted(docs, key=lambda d: d.position)
    large = await store.properties(points.blob_name(docs[2].position))
    assert not large.metadata  # too large for metadata: its content is read


async def test_a_listing_reads_documents_with_as_many_missing_ranges_as_there_may_be(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for each of them, each minute, is more than the budget of a month."""
    last = (8 << 40) // SECTOR
    named = Unreadable(tuple((12 + n % 4, last - 4096 * (n + 1), 2048) for n in range(5000)))
    missing = after(Unreadable(), {}, named)
    disks = tuple(EpochDisk(n, f"nvme{n}n1", "S4EWNX0R123456", last) for n in range(12, 16))
    snapshots = {disk.name: "2026-01-01T00:00:00.0000000Z" for disk in disks}
    made = msgspec.structs.replace(
        doc(1),
        state=PointState.SNAPSHOTTED,
        target="page-blob",
        digest="0" * 32,
        listed_ns=1_700_000_000_000_000_000,
        term=1000,
        term_claim=CLAIM,
        disks=disks,
        snapshots=snapshots,
        unreadable=missing.ranges,
        unreadable_covers=missing.covers,
    )
    assert len(made.unreadable) == MOST_RUNS
    await point_store.write_new(store, made)
    read = await stored(store, 1)
    monkeypatch.setattr(BlobStore, "read", None)
    assert (await point_store.survey(store, "web1")).docs == [made] == [read.doc]


def test_what_older_versions_wrote_covers_what_is_missing() -> None:
    """They only added to the ranges, as they came."""
    made = msgspec.structs.replace(doc(1), unreadable=((0, 100, 100), (0, 0, 400), (0, 8, 1)))
    data = msgspec.json.encode(made)
    assert b"unreadable_covers" not in data
    assert points.decode(data, points.blob_name(made.position)).missing == Unreadable(((0, 0, 400),), True)
    assert doc(1).missing == Unreadable()
    origin = Origin(machine="web1", id="1-1", claim=CLAIM, disks=())
    journal = Journal(origin=origin, base=made, replayed=1, unreadable=made.unreadable)
    decoded = msgspec.json.decode(msgspec.json.encode(journal), type=Journal)
    assert decoded.missing == Unreadable(((0, 0, 400),), True)
    journal.missing = Unreadable(((0, 0, 4),))
    assert msgspec.json.decode(msgspec.json.encode(journal), type=Journal).missing == journal.missing
    said = msgspec.structs.replace(made, unreadable=((0, 0, 4),), unreadable_covers=False)
    read = points.decode(msgspec.json.encode(said), points.blob_name(made.position))
    assert read.missing == Unreadable(((0, 0, 4),))


@pytest.mark.parametrize("data", [b"", b'{"id":"\xff"}', b'{"more":' + b"[" * 4000])
@pytest.mark.parametrize("in_metadata", [True, False])
async def test_a_document_that_cannot_be_read_does_not_hide_the_others(
    store: BlobStore, data: bytes, in_metadata: bool
) -> None:
    await point_store.write_new(store, doc(1))
    metadata = {"doc": base64.b64encode(data).decode()} if in_metadata else {}
    await store.create(points.blob_name(Position.of(1, 2)), data, metadata)
    await point_store.write_new(store, doc(3))
    assert await point_store.list_docs(store, "web1") == [doc(1), doc(3)]
    with pytest.raises(IntegrityError, match="000000000002"):
        await point_store.read(store, Position.of(1, 2))


async def stored(store: BlobStore, batch: int) -> point_store.Stored:
    found = await point_store.read(store, Position.of(1, batch))
    assert found is not None
    return found


async def test_a_document_is_written_once_and_changed_only_as_it_was_seen(store: BlobStore) -> None:
    assert await point_store.write_new(store, doc(1))
    assert not await point_store.write_new(store, doc(1, disks=5))
    seen = await stored(store, 1)
    assert seen.doc == doc(1)
    await point_store.change(store, doc(1, disks=5), seen.etag)
    await point_store.change(store, doc(1, disks=5), seen.etag)  # as when the first answer was lost
    with pytest.raises(PreconditionError):
        await point_store.change(store, doc(1, disks=7), seen.etag)
    assert await point_store.list_docs(store, "web1") == [doc(1, disks=5)]
    seen = await stored(store, 1)
    await point_store.delete(store, Position.of(1, 1))
    await point_store.delete(store, Position.of(1, 1))
    with pytest.raises(PreconditionError):
        await point_store.change(store, doc(1), seen.etag)
    assert await point_store.read(store, Position.of(1, 1)) is None
    assert await point_store.list_docs(store, "web1") == []


async def test_what_the_roll_does_not_name_is_no_point(store: BlobStore) -> None:
    for batch in (1, 2, 3):
        await point_store.write_new(store, doc(batch))
    await store.create(points.ROLL, msgspec.json.encode(Roll(machine="web1", term=1, points=("1-1", "1-3"))))
    assert await point_store.list_docs(store, "web1") == [doc(1), doc(3)]


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"machine":"web1","term":1,"points":["?"]}', b'{"machine":"web1","term":1,"v":2}']
)
async def test_a_roll_that_cannot_be_read_hides_no_point(store: BlobStore, data: bytes) -> None:
    await point_store.write_new(store, doc(1))
    await store.create(points.ROLL, data)
    assert await point_store.list_docs(store, "web1") == [doc(1)]
    with pytest.raises(IntegrityError, match="roll"):
        await point_store.read_roll(store)


async def test_a_document_that_stands_under_the_name_of_another_point_is_none(store: BlobStore) -> None:
    """Copied by hand, say. The name decides which point there is: so every document that is found is the one of its name."""
    for batch in (4, 5):
        doc = logged_point("web1", Position.of(1, batch), CLAIM, 1, "crash", ["m"])
        await point_store.write_new(store, doc)
    five = await store.read(points.blob_name(Position.of(1, 5)))
    await store.replace(points.blob_name(Position.of(1, 4)), five)
    await store.create(f"{points.FOLDER}1-5.json", five)
    await store.delete(points.blob_name(Position.of(1, 5)))
    found = await point_store.survey(store, "web1")
    assert found.docs == []
    assert found.unreadable == {Position.of(1, 4)}
    await Pruner(store, "web1", RetentionPolicy()).prune(await OwnedRoll.take(store, "web1"), [])
