"""The pinned words that survive a kill of the agent."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from agent.stream.state import REMEMBERED, WORDS, AgentState, Reason, Word
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
    assert again.is_ours(0, bytes(16))
    assert again.is_ours(1, b"a" * 16)
    assert again.is_ours(2, b"b" * 16)
    assert again.is_ours(2, b"a" * 16) is False
    assert again.is_ours(3, b"c" * 16) is None


def digest(number: int) -> bytes:
    return xxhash.xxh3_128_digest(number.to_bytes(8, "little"))


def test_digests_of_batches_long_past_are_unknown_and_never_another_batchs(words: np.ndarray) -> None:
    state = AgentState(words)
    last = 3 * REMEMBERED + 7
    for number in range(1, last + 1):
        state.cut(number, digest(number))
    for number in range(1, last + 1):
        known = True if number > last - REMEMBERED else None
        assert state.is_ours(number, digest(number)) is known
        assert not state.is_ours(number, digest(number + 1))


def test_the_first_layouts_digests_and_epoch_are_taken_over(words: np.ndarray) -> None:
    words[Word.LAYOUT] = 1
    words[Word.EPOCH], words[Word.FREED], words[Word.LAST_CUT] = 5, 1900, 2016
    old = words[64:].reshape(1008, 4)
    for number in range(1009, 2017):
        old[number % 1008, 1:3] = np.frombuffer(digest(number), np.uint64)
        old[number % 1008, 0] = number
    state = AgentState(words)
    assert (state[Word.EPOCH], state[Word.LAST_CUT]) == (5, 2016)
    assert all(state.is_ours(number, digest(number)) for number in range(1009, 2017))
    assert state.is_ours(1008, digest(1008)) is None
    assert AgentState(words).is_ours(2000, digest(2000))


def test_a_new_epoch_forgets_the_digests_and_the_order_of_the_old_one(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(Epoch(1))
    state.cut(1, b"a" * 16)
    state.set_ordered(4, 99)
    state.want_epoch(Reason.AUDIT_SHORTFALL)
    assert state[Word.EPOCH] == 0
    assert not state[Word.ORDERED]
    state.begin_epoch(Epoch(2))
    assert state.is_ours(1, b"a" * 16) is None
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


def test_a_reason_of_a_newer_agent_is_one_that_is_not_known() -> None:
    state = AgentState(np.zeros(WORDS, np.uint64))
    state[Word.REASON] = 77
    assert state.reason is Reason.OTHER
    assert state.reason.text


def test_disks_under_other_ids_are_another_epochs() -> None:
    state = AgentState(np.zeros(WORDS, np.uint64))
    state.begin_epoch(Epoch(7))
    state.has_disks(["sda", "sdb"])  # a capture from before ids were noted
    state.has_disks(["sda", "sdb"])
    assert state[Word.EPOCH] == 7
    state.has_disks(["sdb", "sda"])
    assert (state[Word.EPOCH], state.reason) == (0, Reason.DISK_RENAMED)
    state.want_epoch(Reason.DISK_LEFT)
    state.has_disks(["sdb"])
    assert state.reason == Reason.DISK_LEFT
