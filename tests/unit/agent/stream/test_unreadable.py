"""What of the source is missing in the target: which sectors, and when they are tried again."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stream import spans, unreadable
from agent.stream.spans import read_again
from agent.stream.unreadable import AT_ONCE, FIRST_S, LIMIT_S, Runs, Trial, Unreadable
from shared.batch import Op, make_extents

RUN = st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(1, 12))
LIFE = st.lists(st.tuples(st.sampled_from(["declare", "remove", "written"]), RUN), max_size=30)
TIB = 2 << 30
"""In sectors."""


def sectors_of(declared: Unreadable) -> set[tuple[int, int]]:
    return {(disk, at) for disk, sector, n in declared.ranges() for at in range(sector, sector + n)}


def due(declared: Unreadable, now: float) -> Trial:
    trial = declared.due(now)
    assert trial is not None
    return trial


def answer(trial: Trial, given: Runs) -> Trial:
    trial.given.extend(given)
    trial.behind = sum(trial.runs[-1])
    return trial


@settings(deadline=None)
@given(LIFE)
def test_what_is_declared_is_what_was_and_is_not_in_the_stream_since(
    steps: list[tuple[str, tuple[int, int, int]]],
) -> None:
    words = np.zeros(40, np.uint64)
    declared, expected = Unreadable(3, words, 7), set()
    declared.begin()
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
    assert declared.by_disk() == Counter(disk for disk, _ in expected)
    again = Unreadable(3, words.copy(), 7)  # after a kill
    assert again.ranges() == declared.ranges()
    assert (again.due(0.0) is None) == (not expected)


def test_all_disks_that_a_trial_waits_for_are_tried_and_one_that_hangs_keeps_its_turn_only() -> None:
    declared = Unreadable(3)
    for disk in range(3):
        declared.declare(disk, [(8, 1)], 0.0)
    tried = [declared.due(FIRST_S) for _ in range(4)]
    assert [trial and trial.disk for trial in tried] == [0, 1, 2, None]


def test_a_disk_that_gives_all_that_trials_ask_for_is_put_to_do_twice_as_much_each_time() -> None:
    declared, now, put = Unreadable(2), 0.0, []
    declared.declare(0, [(0, 2000), (4000, 3000)], now)
    for missing in (0, 0, 0, 0, 1, 0, 0):
        now += LIMIT_S
        trial = due(declared, now)
        asked = trial.runs if not missing else [(trial.runs[0][0], trial.runs[0][1] - missing)]
        put.append(len(declared.tried(now, answer(trial, asked))))
    assert put == [512, 1024, 2048, 4096, 511, 512, 1024]
    now += LIMIT_S
    trial = due(declared, now)
    got = declared.tried(now, answer(trial, trial.runs))
    assert set(got.tolist()) >= {at for first, n in trial.runs for at in range(first, first + n)}
    declared.declare(0, [(int(got[0]), 1)], now)
    now += LIMIT_S
    trial = due(declared, now)
    assert len(declared.tried(now, answer(trial, trial.runs))) <= AT_ONCE, "it fails again where it was given"


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32))
def test_what_is_put_to_do_after_a_restart_is_no_more_than_is_declared(blocks: int, seed: int) -> None:
    words = np.zeros(1 << 10, np.uint64)
    declared = Unreadable(1, words, 7)
    declared.begin()
    at = np.unique(np.random.default_rng(seed).integers(0, 4 * TIB // 8, blocks) * 8)
    declared.declare(0, [(first, 8) for first in at.tolist()], 0.0)
    again = Unreadable(1, words, 7)
    trial = due(again, 0.0)
    assert len(again.tried(0.0, answer(trial, trial.runs))) <= min(8 * len(at), AT_ONCE)
    assert again.sectors == 8 * len(at)


def test_what_a_trial_is_given_and_the_round_is_not_is_asked_for_less_and_less_often() -> None:
    declared, now, waits = Unreadable(1), 0.0, []
    declared.declare(0, [(8, 2)], now)
    for _ in range(11):
        began = now
        while (trial := declared.due(now)) is None:
            now += 30
        waits.append((now - began) / FIRST_S)
        assert declared.tried(now, answer(trial, trial.runs)).tolist() == [8, 9]
        for sector in (8, 9):
            declared.declare(0, [(sector, 1)], now)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]
    for sector in (100, 8):  # in whatever order the round's chunks come
        declared.declare(0, [(sector, 1)], now)
    assert declared.due(now + FIRST_S) is not None, "another sector waits for what this one did"


@pytest.mark.parametrize("beside", ["nothing", "bad", "by turns"])
def test_sectors_beside_one_that_fails_by_turns_do_not_take_order_more_often(beside: str) -> None:
    declared, now, trials = Unreadable(1), 0.0, 0
    declared.declare(0, [(100, 1), (110, 1)] if beside == "bad" else [(100, 1)], now)
    while now < 86400:
        if (trial := declared.due(now)) is None:
            now += 30
            continue
        trials += 1
        given = [run for run in trial.runs if run[0] != 110 or beside != "bad"]
        assert len(declared.tried(now, answer(trial, given)))
        # The round that follows reads the granule, and is refused some of it.
        missing = [(100, 1), (110, 1)] if beside == "bad" else [(100, 1)]
        if beside == "by turns" and trials % 2:
            missing = [(110, 1)]
        declared.remove(0, [(at, 1) for at in range(96, 128) if (at, 1) not in missing])
        for run in missing:  # as of two chunks
            declared.declare(0, [run], now)
    assert trials == 11


def test_what_a_trial_was_given_before_it_was_let_go_is_used_and_what_comes_later_as_well_each_once() -> None:
    declared = Unreadable(1)
    declared.declare(0, [(100, 8), (300, 2)], 0.0)
    trial = due(declared, FIRST_S)
    trial.given.extend([(100, 1), (104, 1)])
    trial.behind = 301
    assert declared.tried(FIRST_S, trial).tolist() == [100, 104]
    trial.given.append((300, 1))  # the read that hung
    assert declared.came_late(trial).tolist() == [300]
    assert not len(declared.came_late(trial))
    assert due(declared, LIMIT_S).runs == [(301, 1)]


def test_what_was_declared_between_while_a_trial_was_asked_does_not_take_the_place_of_what_was_given() -> (
    None
):
    declared = Unreadable(1)
    declared.declare(0, [(34, 1), (46, 1)], 0.0)
    trial = due(declared, FIRST_S)
    declared.declare(0, [(43, 1)], FIRST_S)
    assert declared.tried(FIRST_S, answer(trial, trial.runs)).tolist() == [34, 46]


def test_what_was_read_and_sent_while_a_trial_was_asked_is_not_put_to_do() -> None:
    declared = Unreadable(1)
    declared.declare(0, [(100, 1), (200, 1)], 0.0)
    trial = due(declared, FIRST_S)
    declared.remove(0, [(96, 32)])
    assert not len(declared.tried(FIRST_S, answer(trial, [(100, 1)])))
    assert declared.ranges() == [(0, 200, 1)]


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
    declared = Unreadable(1)
    declared.declare(0, [(1000, 512)], 0.0)
    for expected in ([], [(1002, 510)]):
        now += LIMIT_S
        trial = due(declared, now)
        assert read_again(0, trial, lambda: None, now + 10) == expected
        assert len(declared.tried(now, trial)) == sum(count for _, count in expected)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(1, 900)), min_size=1, max_size=8)
)
def test_every_declared_sector_is_tried_in_its_turn_and_few_at_once(runs: list[tuple[int, int, int]]) -> None:
    declared = Unreadable(3)
    for disk, *run in runs:
        declared.declare(disk, [(run[0], run[1])], 0.0)
    left = sectors_of(declared)
    all_of_them, now = set(left), 0.0
    for _ in range(len(left) // AT_ONCE + 2 * len(runs)):
        now += LIMIT_S
        trial = due(declared, now)
        tried = {(trial.disk, at) for sector, n in trial.runs for at in range(sector, sector + n)}
        assert 0 < len(tried) <= AT_ONCE
        assert tried <= all_of_them
        left -= tried
        declared.tried(now, answer(trial, []))
    assert not left


def test_the_time_between_two_trials_doubles_until_something_is_given() -> None:
    declared = Unreadable(1)
    declared.declare(0, [(8, 1)], 0.0)
    now, waits = 0.0, []
    for found in [False] * 11 + [True, False]:
        began = now
        while (trial := declared.due(now)) is None:
            now += 30
        waits.append(now - began)
        declared.tried(now, answer(trial, trial.runs if found else []))
    minutes = [wait / FIRST_S for wait in waits]
    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360, 1]
    assert unreadable.LIMIT_S / FIRST_S == 360


def test_what_there_is_no_room_for_is_known_before_it_is_declared() -> None:
    declared = Unreadable(1, np.zeros(101, np.uint64), 7)
    declared.begin()
    declared.declare(0, [(0, 1600)], 0.0)
    assert declared.ranges() == [(0, 0, 1600)]
    here, there = [(1600, 1)], [(1584, 16)]
    assert [declared.has_room(0, here, sent) for sent in ([], [(1584, 15)], there)] == [False, False, True]
    assert declared.has_room(0, [(5, 1)], [])


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.integers(8, 40),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 60), st.integers(1, 400)), max_size=12
    ),
)
def test_whatever_others_take_a_disk_can_name_its_part_and_one_alone_everything(
    disks: int, room: int, steps: list[tuple[bool, int, int, int]]
) -> None:
    declared = Unreadable(disks, np.zeros(1 + room, np.uint64), 7)
    declared.begin()
    for is_bad, disk, first, count in steps:
        runs = [(first, count)]
        if not is_bad:
            declared.remove(disk % disks, runs)
        elif declared.has_room(disk % disks, runs, []):
            declared.declare(disk % disks, runs, 0.0)
    part = room // (2 * disks)
    for disk in range(disks):
        declared.remove(disk, [(0, 1 << 20)])
        assert declared.has_room(disk, [(0, 16 * part)], []), "another disk took its part"
        declared.declare(disk, [(0, 16 * part)], 0.0)
    for disk in range(1, disks):
        declared.remove(disk, [(0, 1 << 20)])
    rest = room - part * (disks - 1)
    assert [declared.has_room(0, [(0, 16 * words)], []) for words in (rest, rest + 1)] == [True, False]
    declared.declare(0, [(0, 16 * rest)], 0.0)
    assert declared.fullest == 0
