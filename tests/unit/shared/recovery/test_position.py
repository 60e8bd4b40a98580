"""Positions and times as people write them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.recovery.position import Position, format_ns, parse_rfc3339


def test_positions_order_by_epoch_and_then_by_batch() -> None:
    assert Position.of(1, 99) < Position.of(2, 0) < Position.of(2, 3)


def test_a_position_is_read_back_also_from_a_blob_name() -> None:
    assert Position.parse(str(Position.of(3, 70))) == Position.of(3, 70)
    assert Position.parse("00000003-000000000070") == Position.of(3, 70)


@pytest.mark.parametrize("text", ["", "latest", "3", "3-", "-3-4", "3-4-5", "3-4x", "2024-01-01", "³-4"])
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_a_time_survives_formatting_to_the_nanosecond(time_ns: int) -> None:
    assert parse_rfc3339(format_ns(time_ns)) == time_ns


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:01+01:00", 10**9),
        ("1970-01-01t00:00:00.5z", 5 * 10**8),
        ("1969-12-31 23:59:59-00:00", -(10**9)),
        ("2024-02-29T12:00:00.1234567Z", 1_709_208_000_123_456_700),
    ],
)
def test_rfc3339_times_with_offset_are_read(text: str, time_ns: int) -> None:
    assert parse_rfc3339(text) == time_ns


@pytest.mark.parametrize(
    "text",
    ["2024-01-01T00:00:00", "2024-01-01", "2024-13-01T00:00:00Z", "yesterday", "1-2", "2024-01-01T25:00:00Z"],
)
def test_a_time_without_offset_or_that_does_not_exist_is_none(text: str) -> None:
    assert parse_rfc3339(text) is None
