"""Coalescing against a model that applies extents one by one to a byte array."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from shared.batch import SECTOR, Batch, BatchNumber, Epoch, Op, Seq, StreamState, make_extents
from shared.recovery.coalesce import MAX_RUN_SECTORS, DiskRuns, coalesce

DISK_SECTORS = 40
Row = tuple[int, int, int, Op]

rows = st.tuples(
    st.integers(0, 1), st.integers(0, DISK_SECTORS - 1), st.integers(0, 24), st.sampled_from(Op)
).map(lambda r: (r[0], r[1], min(r[2], DISK_SECTORS - r[1]), r[3]))
intervals = st.lists(st.lists(rows, max_size=12), max_size=5)


def make_batches(interval: list[list[Row]]) -> list[Batch]:
    """Batches whose every payload sector is unlike any other."""
    stamp = itertools.count(1)
    batches = []
    for number, batch_rows in enumerate(interval, 1):
        with_data = [r for r in batch_rows if r[3] in (Op.WRITE, Op.SYNC)]
        sectors = sum(r[2] for r in with_data)
        payload = b"".join(next(stamp).to_bytes(8, "big") * (SECTOR // 8) for _ in range(sectors))
        batches.append(
            Batch(
                epoch=Epoch(1),
                number=BatchNumber(number),
                end_seq=Seq(number),
                captured_ns=number,
                state=StreamState.ORDERED,
                predecessor=bytes(16),
                extents=make_extents(batch_rows),
                payload=payload,
            )
        )
    return batches


def apply_naively(batches: list[Batch], disks: list[bytearray]) -> None:
    for batch in batches:
        at = 0
        for sector, sectors, disk, op, _ in batch.extents.tolist():
            size = sectors * SECTOR
            where = slice(sector * SECTOR, sector * SECTOR + size)
            if op in (Op.WRITE, Op.SYNC):
                disks[disk][where] = batch.payload[at : at + size]
                at += size
            else:
                disks[disk][where] = bytes(size)


def apply_runs(runs: dict[int, DiskRuns], disks: list[bytearray]) -> None:
    for disk, disk_runs in runs.items():
        for run in disk_runs:
            disks[disk][run.offset_b : run.offset_b + len(run.data)] = run.data
        for sector, sectors in disk_runs.clears.tolist():
            disks[disk][sector * SECTOR : (sector + sectors) * SECTOR] = bytes(sectors * SECTOR)


def old_content() -> list[bytearray]:
    return [bytearray(b"\xee" * (DISK_SECTORS * SECTOR)) for _ in range(2)]


@given(intervals, st.integers(1, 16))
def test_runs_leave_the_disks_as_the_extents_in_order_would(
    interval: list[list[Row]], max_run_sectors: int
) -> None:
    batches = make_batches(interval)
    expected, got = old_content(), old_content()
    apply_naively(batches, expected)
    runs = coalesce(batches, max_run_sectors)
    apply_runs(runs, got)
    assert got == expected
    assert all(len(r.data) <= max_run_sectors * SECTOR for d in runs.values() for r in d)


@given(intervals)
def test_runs_are_ascending_disjoint_and_never_touch(interval: list[list[Row]]) -> None:
    for disk_runs in coalesce(make_batches(interval)).values():
        for table in (disk_runs.writes, disk_runs.clears):
            ends = table.sum(axis=1)
            assert (table[:, 1] > 0).all()
            assert (ends[:-1] < table[1:, 0]).all()
        touched = np.concatenate(
            [np.arange(a, a + n) for a, n in [*disk_runs.writes.tolist(), *disk_runs.clears.tolist()]]
            or [np.empty(0, np.int64)]
        )
        assert len(np.unique(touched)) == len(touched)
        assert disk_runs.end_sector == int(touched.max(initial=-1)) + 1


@given(intervals, st.data())
@settings(max_examples=50)
def test_an_interval_applied_again_after_a_part_of_it_gives_the_same_disks(
    interval: list[list[Row]], data: st.DataObject
) -> None:
    """What recovery after a crash in mid-interval relies on."""
    batches = make_batches(interval)
    expected, got = old_content(), old_content()
    apply_naively(batches, expected)
    runs = coalesce(batches)
    for disk, disk_runs in runs.items():
        for run in disk_runs:
            if data.draw(st.booleans()):
                got[disk][run.offset_b : run.offset_b + len(run.data)] = run.data
    apply_runs(runs, got)
    assert got == expected


def test_a_discard_of_a_whole_large_disk_is_one_clear() -> None:
    sectors = 2**32 - 1
    batches = make_batches([[(0, 0, sectors, Op.ZERO), (0, 8, 8, Op.WRITE)]])
    runs = coalesce(batches)[0]
    assert runs.writes.tolist() == [[8, 8]]
    assert runs.clears.tolist() == [[0, 8], [16, sectors - 16]]


def test_adjacent_writes_become_runs_of_at_most_four_mebibytes() -> None:
    rows: list[Row] = [(0, s, 1024, Op.WRITE) for s in range(0, 3 * MAX_RUN_SECTORS - 1024, 1024)]
    runs = coalesce(make_batches([rows]))[0]
    assert runs.writes[:, 1].tolist() == [MAX_RUN_SECTORS, MAX_RUN_SECTORS, MAX_RUN_SECTORS - 1024]
