"""The pinned words that survive a kill of the agent."""

from __future__ import annotations

import numpy as np
import pytest

from agent.stream.state import WORDS, AgentState, Reason, Word
from shared.batch import Epoch


@pytest.fixture
def words() -> np.ndarray:
    return np.zeros(WORDS, np.uint64)


def test_fresh_words_want_an_initial_epoch(words: np.ndarray) -> None:
    state = AgentState(words)
    assert state[Word.EPOCH] == 0
    assert state.reason is Reason.INITIAL


def test_words_of_another_layout_are_not_believed(words: np.ndarray) -> None:
    words[Word.LAYOUT] = 99
    words[Word.EPOCH] = 7
    assert AgentState(words)[Word.EPOCH] == 0


def test_what_was_cut_is_known_after_a_restart(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(Epoch(3))
    state.cut(1, b"a" * 16)
    state.cut(2, b"b" * 16)
    again = AgentState(words)
    assert again[Word.EPOCH] == 3
    assert again[Word.LAST_CUT] == 2
    assert again.digest_of(0) == bytes(16)
    assert again.digest_of(1) == b"a" * 16
    assert again.digest_of(2) == b"b" * 16
    assert again.digest_of(3) is None


def test_digests_of_batches_long_past_are_unknown_and_never_another_batchs(
    words: np.ndarray,
) -> None:
    state = AgentState(words)
    for number in range(1, 3000):
        state.cut(number, number.to_bytes(16, "big"))
    known = [number for number in range(1, 3000) if state.digest_of(number) is not None]
    assert known == list(range(3000 - len(known), 3000))
    assert len(known) > 900
    assert all(state.digest_of(number) == number.to_bytes(16, "big") for number in known)


def test_a_new_epoch_forgets_the_digests_and_the_order_of_the_old_one(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(Epoch(1))
    state.cut(1, b"a" * 16)
    state.set_ordered(4, 99)
    state.want_epoch(Reason.AUDIT_SHORTFALL)
    assert state[Word.EPOCH] == 0
    assert not state[Word.ORDERED]
    state.begin_epoch(Epoch(2))
    assert state.digest_of(1) is None
    assert state[Word.LAST_CUT] == 0
    assert state.reason is Reason.AUDIT_SHORTFALL


def test_the_earliest_doubt_counts_until_the_new_epoch_has_begun(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(Epoch(1))
    state.want_epoch(Reason.AUDIT_SHORTFALL, 500)
    state.want_epoch(Reason.AUDIT_SHORTFALL, 900)
    state.want_epoch(Reason.MANUAL)
    assert state[Word.SUSPECT_SINCE_NS] == 500
    state.begin_epoch(Epoch(2))
    state.want_epoch(Reason.MANUAL)
    assert state[Word.SUSPECT_SINCE_NS] == 0


def test_every_reason_has_its_words() -> None:
    assert all(reason.text for reason in Reason)
