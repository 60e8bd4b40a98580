"""How often somebody may have what costs us more than him."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_server.reception import pace
from process_server.reception.pace import Pace


@given(st.lists(st.floats(0.0, 3.0), max_size=60))
def test_in_no_span_there_are_more_than_the_burst_and_what_came_since(pauses: list[float]) -> None:
    rule, now_s, allowed = Pace(5, 0.5), 0.0, []
    for pause in pauses:
        now_s += pause
        if rule.wait_s("a", now_s) == 0:
            allowed.append(now_s)
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= 5 + (allowed[last] - allowed[first]) * 0.5 + 1e-6


def test_whoever_comes_when_he_was_told_is_let_in() -> None:
    rule = Pace(1, 0.25)
    assert rule.wait_s("a", 0.0) == 0
    assert rule.wait_s("b", 0.0) == 0
    assert rule.wait_s("a", 1.0) == pytest.approx(3.0)
    assert rule.wait_s("a", 4.0) == 0


def test_many_keys_cost_a_bounded_memory() -> None:
    rule = Pace(1, 1.0)
    for number in range(2 * pace._KEYS):
        rule.wait_s(f"{number}", 0.0)
    assert len(rule._left) == pace._KEYS
