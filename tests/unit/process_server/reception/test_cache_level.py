"""How full the cache is: told before it throttles, once a level, and not for ever."""

from __future__ import annotations

import pytest

from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import CacheSpace, CreditPolicy
from shared.vocabulary import Severity


def said(level: CacheLevel, free: float) -> Severity | None:
    problem = level.look(CacheSpace(total_b=10_000, free_b=round(10_000 * free)))
    return None if problem is None else problem.severity


def test_each_level_is_told_at_its_limit_and_is_over_a_little_above_it() -> None:
    level = CacheLevel(CreditPolicy(free_floor=0.20))
    steps: list[tuple[float, Severity | None]] = [
        (0.301, None),
        (0.299, Severity.WARNING),
        (0.305, Severity.WARNING),
        (0.313, None),
        (0.249, Severity.CRITICAL),
        (0.255, Severity.CRITICAL),
        (0.263, Severity.WARNING),
        (0.305, Severity.WARNING),
        (0.32, None),
        (0.10, Severity.CRITICAL),
    ]
    assert [said(level, free) for free, _ in steps] == [expected for _, expected in steps]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 0.99])
def test_an_empty_cache_is_never_filling_and_one_below_its_floor_always_is(floor: float) -> None:
    level = CacheLevel(CreditPolicy(free_floor=floor))
    assert said(level, 1.0) is None
    assert said(level, floor / 2) is Severity.CRITICAL
    assert said(level, 1.0) is None


def test_the_words_stay_while_the_level_does() -> None:
    level = CacheLevel(CreditPolicy())
    one, other = (level.look(CacheSpace(total_b=1000, free_b=free)) for free in (280, 270))
    assert one == other
    assert one is not None
    assert "less than 30% of it is free" in one.cause


def test_a_cache_that_cannot_be_measured_is_critical() -> None:
    problem = CacheLevel(CreditPolicy()).look(CacheSpace(total_b=0, free_b=0))
    assert problem is not None
    assert problem.severity is Severity.CRITICAL
