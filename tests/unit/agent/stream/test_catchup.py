"""What a catch-up round reads and emits, sector by sector."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from agent.stream.catchup import SLICE_WORDS, CatchUp, Chunk, NoChunk
from shared.batch import SECTOR, Op, make_extents, payload_bytes

SECTORS = 70
STANDS = np.array([5], np.int64)


@pytest.fixture
def catchup() -> CatchUp:
    made = CatchUp([SECTORS], [np.zeros(1, np.uint64)])
    made.settled = True
    run(made.mark_everything())
    made.begin_round(loss=0, start_seq=5)
    return made


def next_chunk(catchup: CatchUp) -> Chunk:
    chunk = catchup.next_chunk(0)
    assert isinstance(chunk, Chunk)
    return chunk


def run(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def data(sectors: int) -> np.ndarray:
    return np.full(sectors * SECTOR, 7, np.uint8)


def rows(extents: np.ndarray) -> list[tuple[int, int, int]]:
    return [(int(e["sector"]), int(e["sectors"]), int(e["op"])) for e in extents]


def test_the_last_chunk_ends_with_the_disk(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    assert (chunk.first_sector, chunk.sectors) == (0, SECTORS)
    assert catchup.next_chunk(0) is NoChunk.YET
    assert catchup.next_chunk(0) is NoChunk.LEFT


def test_of_what_could_not_be_read_nothing_is_said_and_what_goes_missing_is_named(catchup: CatchUp) -> None:
    chunk = next_chunk(catchup)
    catchup.records_emitted(make_extents([(0, 3, 2, Op.WRITE)]), STANDS)
    bad = [(0, 4), (60, 10)]
    extents, payload = catchup.emit(chunk, data(SECTORS), bad)
    assert rows(extents) == [(5, 55, Op.SYNC)]
    assert sum(len(part) for part in payload) == 55 * SECTOR
    assert np.flatnonzero(catchup.missing(chunk, bad)).tolist() == [0, 1, 2, *range(60, 70)]


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
    run(catchup.mark_everything())
    catchup.begin_round(0, 0)
    extents = make_extents([(0, 4099, 300_001, Op.ZERO), (0, 17, 3, Op.WRITE), (0, 399_999, 1, Op.WRITE)])
    catchup.records_emitted(extents, np.zeros(3, np.int64))
    assert catchup.round is not None
    carried = np.unpackbits(catchup.round.carried[0], bitorder="little").astype(bool)
    expected = np.zeros(len(carried), bool)
    expected[4099 : 4099 + 300_001] = expected[17:20] = expected[399_999] = True
    assert np.array_equal(carried, expected)


TIB_SECTORS = 1 << 31
STEP_B = 4 << 20


@pytest.fixture
def large() -> Iterator[CatchUp]:
    """Of a disk of 4 TiB, in a round over all of it. What is allocated from here on is counted."""
    sectors = 4 * TIB_SECTORS
    made = CatchUp([sectors], [np.zeros(sectors // 2048, np.uint64)])
    run(made.mark_everything())
    made.begin_round(0, 0)
    tracemalloc.start()
    yield made
    tracemalloc.stop()


def peak_b(action: Callable[[], object]) -> int:
    """How much was allocated at a time, beyond what was before."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    action()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("name", ["mark_everything", "recount"])
def test_no_step_over_a_large_bitmap_allocates_more_than_a_part_of_it(large: CatchUp, name: str) -> None:
    steps, count = getattr(large, name)(), 0
    while peak_b(lambda: next(steps)) < STEP_B:
        count += 1
        if count == 4 * TIB_SECTORS // 2048 // SLICE_WORDS:
            break
    assert next(steps, None) is None
    assert large.todo_by_disk() == [4 * TIB_SECTORS // 32]


def test_neither_one_write_nor_the_next_chunk_costs_a_bitmap(large: CatchUp) -> None:
    assert peak_b(lambda: large.mark_range(0, 3 * TIB_SECTORS, 8)) < 1 << 16
    assert peak_b(lambda: large.mark_range(0, 77, TIB_SECTORS)) < STEP_B
    assert peak_b(lambda: [large.next_chunk(0) for _ in range(1000)]) < STEP_B
    assert peak_b(large.todo_by_disk) < 1 << 16


def test_what_is_sent_and_not_uploaded_costs_some_bytes_a_chunk(large: CatchUp) -> None:
    def send() -> None:
        for number in range(1, 4001):
            large.sent(number, [next_chunk(large)])

    assert peak_b(send) < STEP_B
    assert peak_b(lambda: large.harvest(0, np.ones(SLICE_WORDS, np.uint64))) < STEP_B
    assert peak_b(lambda: large.uploaded(4000)) < STEP_B
    assert large.todo_by_disk() == [4 * TIB_SECTORS // 32 - 4000 * 63]


def test_many_discards_in_one_batch_are_not_noted_sector_by_sector(large: CatchUp) -> None:
    discards = make_extents([(0, i * 100_001, 65_535, Op.ZERO) for i in range(1024)])
    assert peak_b(lambda: large.records_emitted(discards, np.zeros(1024, np.int64))) < STEP_B


@pytest.mark.parametrize(("first", "sectors"), [(0, 1), (31, 2), (63 * 32, 64), (5, 3 * SLICE_WORDS * 2048)])
def test_a_range_is_marked_exactly(first: int, sectors: int) -> None:
    words = 4 * SLICE_WORDS
    todo = np.zeros(words, np.uint64)
    catchup = CatchUp([words * 2048], [todo])
    catchup.mark_range(0, first, sectors)
    granules = np.flatnonzero(np.unpackbits(todo.view(np.uint8), bitorder="little"))
    assert granules.tolist() == [*range(first // 32, -(-(first + sectors) // 32))]
    assert catchup.todo_by_disk() == [len(granules)]


def test_sectors_are_marked_wherever_they_lie() -> None:
    words = SLICE_WORDS + 3
    todo = np.zeros(words, np.uint64)
    catchup = CatchUp([words * 2048], [todo])
    sectors = [0, 31, 64, SLICE_WORDS * 2048 - 1, SLICE_WORDS * 2048, words * 2048 - 1]
    catchup.mark_sectors(0, np.array(sectors[::-1]))
    granules = np.flatnonzero(np.unpackbits(todo.view(np.uint8), bitorder="little"))
    assert granules.tolist() == sorted({sector // 32 for sector in sectors})
    assert catchup.todo_by_disk() == [len(granules)]
