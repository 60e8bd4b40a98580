"""The pinned words that survive a kill of the agent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xxhash

from agent.capture.layout import SERVER_WORDS
from agent.stream.state import AgentState, Reason, Suspicion, Word, move
from shared.log.epoch_id import NO_EPOCH, EpochId, new_claim
from shared.recovery.position import Position
from tests.epoch_ids import eid

REMEMBERED = 200


@pytest.fixture
def words() -> np.ndarray:
    return np.zeros(96 + REMEMBERED, np.uint64)


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
    state.begin_epoch(eid(3))
    state.cut(1, b"a" * 16, 10 * 1)
    state.cut(2, b"b" * 16, 10 * 2)
    again = AgentState(words)
    assert again[Word.EPOCH] == 3
    assert again[Word.LAST_CUT] == 2
    assert again.is_ours(0, bytes(16), 10 * 0)
    assert again.is_ours(1, b"a" * 16, 10 * 1)
    assert again.is_ours(2, b"b" * 16, 10 * 2)
    assert again.is_ours(2, b"a" * 16, 10 * 2) is False
    assert again.is_ours(3, b"c" * 16, 10 * 3) is None


def digest(number: int) -> bytes:
    return xxhash.xxh3_128_digest(number.to_bytes(8, "little"))


def test_digests_of_batches_long_past_are_unknown_and_never_another_batchs(words: np.ndarray) -> None:
    state = AgentState(words)
    last = 3 * REMEMBERED + 7
    for number in range(1, last + 1):
        state.cut(number, digest(number), 10 * number)
    for number in range(1, last + 1):
        known = True if number > last - REMEMBERED else None
        assert state.is_ours(number, digest(number), 10 * number) is known
        assert not state.is_ours(number, digest(number + 1), 10 * number)


@pytest.mark.parametrize("of_old", [False, True])
@pytest.mark.parametrize("last", [0, 1, REMEMBERED - 1, REMEMBERED, 3 * REMEMBERED + 7])
def test_what_is_known_moves_to_a_larger_memory(words: np.ndarray, last: int, of_old: bool) -> None:
    state = AgentState(words)
    if of_old:  # captures of older agents have 32 words of patience, and the digests behind them
        words[Word.DIGESTS_AT] = 0
        state = AgentState(words[:-32])
    state.patience_words[:] = range(1, 33 if of_old else 65)
    state.begin_epoch(eid(7))
    for number in range(1, last + 1):
        state.cut(number, digest(number), 10 * number)
    larger = np.zeros(96 + 3 * REMEMBERED + 5, np.uint64)
    move(words[:-32] if of_old else words, larger)
    moved = AgentState(larger)
    assert moved.patience_words.tolist() == [*range(1, 33), *([0] * 32 if of_old else range(33, 65))]
    assert (moved.epoch, moved[Word.LAST_CUT]) == (eid(7), last)
    for number in range(1, last + 2):
        assert moved.is_ours(number, digest(number), 10 * number) is state.is_ours(
            number, digest(number), 10 * number
        )
    moved.cut(last + 1, digest(last + 1), 5)
    assert moved.is_ours(last + 1, digest(last + 1), 5)


def test_a_new_epoch_forgets_the_digests_and_the_order_of_the_old_one(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(eid(1))
    state.cut(1, b"a" * 16, 10 * 1)
    state.set_ordered(4, 99)
    state.want_epoch(Reason.AUDIT_SHORTFALL)
    assert state[Word.EPOCH] == 0
    assert not state[Word.ORDERED]
    state.begin_epoch(eid(2))
    assert state.is_ours(1, b"a" * 16, 10 * 1) is None
    assert state[Word.LAST_CUT] == 0
    assert state.reason is Reason.AUDIT_SHORTFALL


def test_the_earliest_doubt_counts_until_the_new_epoch_has_begun(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(eid(1))
    state.want_epoch(Reason.AUDIT_SHORTFALL, Suspicion(Position.of(1, 50), 900))
    state.want_epoch(Reason.AUDIT_SHORTFALL, Suspicion(Position.of(1, 90), 500))
    state.want_epoch(Reason.MANUAL)
    assert state.suspicion == Suspicion(Position.of(1, 50), 500)
    state.begin_epoch(eid(2))
    assert state.suspicion is None
    state.want_epoch(Reason.MANUAL)
    assert state.suspicion is None


@pytest.mark.parametrize("at", [(0, 0), (0, 7), (1, 0), (7, 10**12 - 1), (2**24 - 1, 1)])
def test_the_position_of_a_doubt_survives_in_one_word(words: np.ndarray, at: tuple[int, int]) -> None:
    suspicion = Suspicion(Position.of(*at), 1)
    AgentState(words).want_epoch(Reason.AUDIT_SHORTFALL, suspicion)
    assert AgentState(words).suspicion == suspicion


def test_a_position_that_no_word_holds_makes_everything_suspect(words: np.ndarray) -> None:
    AgentState(words).want_epoch(Reason.AUDIT_SHORTFALL, Suspicion(Position.of(10**8 - 1, 5), 1))
    assert AgentState(words).suspicion == Suspicion(Position.of(0, 0), 1)


def test_while_a_new_epoch_is_wanted_all_of_the_one_before_is_cut(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(eid(3))
    state.cut(5, digest(5), 50)
    state.want_epoch(Reason.MANUAL)
    assert state.last_cut == (3, 5)
    state.begin_epoch(eid(4))
    assert state.last_cut == (4, 0)


def test_every_reason_has_its_words() -> None:
    assert all(reason.text for reason in Reason)


def test_a_batch_is_ours_only_with_the_place_in_the_ring_at_which_it_ended(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(eid(1))
    state.cut(1, digest(1), 70)
    assert state.is_ours(1, digest(1), 70)
    assert [state.is_ours(1, digest(1), seq) for seq in (0, 69, 71, 70 + (1 << 32), (1 << 63) - 1)] == [
        False
    ] * 5


class Stores:
    """Words that remember how they stood after each store, as a kill right behind it leaves them."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words
        self.seen: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.words[at] = value
        self.seen.append(self.words.copy())


