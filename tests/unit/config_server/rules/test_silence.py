"""For how long nothing was heard of somebody."""

from __future__ import annotations

from config_server.rules.clock import SECOND_NS
from config_server.rules.silence import Silence


def looks(silence: Silence, *at_s: float, mark: int = 1, name: str = "j1") -> list[float]:
    return [silence.look(name, mark, int(second * SECOND_NS)) for second in at_s]


def test_it_begins_with_the_first_look_and_grows_until_something_is_heard() -> None:
    silence = Silence(10.0)
    assert looks(silence, 1000, 1005, 1010) == [0, 5, 10]
    assert looks(silence, 1015, 1020, mark=2) == [0, 5], "another mark: it was heard"
    assert looks(silence, 1020, name="j2") == [0], "each for itself"


def test_of_a_time_in_which_nobody_looked_little_counts() -> None:
    assert looks(Silence(10.0), 0, 5, 3605, 3610) == [0, 5, 15, 20]


def test_what_is_forgotten_is_counted_anew() -> None:
    silence = Silence(10.0)
    looks(silence, 0, 5)
    for _ in range(2):
        silence.forget("j1")
    assert looks(silence, 10, 15) == [0, 5]
