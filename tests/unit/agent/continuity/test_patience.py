"""How often a disk may be given up, whatever it does; by a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.continuity.patience import FIRST_S, FORGET_S, LIMIT_S, Patience


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


@given(st.lists(st.tuples(st.floats(1, 4000), st.floats(1, 8000)), max_size=200))
def test_no_disk_is_given_up_more_than_thirty_times_a_day(hangs: list[tuple[float, float]]) -> None:
    times = given_up_at(hangs)
    for first, then in zip(times, times[30:], strict=False):
        assert then - first > FORGET_S
