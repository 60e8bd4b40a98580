"""Two daemons under one name, and what only looks like it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from config_server.rules import twins
from config_server.rules.clock import SECOND_NS
from config_server.rules.twins import SILENT_S, Starts


class Daemon:
    def __init__(self, starts: Starts, start: str, number: int = 0) -> None:
        self._starts, self._start, self.number = starts, start, number

    def says(self, now_s: float, number: int | None = None) -> bool:
        self.number += number is None
        return self._starts.counts(self._start, number or self.number, self._start, int(now_s * SECOND_NS))


def there_are_two(starts: Starts, now_s: float) -> tuple[str, str] | None:
    return starts.twins(int(now_s * SECOND_NS))


def test_of_two_that_go_on_the_first_is_believed_and_both_are_named_until_one_ends() -> None:
    starts = Starts()
    first, second = Daemon(starts, "first"), Daemon(starts, "second")
    believed = []
    for now_s in range(0, 40, 2):
        assert first.says(now_s)
        if now_s >= 10:
            believed.append(second.says(now_s + 1))
    assert believed == [True] * 5 + [False] * 10
    assert there_are_two(starts, 40) == ("first", "second")
    assert second.says(38 + SILENT_S + 1)
    assert there_are_two(starts, 38 + SILENT_S + 1) is None


def test_when_the_one_that_came_second_ends_nothing_is_wrong_any_more() -> None:
    starts = Starts()
    first, second = Daemon(starts, "first"), Daemon(starts, "second")
    for now_s in range(0, 20, 2):
        first.says(now_s)
        second.says(now_s + 1)
    assert there_are_two(starts, 20)
    assert first.says(19 + SILENT_S + 1)
    assert there_are_two(starts, 19 + SILENT_S + 1) is None


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.lists(st.floats(0, 20), max_size=twins._UNDER_WAY)), min_size=1)
)
def test_restarts_are_believed_at_once_whatever_was_under_way(
    runs: list[tuple[int, list[float]]],
) -> None:
    """Each process reports some times, and what it had under way at its end comes so much later."""
    starts, now_s = Starts(), 0.0
    late: list[tuple[float, Daemon]] = []
    for run, (reports, delays) in enumerate(runs):
        daemon = Daemon(starts, f"{run}")
        for count in range(reports):
            now_s += 2.0
            for item in [item for item in late if item[0] <= now_s]:
                late.remove(item)
                item[1].says(now_s)
            assert daemon.says(now_s), count
            assert there_are_two(starts, now_s) is None
        late += [(now_s + delay_s, daemon) for delay_s in delays]


def test_a_clone_with_its_memory_is_told_by_the_count_that_is_behind() -> None:
    starts = Starts()
    original, clone = Daemon(starts, "it", 500), Daemon(starts, "it", 100)
    for now_s in range(0, 10, 2):
        assert original.says(now_s)
        assert not clone.says(now_s + 1)
    assert there_are_two(starts, 10) == ("it", "it")


def test_a_machine_that_was_put_back_to_a_snapshot_with_memory_is_alone() -> None:
    starts = Starts()
    daemon = Daemon(starts, "it", 500)
    for now_s in range(0, 10, 2):
        daemon.says(now_s)
    daemon.number = 100
    for now_s in range(10, 100, 2):
        daemon.says(now_s)
        assert there_are_two(starts, now_s) is None


def test_many_starts_cost_a_bounded_memory_and_do_not_displace_the_one_that_reports() -> None:
    starts = Starts()
    first = Daemon(starts, "first")
    for now_s in range(100):
        assert first.says(now_s)
        Daemon(starts, f"{now_s}").says(now_s + 0.5)
    assert len(starts._starts) == twins._STARTS
