"""What is refused of a disk: how much of it is declared at once, and since when the rest must have been refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.stream.refusals import AT_ONCE, REFUSED_S, WORD_SECTORS, Refusals

WORDS = 6
SECTORS = st.sampled_from([0, 0, 8, 500, 1500, WORD_SECTORS])
STEP = st.tuples(
    st.sampled_from(["read", "read", "read", "end", "hang", "cancel", "take back"]),
    st.integers(0, WORDS - 1),
    SECTORS,
    st.sampled_from([1.0, 100.0, REFUSED_S]),
)


@given(st.lists(STEP, max_size=60))
def test_beyond_a_little_nothing_is_declared_that_was_not_refused_for_long_and_never_given_since(
    life: list[tuple[str, int, int, float]],
) -> None:
    refusals, now = Refusals(WORDS * WORD_SECTORS), 1.0
    refusals.begin_round()
    first: dict[int, float] = {}
    waiting: set[int] = set()
    declared: set[int] = set()
    at_once = 0
    is_left = False
    for what, word, sectors, passed in life:
        now += passed
        if what in ("read", "take back"):
            may_lose = refusals.may_lose(word, now)
            declares = refusals.declares(word, sectors, now)
            assert declares is (sectors <= may_lose)
            is_long = word in first and now - first[word] >= REFUSED_S
            if not sectors:
                assert declares, "what was given is not left to later"
                first.pop(word, None)
                waiting.discard(word)
            elif not declares:
                is_left = True
                if not refusals.is_full:
                    first.setdefault(word, now)
                    waiting.add(word)
            elif what == "take back":
                refusals.take_back(word, sectors)
                declared.discard(word)
                is_left = True
                assert [refusals.may_lose(word, now + REFUSED_S) for word in range(WORDS)] == [0] * WORDS
            else:
                if word in waiting:
                    declared.add(word)
                if not is_long:
                    at_once += sectors
                    assert at_once <= AT_ONCE
            assert refusals.is_waiting is bool(waiting)
        elif what == "cancel":
            refusals.begin_round()
            is_left = False
        else:
            refusals.end_round(is_whole=what == "end")
            waiting -= declared
            declared.clear()
            if what == "end" and not (is_left or waiting):
                at_once = 0
            refusals.begin_round()
            is_left = False


def test_what_was_waited_for_is_declared_also_when_rounds_are_given_up_and_is_waited_for_anew_later() -> None:
    refusals = Refusals(WORDS * WORD_SECTORS)
    refusals.begin_round()
    assert not refusals.declares(1, AT_ONCE + 1, 1.0)
    assert not refusals.declares(2, 1, 2.0)
    for now in (1 + REFUSED_S, 1.5 + REFUSED_S):
        refusals.begin_round()  # the one before was given up
        assert refusals.declares(1, WORD_SECTORS, now)
        assert not refusals.declares(2, 1, now)
    refusals.end_round(is_whole=True)
    refusals.begin_round()
    assert not refusals.declares(1, AT_ONCE, 2 + REFUSED_S)
    assert refusals.declares(2, 0, 2 + REFUSED_S), "it is given"
    assert not refusals.declares(2, 1, 3 + REFUSED_S)


def test_a_round_that_could_not_ask_for_what_is_waited_for_lets_nothing_more_be_declared_at_once() -> None:
    refusals = Refusals(WORDS * WORD_SECTORS)
    refusals.begin_round()
    assert not refusals.declares(1, AT_ONCE + 1, 1.0)
    refusals.end_round(is_whole=True)
    refusals.begin_round()  # a write to word 1 hangs: all else was asked for, and given
    refusals.end_round(is_whole=True)
    refusals.begin_round()
    assert (refusals.may_lose(1, 2.0), refusals.is_waiting) == (0, True)
    assert refusals.declares(1, 0, 3.0)
    refusals.end_round(is_whole=True)
    assert (refusals.may_lose(1, 4.0), refusals.is_waiting) == (AT_ONCE, False)


def test_what_is_taken_back_counts_neither_as_declared_nor_as_refused() -> None:
    refusals = Refusals(WORDS * WORD_SECTORS)
    for now in (1.0, 2.0):
        refusals.begin_round()
        assert refusals.declares(0, AT_ONCE, now)
        refusals.take_back(0, AT_ONCE)
        assert not refusals.declares(1, 1, now)
        assert refusals.is_left
        refusals.end_round(is_whole=True)
    refusals.begin_round()
    refusals.leave(0, 3.0)
    for now in (3 + REFUSED_S, 4 + REFUSED_S):
        refusals.begin_round()
        assert refusals.declares(0, AT_ONCE, now), "it is waited for once"
        refusals.take_back(0, AT_ONCE)
        refusals.end_round(is_whole=True)


def test_a_round_that_left_nothing_and_asked_for_everything_lets_as_much_be_declared_at_once_again() -> None:
    refusals = Refusals(WORDS * WORD_SECTORS)
    for is_whole in (True, False):
        refusals.begin_round()
        assert refusals.may_lose(0, 1.0) == AT_ONCE
        assert refusals.declares(0, AT_ONCE, 1.0)
        refusals.end_round(is_whole=is_whole)
    refusals.begin_round()
    assert refusals.may_lose(0, 1.0) == 0
