"""What of the declared sectors survives a kill: ranges that cover them all, under the claim of their epoch."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.stream.unreadable_words import WORDS, keep, load

CLAIM = 2**64 - 1
SIZES = [2**34 - 2048] * 64
RUN = st.tuples(
    st.sampled_from([0, 1, 62, 63]),
    st.integers(0, 2**34 - 4096) | st.integers(0, 50),
    st.integers(1, 9) | st.integers(1, 9) | st.integers(1, 2**34),
)
State = list[tuple[int, int, int]]


def state_of(runs: State) -> State:
    """Disjoint runs (disk, first, end) on the disks."""
    found: State = []
    for disk, first, n in sorted(runs):
        if not found or (disk, first) > (found[-1][0], found[-1][2]):
            found.append((disk, first, min(first + n, SIZES[disk])))
    return found


STATE = st.lists(RUN, min_size=1, max_size=9).map(state_of)


def covers(words: np.ndarray, runs: State) -> bool:
    loaded = load(words, CLAIM, SIZES)
    return all(any(d == disk and a <= first and end <= b for d, a, b in loaded) for disk, first, end in runs)


class Killed(Exception):
    pass


class Words:
    """Is killed before some store."""

    def __init__(self, words: np.ndarray, stores: int) -> None:
        self._words = words
        self._stores = stores

    def __getitem__(self, at: Any) -> Any:
        return self._words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        if not self._stores:
            raise Killed
        self._stores -= 1
        self._words[at] = value


@given(STATE, st.integers(0, 8), st.booleans(), st.integers(0, 7))
def test_what_was_declared_and_still_is_is_covered_wherever_a_kill_falls(
    runs: State, at: int, is_more: bool, stores: int
) -> None:
    before, after = runs[: at % len(runs)] + runs[at % len(runs) + 1 :], runs
    if not is_more:
        before, after = after, before
    words = np.zeros(WORDS, np.uint64)
    keep(words, CLAIM, before)
    assert covers(words, before)
    if len(before) < WORDS and all(end - first < 2**23 for _, first, end in before):
        assert load(words, CLAIM, SIZES) == before
    try:
        keep(cast("np.ndarray", Words(words, stores)), CLAIM, after)
    except Killed:
        assert covers(words, [run for run in before if run in after])
    else:
        assert covers(words, after)


def test_what_is_of_another_epoch_or_of_no_disk_is_not_believed() -> None:
    words = np.zeros(WORDS, np.uint64)
    keep(words, CLAIM, [(0, 90, 200), (5, 4096, 4104)])
    assert load(words, CLAIM, [100, 100]) == [(0, 90, 100)]
    assert load(words, CLAIM - 1, SIZES) == []
    keep(words, CLAIM - 1, [(1, 3, 4)])
    assert load(words, CLAIM - 1, SIZES) == [(1, 3, 4)]
