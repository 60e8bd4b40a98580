"""What is missing since it could not be read, against a set of sectors."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from shared.batch import Batch, BatchMeta, Range
from shared.recovery.coalesce import coalesce
from shared.recovery.unreadable import Unreadable, after, named_in, written_by
from tests.property.test_coalesce import DISK_SECTORS, Row, make_batches, rows

named = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, DISK_SECTORS - 1), st.integers(0, 12)), max_size=3
)
logs = st.lists(st.tuples(st.lists(rows, max_size=3), named), max_size=8)


def batches_of(log: list[tuple[list[Row], list[Range]]]) -> list[Batch]:
    made = make_batches([written for written, _ in log])
    return [
        msgspec.structs.replace(batch, meta=BatchMeta(unreadable=tuple(ranges)))
        for batch, (_, ranges) in zip(made, log, strict=True)
    ]


def expected(log: list[tuple[list[Row], list[Range]]]) -> set[tuple[int, int]]:
    missing: set[tuple[int, int]] = set()
    for written, ranges in log:
        missing -= {(disk, first + i) for disk, first, sectors, _ in written for i in range(sectors)}
        missing |= {(disk, first + i) for disk, first, sectors in ranges for i in range(sectors)}
    return missing


def sectors_of(missing: Unreadable) -> set[tuple[int, int]]:
    return {(disk, first + i) for disk, first, sectors in missing.ranges for i in range(sectors)}


def applied(before: Unreadable, interval: list[Batch], most: int = 1024) -> Unreadable:
    return after(before, written_by(coalesce(interval)), named_in(interval), most)


@given(logs, st.data())
def test_it_is_what_was_named_and_not_written_since_however_the_log_is_cut_and_whatever_is_done_twice(
    log: list[tuple[list[Row], list[Range]]], data: st.DataObject
) -> None:
    batches = batches_of(log)
    missing, at, noted = Unreadable(), 0, 0
    while at < len(batches):
        end = data.draw(st.integers(at + 1, len(batches)))
        missing = applied(missing, batches[at:end])
        if data.draw(st.booleans()):  # killed: the interval is done again, to another end
            noted = max(noted, end)
            end = data.draw(st.integers(at + 1, len(batches)))
            missing = applied(missing, batches[at:end])
        at = end
        assert at < noted or sectors_of(missing) == expected(log[:at])
    missing = applied(missing, batches)  # and all of it again
    assert sectors_of(missing) == expected(log)
    ends = [(disk, first, first + sectors) for disk, first, sectors in missing.ranges]
    assert all(a[0] < b[0] or a[2] < b[1] for a, b in itertools.pairwise(ends)), "not joined"
    assert not missing.covers


@given(logs, st.integers(2, 6))
def test_past_a_number_of_runs_it_covers_what_is_missing_and_says_so(
    log: list[tuple[list[Row], list[Range]]], most: int
) -> None:
    missing = Unreadable()
    for n, batch in enumerate(batches_of(log)):
        missing = applied(missing, [batch], most)
        assert len(missing.ranges) <= most
        assert sectors_of(missing) >= expected(log[: n + 1])
        if not missing.covers:
            assert sectors_of(missing) == expected(log[: n + 1])


def test_the_nearest_runs_are_joined_first() -> None:
    named = Unreadable(((0, 0, 1), (0, 10, 1), (0, 12, 1), (1, 13, 1)))
    found = after(Unreadable(), {}, named, 3)
    assert found == Unreadable(((0, 0, 1), (0, 10, 3), (1, 13, 1)), covers=True)
    assert (str(named), str(found)) == (
        "4 sectors of the source could not be read",
        "up to 5 sectors of the source could not be read",
    )
