"""The set of declared sectors in its words: exact, bounded, and right wherever a kill falls."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stream.unreadable_words import CELL, Declared, address, addresses

CLAIM = 2**64 - 1
PLACES = st.integers(0, 70) | st.sampled_from([0, 1, 7, 63]).map(lambda disk: address(disk, 2**46 - 71))
RANGE = st.tuples(PLACES, st.integers(0, 70), st.integers(1, 40)).map(
    lambda r: (r[0] + r[1], r[0] + min(r[1] + r[2], 71))
)
RANGES = st.lists(RANGE, min_size=1, max_size=4).filter(lambda runs: all(a < b for a, b in runs))
STEP = st.tuples(st.sampled_from(["add", "remove", "reload"]), RANGES, st.none() | st.integers(0, 6))


class Killed(Exception):
    pass


class Words:
    """Is killed before some store, if it ever comes to that; each store is of one word."""

    def __init__(self, words: np.ndarray, stores: int | None) -> None:
        self._words = words
        self._stores = stores

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        for one in np.atleast_1d(np.arange(len(self._words))[at]).tolist():
            if self._stores == 0:
                raise Killed
            if self._stores is not None:
                self._stores -= 1
            self._words[one] = value if np.ndim(value) == 0 else value[0]
            value = value if np.ndim(value) == 0 else value[1:]


def opened(words: np.ndarray, stores: int | None = None, claim: int = CLAIM) -> Declared:
    return Declared(cast("np.ndarray", Words(words, stores)), claim)


def everything(declared: Declared) -> set[int]:
    return set(declared.between(0, 1 << 52).tolist())


def all_in(ranges: list[tuple[int, int]]) -> np.ndarray:
    return np.unique(np.concatenate([np.arange(a, b) for a, b in ranges]))


@settings(deadline=None)
@given(st.lists(STEP, max_size=12))
def test_what_is_declared_is_exact_and_a_kill_leaves_what_was_or_what_is_to_be_of_each_sector(
    steps: list[tuple[str, list[tuple[int, int]], int | None]],
) -> None:
    words = np.zeros(40, np.uint64)
    opened(words).begin()
    declared, expected = opened(words), set[int]()
    for what, ranges, stores in steps:
        touched = all_in(ranges)
        mine = set(touched.tolist())
        declared = opened(words, stores) if what == "reload" or stores is not None else declared
        after = expected | mine if what == "add" else expected - mine if what == "remove" else expected
        try:
            if what == "add":
                assert declared.has_room(touched, touched[:0])
                declared.add(touched)
            elif what == "remove":
                declared.remove(np.array(ranges, np.int64))
        except Killed:
            found = everything(opened(words))
            assert expected & after <= found <= expected | after
            after, declared = found, opened(words)
        expected = after
        assert everything(declared) == everything(opened(words)) == expected
        assert len(declared) == len(expected)
        assert set(touched[declared.those_in(touched)].tolist()) == mine & expected
        first, end = int(touched[0]), int(touched[-1]) + 1
        between = [at for at in sorted(expected) if first <= at < end]
        assert [declared.between(first, end, most).tolist() for most in (None, 3)] == [between, between[:3]]


@settings(deadline=None)
@given(st.integers(0, 60))
def test_words_of_another_claim_tell_nothing_wherever_a_kill_falls(stores: int) -> None:
    words = np.zeros(40, np.uint64)
    before = opened(words, claim=7)
    before.begin()
    before.add(np.arange(0, 400))
    now = opened(words, stores)
    assert (now.is_known, len(now)) == (False, 0)
    try:
        now.begin()
    except Killed:
        assert not opened(words).is_known
        opened(words).begin()
    assert opened(words).is_known
    assert not everything(opened(words))


@settings(deadline=None)
@given(st.integers(1, 6), st.lists(st.tuples(RANGES, RANGES), max_size=8))
def test_who_has_room_is_kept_and_who_has_none_would_need_more_words_than_there_are(
    room: int, changes: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]
) -> None:
    words = np.zeros(1 + room, np.uint64)
    declared = opened(words)
    declared.begin()
    expected = set[int]()
    for here, there in changes:
        new, gone = all_in(here), np.setdiff1d(all_in(there), all_in(here))
        after = expected - set(gone.tolist()) | set(new.tolist())
        fits = len({at // CELL for at in after}) <= room
        assert declared.has_room(new, gone) == fits
        if fits:
            declared.remove(np.stack((gone, gone + 1), axis=1))
            declared.add(new)
            expected = after
        assert everything(opened(words)) == expected


def test_a_disk_that_lies_behind_another_is_apart_from_it() -> None:
    declared = opened(words := np.zeros(40, np.uint64))
    declared.begin()
    for disk in (0, 1, 63):
        declared.add(addresses(disk, [(0, 1), (2**46 - 1, 1)]))
    assert np.count_nonzero(words[1:]) == 6
    for a, b in pairwise([0, 1, 2]):
        assert declared.between(address(a, 0), address(b, 0)).tolist() == [
            address(a, 0),
            address(a, 2**46 - 1),
        ]
