"""Point documents in real blob storage."""

from __future__ import annotations

import base64

import msgspec
import pytest

from shared.blob import BlobStore
from shared.errors import IntegrityError
from shared.recovery import point_store, points
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position


def doc(batch: int, disks: int = 1) -> PointDoc:
    made = logged_point("web1", Position.of(1, batch), batch, "crash", ["m"])
    return msgspec.structs.replace(
        made, snapshots={f"disk{i}": "2024-01-01T00:00:00.0000000Z" for i in range(disks)}
    )


async def test_documents_small_and_large_are_listed_in_log_order(store: BlobStore) -> None:
    docs = [doc(12), doc(9), doc(100, disks=200), doc(3)]
    for made in docs:
        assert await point_store.write_new(store, made)
    listed = await point_store.list_docs(store, "web1")
    assert listed == sorted(docs, key=lambda d: d.position)
    large = await store.properties(points.blob_name("web1", docs[2].position))
    assert not large.metadata  # too large for metadata: its content is read


@pytest.mark.parametrize("data", [b"", b'{"id":"\xff"}', b'{"more":' + b"[" * 4000])
@pytest.mark.parametrize("in_metadata", [True, False])
async def test_a_document_that_cannot_be_read_does_not_hide_the_others(
    store: BlobStore, data: bytes, in_metadata: bool
) -> None:
    await point_store.write_new(store, doc(1))
    metadata = {"doc": base64.b64encode(data).decode()} if in_metadata else {}
    await store.create(points.blob_name("web1", Position.of(1, 2)), data, metadata)
    await point_store.write_new(store, doc(3))
    assert await point_store.list_docs(store, "web1") == [doc(1), doc(3)]
    with pytest.raises(IntegrityError, match="000000000002"):
        await point_store.read(store, "web1", Position.of(1, 2))


async def test_a_point_is_written_once_and_then_replaced(store: BlobStore) -> None:
    assert await point_store.write_new(store, doc(1))
    assert not await point_store.write_new(store, doc(1, disks=5))
    assert await point_store.read(store, "web1", Position.of(1, 1)) == doc(1)
    await point_store.replace(store, doc(1, disks=5))
    assert await point_store.read(store, "web1", Position.of(1, 1)) == doc(1, disks=5)
    assert await point_store.list_docs(store, "web1") == [doc(1, disks=5)]
    await point_store.delete(store, "web1", Position.of(1, 1))
    await point_store.delete(store, "web1", Position.of(1, 1))
    assert await point_store.read(store, "web1", Position.of(1, 1)) is None
    assert await point_store.list_docs(store, "web1") == []
