"""What is missing on the seed disks, as a master target keeps it in storage."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from master_target.apply import Interval
from master_target.unreadable import UnreadableRecord
from shared.blob import BlobStore
from shared.errors import LeaseLostError
from shared.recovery.coalesce import DiskRuns
from shared.recovery.position import Position
from shared.recovery.unreadable import Unreadable
from tests.epoch_ids import CLAIM, eid

BLOB = f"disks/unreadable-00000001-{CLAIM}.json"


async def ours() -> None:
    """The roll says so."""


async def lost() -> None:
    raise LeaseLostError("The points of machine web1 were not changed")


def interval(start: int, named: Unreadable, written: Mapping[int, tuple[int, int]] | None = None) -> Interval:
    runs = {
        disk: DiskRuns(disk, np.empty((0, 2), np.int64), np.array([row]), np.empty((0, 512), np.uint8))
        for disk, row in (written or {}).items()
    }
    return Interval(Position.of(1, start), Position.of(1, start + 1), CLAIM, "", "", runs, 0, named)


def lacking(first: int, sectors: int) -> Unreadable:
    return Unreadable(((0, first, sectors),))


async def stored(store: BlobStore) -> Unreadable:
    return msgspec.json.decode(await store.read(BLOB), type=Unreadable)


async def test_an_earlier_owner_changes_nothing_of_it_and_a_deleted_blob_is_written_again(
    store: BlobStore,
) -> None:
    first = UnreadableRecord(store, lost)
    await first.note(eid(1), interval(1, lacking(0, 8)), {0})
    owner = UnreadableRecord(store, ours)
    assert await owner.at(eid(1)) == lacking(0, 8)
    with pytest.raises(LeaseLostError):
        await first.note(eid(1), interval(2, Unreadable(), {0: (0, 8)}), {0})
    assert await stored(store) == lacking(0, 8)
    await store.delete(BLOB)
    await owner.note(eid(1), interval(2, Unreadable(), {0: (0, 2)}), {0})
    assert await owner.at(eid(1)) == lacking(2, 6) == await stored(store)
    # Another's blob, created late, does not stand in the way, nor is it believed.
    await store.delete(BLOB)
    await store.create(BLOB, b"[]")
    await owner.note(eid(1), interval(3, Unreadable(), {0: (2, 2)}), {0})
    assert await stored(store) == lacking(4, 4)


async def test_what_an_older_version_wrote_is_taken_as_covering_what_is_missing(store: BlobStore) -> None:
    await store.create(BLOB, b"[[0,8,8],[0,8,8],[1,0,4]]")
    record = UnreadableRecord(store, ours)
    await record.note(eid(1), interval(5, Unreadable(), {0: (8, 4), 1: (0, 4)}), {0, 1})
    assert await record.at(eid(1)) == Unreadable(((0, 12, 4),), covers=True) == await stored(store)
    await record.note(eid(1), interval(6, Unreadable(), {0: (0, 64)}), {0, 1})
    assert await stored(store) == Unreadable()
