"""What a catch-up round reads and emits, sector by sector."""

from __future__ import annotations

import numpy as np
import pytest

from agent.stream.catchup import CatchUp, Chunk
from shared.batch import SECTOR, Op, make_extents, payload_bytes

SECTORS = 70
STANDS = np.array([5], np.int64)


@pytest.fixture
def catchup() -> CatchUp:
    made = CatchUp([SECTORS], [np.zeros(1, np.uint64)])
    made.settled = True
    made.mark_everything()
    made.begin_round(loss=0, start_seq=5)
    return made


def next_chunk(catchup: CatchUp) -> Chunk:
    chunk = catchup.next_chunk()
    assert chunk is not None
    return chunk


def data(sectors: int) -> np.ndarray:
    return np.full(sectors * SECTOR, 7, np.uint8)


def rows(extents: np.ndarray) -> list[tuple[int, int, int]]:
    return [(int(e["sector"]), int(e["sectors"]), int(e["op"])) for e in extents]


def test_the_last_chunk_ends_with_the_disk(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    assert (chunk.first_sector, chunk.sectors) == (0, SECTORS)
    assert catchup.next_chunk() is None


def test_sectors_written_since_the_round_began_are_left_out_exactly(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.records_emitted(make_extents([(0, 3, 2, Op.WRITE)]), STANDS)
    catchup.records_emitted(make_extents([(0, 69, 1, Op.ZERO)]), STANDS)
    extents, payload = catchup.emit(chunk, data(SECTORS))
    assert rows(extents) == [(0, 3, Op.SYNC), (5, 64, Op.SYNC)]
    assert sum(len(part) for part in payload) == payload_bytes(extents) == 67 * SECTOR


def test_sectors_written_before_the_round_began_are_not_left_out(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.records_emitted(make_extents([(0, 3, 2, Op.WRITE)]), np.array([4], np.int64))
    extents, _ = catchup.emit(chunk, data(SECTORS))
    assert rows(extents) == [(0, SECTORS, Op.SYNC)]


def test_zeroes_need_no_payload(catchup: CatchUp) -> None:
    content = data(SECTORS)
    content[10 * SECTOR : 60 * SECTOR] = 0
    extents, payload = catchup.emit(next_chunk(catchup), content)
    assert rows(extents) == [(0, 10, Op.SYNC), (10, 50, Op.SYNC_ZERO), (60, 10, Op.SYNC)]
    assert sum(len(part) for part in payload) == 20 * SECTOR


def test_granules_that_are_not_wanted_are_not_emitted() -> None:
    todo = np.array([0b101], np.uint64)
    catchup = CatchUp([200], [todo])
    catchup.settled = True
    catchup.begin_round(0, 0)
    chunk = next_chunk(catchup)
    assert (chunk.first_sector, chunk.sectors) == (0, 96)
    extents, _ = catchup.emit(chunk, data(96))
    assert rows(extents) == [(0, 32, Op.SYNC), (64, 32, Op.SYNC)]


def test_a_granule_is_done_only_when_its_batch_is_uploaded(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.emit(chunk, data(SECTORS))
    catchup.sent(9, [chunk])
    catchup.uploaded(8)
    assert catchup.todo_by_disk() == [3]
    catchup.uploaded(9)
    assert catchup.todo_by_disk() == [0]


def test_a_granule_marked_again_is_not_done_by_an_older_batch(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.emit(chunk, data(SECTORS))
    catchup.sent(9, [chunk])
    catchup.harvest(0, np.array([0b010], np.uint64))
    catchup.uploaded(9)
    assert catchup.todo_by_disk() == [1]


def test_a_granule_marked_while_a_round_reads_it_is_not_done_by_that_round(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.emit(chunk, data(SECTORS))
    catchup.mark_range(0, 33, 2)
    catchup.sent(9, [chunk])
    catchup.uploaded(9)
    assert catchup.todo_by_disk() == [1]


def test_a_deferred_chunk_is_read_again(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.emit(chunk, data(SECTORS))
    catchup.defer(chunk)
    catchup.sent(1, [])
    assert not catchup.finish_reading(0, 0)
    catchup.uploaded(1)
    assert catchup.todo_by_disk() == [3]


def test_a_lost_batch_with_catch_up_data_voids_the_order_built_on_it(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.emit(chunk, data(SECTORS))
    catchup.sent(9, [chunk])
    assert catchup.finish_reading(5, 0)
    assert catchup.is_ordered(5)
    assert catchup.resume(8)
    assert not catchup.is_ordered(5)
    assert catchup.needs_round
    assert catchup.todo_by_disk() == [3]


def test_large_and_unaligned_ranges_are_carried_exactly() -> None:
    sectors = 400_000
    catchup = CatchUp([sectors], [np.zeros(-(-sectors // 2048), np.uint64)])
    catchup.mark_everything()
    catchup.begin_round(0, 0)
    extents = make_extents([(0, 4099, 300_001, Op.ZERO), (0, 17, 3, Op.WRITE), (0, 399_999, 1, Op.WRITE)])
    catchup.records_emitted(extents, np.zeros(3, np.int64))
    assert catchup.round is not None
    carried = np.unpackbits(catchup.round.carried[0], bitorder="little").astype(bool)
    expected = np.zeros(len(carried), bool)
    expected[4099 : 4099 + 300_001] = expected[17:20] = expected[399_999] = True
    assert np.array_equal(carried, expected)
