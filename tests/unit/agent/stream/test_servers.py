"""Which of several process servers a session is with."""

from __future__ import annotations

import pytest

from agent.stream import servers
from agent.stream.servers import BACK_LIMIT, BACK_S, PATIENCE_S, STEADY_S, ProcessServers

A, B, C = ("a", 1), ("b", 1), ("c", 1)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as they are named."""
    monkeypatch.setattr(servers, "_JITTER", 1.0)


def test_the_only_one_is_stayed_with_however_long_it_is_away() -> None:
    chosen = ProcessServers([A], 0.0)
    assert not chosen.ended(100 * PATIENCE_S, open_s=0.0)
    assert (chosen.current, chosen.is_elsewhere) == (A, False)


def test_nobody_was_named() -> None:
    chosen = ProcessServers([], 0.0)
    assert (chosen.current, chosen.first) == (None, None)


def test_the_next_is_tried_when_there_was_no_session_for_so_long_and_not_before() -> None:
    chosen = ProcessServers([A, B, C], 0.0)
    assert not chosen.ended(PATIENCE_S - 1, open_s=0.0)
    assert chosen.ended(PATIENCE_S, open_s=0.0)
    assert not chosen.ended(2 * PATIENCE_S - 1, open_s=0.0)
    assert (chosen.current, chosen.is_elsewhere) == (B, True)
    for there in (C, A, B):
        chosen.ended(chosen._vain_since + PATIENCE_S, open_s=0.0)
        assert chosen.current == there


def test_a_session_that_was_good_begins_the_wait_anew_and_one_that_was_given_up_at_once_does_not() -> None:
    chosen = ProcessServers([A, B], 0.0)
    assert not chosen.ended(1000.0, open_s=STEADY_S)
    assert not chosen.ended(1000.0 + PATIENCE_S - 1, open_s=STEADY_S - 1)
    assert chosen.ended(1000.0 + PATIENCE_S, open_s=0.0)


def test_the_first_is_asked_every_so_often_since_it_was_left() -> None:
    chosen = ProcessServers([A, B, C], 0.0)
    chosen.ended(40.0, open_s=0.0)
    chosen.ended(80.0, open_s=0.0)  # it is with the third now
    assert chosen.ask_first_in_s(100.0) == BACK_S - 60.0
    chosen.first_is_away(700.0)
    assert chosen.ask_first_in_s(700.0) == BACK_S
    chosen.go_back(1300.0)
    assert (chosen.current, chosen.is_elsewhere) == (A, False)
    assert not chosen.ended(1300.0 + PATIENCE_S - 1, open_s=0.0), "the one that came back has its time, too"


def test_a_first_one_that_answers_and_has_no_session_is_gone_back_to_less_and_less_often() -> None:
    chosen = ProcessServers([A, B], 0.0)
    now, waits = 0.0, []
    for _ in range(10):
        now += PATIENCE_S
        assert chosen.ended(now, open_s=0.0)
        waits.append(chosen.ask_first_in_s(now))
        now += waits[-1]
        chosen.go_back(now)
    assert waits[:4] == [BACK_S, 2 * BACK_S, 4 * BACK_S, 8 * BACK_S]
    assert waits[-1] == BACK_LIMIT * BACK_S
    chosen.ended(now + STEADY_S, open_s=STEADY_S)  # a good session
    chosen.ended(now + STEADY_S + PATIENCE_S, open_s=0.0)
    assert chosen.ask_first_in_s(now + STEADY_S + PATIENCE_S) == BACK_S


def test_waits_are_drawn_anew_so_that_a_site_does_not_move_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_JITTER", 2.0)
    waits = set()
    for _ in range(20):
        chosen = ProcessServers([A, B], 0.0)
        chosen.ended(2 * PATIENCE_S, open_s=0.0)
        waits.add(chosen.ask_first_in_s(2 * PATIENCE_S))
    assert len(waits) > 10
    assert BACK_S <= min(waits) <= max(waits) <= 2 * BACK_S


def test_whoever_had_the_session_before_has_the_next_and_the_first_is_asked_at_once() -> None:
    chosen = ProcessServers([A, B, C], 1000.0, former=B)
    assert (chosen.current, chosen.is_elsewhere, chosen.ask_first_in_s(1000.0)) == (B, True, 0.0)
    chosen.first_is_away(1001.0)
    assert chosen.ask_first_in_s(1001.0) == BACK_S
    for former in (None, A, ("named no more", 1)):
        chosen = ProcessServers([A, B, C], 1000.0, former=former)
        assert (chosen.current, chosen.is_elsewhere) == (A, False)
    assert ProcessServers([], 0.0, former=A).current is None


@pytest.mark.parametrize("how", ["all is uploaded", "it is away"])
def test_one_that_is_named_no_more_and_is_needed_comes_before_all_others_and_never_again(how: str) -> None:
    chosen = ProcessServers([A, B], 0.0, former=B, left=C)
    assert (chosen.current, chosen.first, chosen.is_elsewhere, chosen.is_leaving) == (C, A, True, True)
    if how == "it is away":
        assert not chosen.ended(PATIENCE_S - 1, open_s=0.0)
        assert chosen.ended(PATIENCE_S, open_s=0.0)
    else:
        chosen.go_back(PATIENCE_S)
    assert (chosen.current, chosen.is_elsewhere, chosen.is_leaving) == (A, False, False)
    found = [chosen.current]
    for n in range(2, 5):
        chosen.ended(n * PATIENCE_S, open_s=0.0)
        found.append(chosen.current)
        if n == 2:
            assert chosen.ask_first_in_s(n * PATIENCE_S) == BACK_S, "it was no return in vain"
    assert found == [A, B, A, B]
    assert ProcessServers([], 0.0, left=C).current is None, "the stream is to go nowhere"
