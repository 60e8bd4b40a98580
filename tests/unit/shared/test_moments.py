"""Moments, and how far clocks are apart."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shared.moments import apart_s


@given(
    st.floats(0, 2e9),
    st.floats(-1e6, 1e6),
    st.floats(0, 30),
    st.floats(0, 1),
)
def test_clocks_are_said_to_be_apart_by_no_more_than_they_are(
    ours_s: float, ahead_s: float, took_s: float, asked: float
) -> None:
    """`ahead_s`: how far ours is ahead; the answer is made somewhere between question and its arrival, with the second cut off."""
    theirs_s = math.floor(ours_s + asked * took_s - ahead_s)
    found = apart_s(ours_s, ours_s + took_s, theirs_s)
    assert abs(found) <= abs(ahead_s) + 1e-6
    assert found * ahead_s >= -1e-6
    assert abs(found - ahead_s) <= took_s + 1 + 1e-6
