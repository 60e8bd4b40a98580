"""How hard to compress: as hard as idle cores allow, and only while the uplink is what everybody waits for."""

from __future__ import annotations

import pytest

from process_server.spool.level import LEVELS, idle_part, next_level


def test_nothing_is_spent_while_nothing_waits() -> None:
    assert [next_level(level, waits=False, idle=1.0) for level in LEVELS] == [1, 1, 1]


def test_it_rises_step_by_step_to_the_highest_while_cores_idle() -> None:
    level, seen = 1, []
    for _ in range(4):
        level = next_level(level, waits=True, idle=0.9)
        seen.append(level)
    assert seen == [3, 5, 5, 5]


def test_it_falls_step_by_step_while_cores_are_busy_and_stays_in_between() -> None:
    assert [next_level(level, waits=True, idle=0.1) for level in LEVELS] == [1, 1, 3]
    assert [next_level(level, waits=True, idle=0.3) for level in LEVELS] == list(LEVELS)


@pytest.mark.parametrize(
    ("after", "idle"),
    [
        ("cpu  200 0 100 1300 0 0 0 0 7 7\ncpu0 1", 0.75),
        ("cpu  100 0 100 1000 200 0 0 0 0 0\n", 1.0),
        ("cpu  500 0 100 1000 0 0 0 0 0 0\n", 0.0),
        ("cpu  100 0 100 1000 0 0 0 0 0 0\n", 0.0),  # nothing passed
        ("", 0.0),
        ("intr 5\n", 0.0),
    ],
)
def test_idleness_is_read_from_what_the_kernel_counts(after: str, idle: float) -> None:
    assert idle_part("cpu  100 0 100 1000 0 0 0 0 0 0\n", after) == pytest.approx(idle)
