"""What the stream stores is always a state that the disks had; and each rule that it rests on is needed. The model: tests/stream_model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agent.stream.records
import agent.stream.rounds
import agent.stream.state
import shared.wire.protocol
from agent.stream.catchup import CatchUp
from agent.stream.marks import Marks
from agent.stream.records import Records
from agent.stream.rounds import Rounds
from agent.stream.state import AgentState, Word
from tests.stream_model.model import ran


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_what_is_stored_is_always_a_state_that_the_disks_had(seed: int) -> None:
    assert ran(seed).problems == []


def test_the_model_restarts_the_agent_between_a_loss_and_its_notice() -> None:
    believed_after_loss = lies = 0
    for seed in range(30):
        model = ran(seed)
        assert model.problems == []
        believed_after_loss += model.believed_after_loss
        lies += model.lies
        if believed_after_loss and lies:
            return
    raise AssertionError(f"of two things one was never seen: {believed_after_loss}, {lies}")


def orphans_by_any_window(self: Records, end: int) -> int:
    return self._grace[0]


def nothing_held(self: Records, emitted_to: int, hold_from: int | None) -> None:
    self.emitted_to = self.hold_from = emitted_to


def forgetful_marks(self: Marks, stored: object) -> None:
    pass


def believe_order_whatever_is_to_do(self: Rounds) -> bool:
    return bool(self._state[Word.ORDERED])


def resume_without_void(self: CatchUp, spooled: int) -> bool:
    self._pending.drop_behind(spooled)
    return False


_word = agent.stream.state._word


def word_without_place(number: int, digest: bytes, _end_seq: int, remembered: int) -> int:
    return _word(number, digest, 0, remembered)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (Records, "_dead_before", orphans_by_any_window),
        (Records, "go_to", nothing_held),
        (Marks, "lost_behind", forgetful_marks),
        (CatchUp, "resume", resume_without_void),
        (Rounds, "_may_believe_order", believe_order_whatever_is_to_do),
        (AgentState, "may_cut", property(lambda self: True)),
        (agent.stream.state, "_word", word_without_place),
        (AgentState, "is_ours", lambda self, number, digest, end_seq: True),
        (shared.wire.protocol, "_check_epoch", lambda hello, welcome: None),
        (shared.wire.protocol, "_check_positions", lambda welcome: None),
    ],
)
def test_a_rule_that_is_broken_is_noticed(
    owner: object, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    for seed in range(200):
        try:
            if ran(seed).problems:
                return
        except AssertionError:
            return
    pytest.fail(f"{name} was not noticed: the model does not exercise that rule")
