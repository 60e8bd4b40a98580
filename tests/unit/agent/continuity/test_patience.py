"""How often a disk may be given up, whatever it does; by a clock of the test's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import layout
from agent.continuity.patience import FIRST_S, FORGET_S, LIMIT_S, Patience, Trials
from agent.stream.state import AgentState


def given_up_at(hangs: list[tuple[float, float]]) -> list[float]:
    """When a disk is given up that is well, and then hangs, for so many seconds each."""
    patience, now, times = Patience(), 0.0, []
    for well_s, silent_s in hangs:
        now += well_s
        if silent_s > (wait_s := patience.wait_s("sdb", now)):
            times.append(now + wait_s)
            patience.give_up(["sdb"], times[-1])
        now += silent_s
    return times


def test_a_disk_that_hangs_for_two_minutes_every_few_minutes_is_given_up_once_a_day() -> None:
    day = given_up_at([(180.0, 120.0)] * int(FORGET_S / 300))
    assert day == [180.0 + FIRST_S]


def test_each_wait_is_twice_as_long_up_to_the_limit_and_for_this_disk_only() -> None:
    patience = Patience()
    waits = []
    for now in range(9):
        waits.append(patience.wait_s("sdb", now))
        patience.give_up(["sdb"], now)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert patience.wait_s("sdc", 9) == FIRST_S
    assert patience.wait_s("sdb", 8 + FORGET_S) == LIMIT_S
    assert patience.wait_s("sdb", 9 + FORGET_S) == FIRST_S


def test_what_is_known_of_a_disk_is_kept_in_words_that_outlive_the_process() -> None:
    words = np.zeros(4, np.uint64)
    Patience(words).give_up(["sdb"], 1000.5)
    Patience(words).note({"sdb": 70.5, "sdc": 3.0}, ["sda"], 1000.5)
    again = Patience(words)
    assert (again.is_given_up("sdb"), again.is_given_up("sdc")) == (True, False)
    assert [again.silent_s(disk) for disk in ("sda", "sdb", "sdc")] == [0, 70, 3]
    assert [again.wait_s(disk, 1060.0) for disk in ("sda", "sdb", "sdc")] == [FIRST_S, 2 * FIRST_S, FIRST_S]
    again.take_in(["sdb"])
    assert (again.is_given_up("sdb"), again.silent_s("sdb")) == (False, 0)
    assert again.wait_s("sdb", 1060.0) == 2 * FIRST_S
    assert again.wait_s("sdb", 999.0) == FIRST_S, "a time to come is none of this boot's"
    again.note({}, ["sdb", "sdc"], 1000.5)
    assert np.count_nonzero(words) == 1


def test_of_more_disks_than_there_is_room_for_the_least_patience_is_forgotten() -> None:
    words = np.zeros(3, np.uint64)
    patience = Patience(words)
    for disk, times in (("sda", 2), ("sdb", 1), ("sdc", 3)):
        for _ in range(times):
            patience.give_up([disk], 100.0)
        patience.take_in([disk])
    patience.give_up(["sdd"], 200.0)
    waits = [patience.wait_s(disk, 200.0) / FIRST_S for disk in ("sda", "sdb", "sdc", "sdd")]
    assert waits == [4, 1, 8, 2]


def test_nothing_that_is_kept_overflows_into_what_stands_beside_it() -> None:
    words = np.zeros(1, np.uint64)
    patience = Patience(words)
    for _ in range(20):
        patience.give_up(["sdb"], 100.0)
    patience.note({"sdb": 1e9}, [], 100.0)
    assert (patience.wait_s("sdb", 100.0), patience.silent_s("sdb") > LIMIT_S) == (LIMIT_S, True)
    patience.give_up(["sdb"], 1e12)
    assert patience.is_given_up("sdb")
    assert patience.wait_s("sdb", 1e12) == FIRST_S


def test_whatever_fails_again_and_again_is_tried_less_and_less_often() -> None:
    trials, now, tried = Trials(), 0.0, []
    while now < FORGET_S:
        now = max(now, trials.failed(["sdb"], now)["sdb"])
        tried.append(now)
    assert tried[:7] == [60, 180, 420, 900, 1860, 3780, 7380]
    assert len(tried) < 30
    assert trials.failed(["sdb"], now - 1) == trials.failed([], now), (
        "fitted for another's sake, it was not tried"
    )


ROOM = 4
_DISKS = st.integers(0, ROOM - 1).map("sd-{}".format)
_ACTS = st.tuples(
    st.sampled_from(["give up", "take in", "silent", "answers"]),
    st.lists(_DISKS, min_size=1, max_size=ROOM, unique=True),
    st.sampled_from([1.0, 3000.0, FORGET_S / 2, FORGET_S + 1]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_ACTS, max_size=20))
def test_who_was_given_up_is_never_forgotten_for_another_while_there_is_a_word_for_each_that_was(
    acts: list[tuple[str, list[str], float]],
) -> None:
    """As many words as disks are given up, whoever else is silent beside them; against a memory without limits."""
    patience, unlimited, now = (
        Patience(np.zeros(ROOM, np.uint64)),
        Patience(np.zeros(4 * ROOM, np.uint64)),
        1e6,
    )
    others = {f"never-{n}": 5000.0 - n for n in range(ROOM)}
    for act, disks, passed_s in acts:
        for one in (patience, unlimited):
            one.note(others, [], now)
            if act == "give up":
                one.give_up(disks, now)
            elif act == "take in":
                one.take_in(disks)
            else:
                one.note(dict.fromkeys(disks, 1.0 if act == "silent" else 0.0), [], now)
            one.note(others, [], now)
            one.take_in(others)
        for n in range(ROOM):
            known = [
                (one.is_given_up(f"sd-{n}"), one.wait_s(f"sd-{n}", now)) for one in (patience, unlimited)
            ]
            assert known[0] == known[1]
        now += passed_s


def test_what_is_handed_over_to_fewer_words_is_what_counts_most() -> None:
    words = np.zeros(3, np.uint64)
    patience = Patience(words)
    patience.give_up(["sda", "sdb"], 100.0)
    patience.note({"sdc": 9.0}, [], 100.0)
    patience.take_in(["sda"])
    fewer, more = np.zeros(1, np.uint64), np.ones(5, np.uint64)
    for after in (fewer, more, words):
        Patience.hand_over(words, after)
        assert Patience(after).is_given_up("sdb")
    assert Patience(more).wait_s("sda", 100.0) == 2 * FIRST_S
    assert np.count_nonzero(more) == 3


def test_a_whole_array_that_is_given_up_is_known_as_given_up_disk_by_disk() -> None:
    words = AgentState(np.zeros(layout.LEAST_STATE_WORDS, np.uint64)).patience_words
    disks = [f"sd-{n}" for n in range(layout.MAX_DISKS)]
    patience = Patience(words)
    patience.note(dict.fromkeys(disks, 61.0), [], 5000.0)
    patience.give_up(disks, 5000.0)
    assert all(Patience(words).is_given_up(disk) for disk in disks)


@given(st.lists(st.tuples(st.floats(1, 4000), st.floats(1, 8000)), max_size=200))
def test_no_disk_is_given_up_more_than_thirty_times_a_day(hangs: list[tuple[float, float]]) -> None:
    times = given_up_at(hangs)
    for first, then in zip(times, times[30:], strict=False):
        assert then - first > FORGET_S
