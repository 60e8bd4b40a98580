"""What of the source is missing in the target: which sectors, and when they are tried again."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.stream import spans, unreadable
from agent.stream.spans import read_again
from agent.stream.unreadable import AT_ONCE, FIRST_S, LIMIT_S, Unreadable
from shared.batch import Op, make_extents

SIZES = [6000] * 3
RUN = st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(1, 12))
LIFE = st.lists(st.tuples(st.sampled_from(["declare", "remove", "written"]), RUN), max_size=30)


def sectors_of(declared: Unreadable) -> set[tuple[int, int]]:
    return {(disk, at) for disk, sector, n in declared.ranges() for at in range(sector, sector + n)}


@given(LIFE)
def test_what_is_declared_is_what_was_and_is_not_in_the_stream_since(
    steps: list[tuple[str, tuple[int, int, int]]],
) -> None:
    words = np.zeros(6, np.uint64)
    declared, expected = Unreadable(SIZES, words, 7), set()
    for what, (disk, sector, sectors) in steps:
        mine = {(disk, at) for at in range(sector, sector + sectors)}
        if what == "declare":
            declared.declare(disk, [(sector, sectors)], 0.0)
            expected |= mine
            continue
        expected -= mine
        if what == "remove":
            declared.remove(disk, [(sector, sectors)])
        else:
            declared.written(make_extents([(disk, sector, sectors, Op.WRITE)]))
    assert sectors_of(declared) == expected
    assert declared.sectors == len(expected)
    again = Unreadable(SIZES, words.copy(), 7)  # after a kill
    if len(declared.ranges()) <= 5:
        assert again.ranges() == declared.ranges()
    else:
        assert expected < sectors_of(again)


def test_all_disks_that_a_trial_waits_for_are_tried_and_one_that_hangs_keeps_its_turn_only() -> None:
    declared = Unreadable(SIZES)
    for disk in range(3):
        declared.declare(disk, [(8, 1)], 0.0)
    tried = [declared.due(FIRST_S) for _ in range(4)]
    assert [trial and trial.disk for trial in tried] == [0, 1, 2, None]


def test_a_disk_that_gives_all_that_a_trial_asks_for_is_read_again_as_a_whole() -> None:
    declared = Unreadable(SIZES)
    declared.declare(0, [(0, 2000), (4000, 1000)], 0.0)
    declared.declare(1, [(0, 1)], 0.0)
    trial = declared.due(FIRST_S)
    assert trial is not None
    assert trial.runs == [(0, AT_ONCE)]
    assert declared.tried(FIRST_S, trial, [(0, AT_ONCE - 1)]) == [(0, AT_ONCE - 1)]
    assert declared.tried(FIRST_S, trial, trial.runs) == [(0, 2000), (4000, 1000)]


def test_what_a_trial_is_given_and_the_round_is_not_is_asked_for_less_and_less_often() -> None:
    declared, now, waits = Unreadable(SIZES), 0.0, []
    declared.declare(0, [(8, 2)], now)
    for _ in range(11):
        began = now
        while (trial := declared.due(now)) is None:
            now += 30
        waits.append((now - began) / FIRST_S)
        assert declared.tried(now, trial, trial.runs) == [(8, 2)]
        declared.remove(0, [(8, 2)])
        for sector in (8, 9):
            declared.declare(0, [(sector, 1)], now)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]
    declared.declare(0, [(100, 1)], now)
    assert declared.due(now + FIRST_S) is not None, "another sector waits for what this one did"


def test_slow_bad_sectors_do_not_keep_those_behind_them_from_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def preadv(_: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal now
        if offset // 512 in (1000, 1001):
            now += 7
            raise OSError(errno.EIO, "")
        return len(buffers[0])

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(spans, "block_sectors", lambda _: 1)
    declared = Unreadable(SIZES)
    declared.declare(0, [(1000, 512)], 0.0)
    for expected in ([], [(1002, 510)]):
        now += LIMIT_S
        trial = declared.due(now)
        assert trial is not None
        assert read_again(0, trial, lambda: None, now + 10) == expected
        declared.tried(now, trial, expected)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(1, 900)), min_size=1, max_size=8)
)
def test_every_declared_sector_is_tried_in_its_turn_and_few_at_once(runs: list[tuple[int, int, int]]) -> None:
    declared = Unreadable(SIZES)
    for disk, *run in runs:
        declared.declare(disk, [(run[0], run[1])], 0.0)
    left = {(disk, at) for disk, sector, n in declared.ranges() for at in range(sector, sector + n)}
    all_of_them, now = set(left), 0.0
    for _ in range(len(left) // AT_ONCE + 2 * len(runs)):
        now += LIMIT_S
        due = declared.due(now)
        assert due is not None
        tried = {(due.disk, at) for sector, n in due.runs for at in range(sector, sector + n)}
        assert 0 < len(tried) <= AT_ONCE
        assert tried <= all_of_them
        left -= tried
        due.behind = sum(due.runs[-1])
        declared.tried(now, due, [])
    assert not left


def test_the_time_between_two_trials_doubles_until_something_is_given() -> None:
    declared = Unreadable(SIZES)
    declared.declare(0, [(8, 1)], 0.0)
    now, waits = 0.0, []
    for found in [False] * 11 + [True, False]:
        began = now
        while (trial := declared.due(now)) is None:
            now += 30
        waits.append(now - began)
        declared.tried(now, trial, trial.runs if found else [])
    minutes = [wait / FIRST_S for wait in waits]
    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360, 1]
    assert unreadable.LIMIT_S / FIRST_S == 360