def test_number_and_claim_change_as_one_wherever_a_kill_falls(words: np.ndarray) -> None:
    stores: Any = Stores(words)
    state = AgentState(stores)
    old, new = eid(3, life=1), eid(4, life=2)
    state.begin_epoch(old)
    stores.seen.clear()
    state.begin_epoch(new)
    found = [AgentState(left).epoch for left in stores.seen]
    assert set(found) <= {old, NO_EPOCH, new}
    assert found[-1] == new
    stores.seen.clear()
    state.want_epoch(Reason.MANUAL)
    assert {AgentState(left).epoch for left in stores.seen} == {new, NO_EPOCH}


def test_the_highest_number_ever_begun_is_remembered(words: np.ndarray) -> None:
    state = AgentState(words)
    for number in (3, 9, 4):
        state.begin_epoch(eid(number))
        state.want_epoch(Reason.MANUAL)
    assert AgentState(words)[Word.SEEN_EPOCH] == 9


def test_pins_without_a_claim_name_an_epoch_that_nobody_has(words: np.ndarray) -> None:
    state = AgentState(words)
    state.begin_epoch(eid(3))
    words[Word.CLAIM] = 0
    assert AgentState(words).epoch == EpochId(3, "0" * 16)
    assert new_claim() != "0" * 16


def test_a_reason_of_a_newer_agent_is_one_that_is_not_known() -> None:
    state = AgentState(np.zeros(96 + REMEMBERED, np.uint64))
    state[Word.REASON] = 77
    assert state.reason is Reason.OTHER
    assert state.reason.text


def test_disks_under_other_ids_are_another_epochs() -> None:
    state = AgentState(np.zeros(96 + REMEMBERED, np.uint64))
    state.begin_epoch(eid(7))
    state.has_disks(["sda", "sdb"])  # a capture from before ids were noted
    state.has_disks(["sda", "sdb"])
    assert state[Word.EPOCH] == 7
    state.has_disks(["sdb", "sda"])
    assert (state[Word.EPOCH], state.reason) == (0, Reason.DISK_RENAMED)
    state.want_epoch(Reason.DISK_LEFT)
    state.has_disks(["sdb"])
    assert state.reason == Reason.DISK_LEFT


def test_what_was_freed_and_not_uploaded_is_known_after_a_restart_and_of_each_epoch_by_itself(
    words: np.ndarray,
) -> None:
    state = AgentState(words)
    assert not state.is_freed_too_early
    state[Word.UPLOADED] = 1_790_000_000_000_000_000  # an older agent's time
    state.begin_epoch(eid(1))
    assert not state.is_freed_too_early
    for freed, uploaded, too_early in ((5, 3, True), (5, 5, False), (6, 5, True), (6, 9, False)):
        state[Word.FREED] = freed
        state.uploaded(uploaded)
        assert AgentState(words).is_freed_too_early is too_early
    state.want_epoch(Reason.MANUAL)
    assert not state.is_freed_too_early
    state.uploaded(9)  # late, of the epoch that is over
    state.begin_epoch(eid(2))
    assert not state.is_freed_too_early
    state[Word.FREED] = 1
    assert state.is_freed_too_early


@pytest.mark.parametrize("server", [("ps1.example.com", 9443), ("fd00::1", 9443), ("h" * 253, 65535)])
def test_who_had_the_last_session_is_known_whoever_is_named_now(
    words: np.ndarray, server: tuple[str, int]
) -> None:
    text = np.zeros(SERVER_WORDS, np.uint64)
    state = AgentState(words, text)
    state.begin_epoch(eid(1))
    assert state.last_server([server]) is None
    state.goes_on_with(server)
    again = AgentState(words, text)
    assert again.last_server([]) == server
    other = ("another", 1)
    again._server[0] = b"another:1"  # a kill before the digest
    assert (again.last_server([server, other]), again.last_server([other])) == (server, None)
    again.goes_on_with(other)
    assert again.last_server([server]) == other
    again.want_epoch(Reason.MANUAL)
    assert again.last_server([other]) is None, "whoever is preferred can have the new epoch"
