"""How long a report may have lain in a server that stood still."""

from __future__ import annotations

from config_server.rules.clock import SECOND_NS
from config_server.rules.stillness import Stillness


def held_up_s(stillness: Stillness, now_s: float) -> float:
    return stillness.held_up_ns(int(now_s * SECOND_NS)) / SECOND_NS


def beats(stillness: Stillness, *at_s: float) -> None:
    for now_s in at_s:
        stillness.beat(int(now_s * SECOND_NS))


def test_while_a_server_works_nothing_lies_in_it() -> None:
    stillness = Stillness()
    assert held_up_s(stillness, 50) == 0
    beats(stillness, *range(100, 160))
    assert held_up_s(stillness, 160.5) == 0


def test_what_is_read_behind_a_stillness_may_have_come_at_its_beginning() -> None:
    """Also before anybody has noticed it, and for a while, since there is much to read."""
    stillness = Stillness()
    beats(stillness, 100, 101)
    assert held_up_s(stillness, 130) == 29
    beats(stillness, 130, 131)
    assert held_up_s(stillness, 131.5) == 30.5
    beats(stillness, *range(132, 150))
    assert held_up_s(stillness, 149.5) == 0


def test_two_that_follow_each_other_are_one() -> None:
    stillness = Stillness()
    beats(stillness, 100, 101, 130, 131, 140)
    assert held_up_s(stillness, 141) == 40
