"""What of the source is missing in the target: which sectors, and when they are tried again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.stream import unreadable
from agent.stream.unreadable import AT_ONCE, FIRST_S, LIMIT_S, Unreadable
from shared.batch import Op, make_extents

RUN = st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(1, 12))


@given(st.lists(st.tuples(st.sampled_from(["declare", "remove", "written"]), RUN), max_size=30))
def test_what_is_declared_is_what_was_and_is_not_in_the_stream_since(
    steps: list[tuple[str, tuple[int, int, int]]],
) -> None:
    words = np.zeros(6, np.uint64)
    declared, expected = Unreadable(words), set()
    for what, (disk, sector, sectors) in steps:
        mine = {(disk, at) for at in range(sector, sector + sectors)}
        if what == "declare":
            declared.declare(disk, sector, sectors, 0.0)
            expected |= mine
            continue
        expected -= mine
        if what == "remove":
            declared.remove(disk, sector, sectors)
        else:
            declared.written(make_extents([(disk, sector, sectors, Op.WRITE)]))
    found = [(disk, at) for disk, sector, n in declared.ranges() for at in range(sector, sector + n)]
    assert found == sorted(expected)
    assert declared.sectors == len(expected)
    again = Unreadable(words.copy())  # after a kill
    if again.is_more:
        assert {*again.ranges()} < {*declared.ranges()}
        assert len(again.ranges()) == 5
    else:
        assert again.ranges() == declared.ranges()


def test_that_more_was_declared_than_is_known_is_known_until_a_new_epoch() -> None:
    words = np.zeros(6, np.uint64)
    declared = Unreadable(words)
    for sector in range(7):
        declared.declare(63, 2**41 + 2 * sector, 1, 0.0)
    again = Unreadable(words)
    again.remove(63, 0, 2**42)
    assert (again.ranges(), Unreadable(words).is_more) == ([], True)
    again.clear()
    assert words.tolist() == [0] * 6


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(1, 900)), min_size=1, max_size=8)
)
def test_every_declared_sector_is_tried_in_its_turn_and_few_at_once(runs: list[tuple[int, int, int]]) -> None:
    declared = Unreadable()
    for run in runs:
        declared.declare(*run, 0.0)
    left = {(disk, at) for disk, sector, n in declared.ranges() for at in range(sector, sector + n)}
    all_of_them, now = set(left), 0.0
    for _ in range(len(left) // AT_ONCE + 2 * len(runs)):
        now += LIMIT_S
        due = declared.due(now)
        assert due is not None
        tried = {(due[0], at) for sector, n in due[1] for at in range(sector, sector + n)}
        assert 0 < len(tried) <= AT_ONCE
        assert tried <= all_of_them
        left -= tried
        assert declared.due(now + LIMIT_S) is None, "one at a time"
        declared.tried(now, found=False)
    assert not left


def test_the_time_between_two_trials_doubles_until_something_is_given() -> None:
    declared = Unreadable()
    declared.declare(0, 8, 1, 0.0)
    now, waits = 0.0, []
    for found in [False] * 11 + [True, False]:
        began = now
        while declared.due(now) is None:
            now += 30
        waits.append(now - began)
        declared.tried(now, found=found)
    minutes = [wait / FIRST_S for wait in waits]
    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360, 1]
    assert unreadable.LIMIT_S / FIRST_S == 360
