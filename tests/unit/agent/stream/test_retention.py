"""What was sent and is not uploaded: what of it may be freed, and whether whoever has it can be continued."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.layout import LEAST_STATE_WORDS, RECORD_SIZE, state_words
from agent.stream.retention import Retention
from agent.stream.state import AgentState, Word
from tests.epoch_ids import eid

REMEMBERED = LEAST_STATE_WORDS - 96
OF_OLD = 1008
"""So many digests were remembered once."""


class Agent:
    """Cuts batches of one record each."""

    def __init__(self, words: int = LEAST_STATE_WORDS, ring_b: int = 1 << 30) -> None:
        self.state = AgentState(np.zeros(words, np.uint64))
        self.state.begin_epoch(eid(1))
        ring: Any = SimpleNamespace(used_b=0, size_b=ring_b, consumer_seq=0)
        records: Any = SimpleNamespace(hold_from=0)
        self.ring, self.records = ring, records
        self.ring.free_to = lambda seq: setattr(self.ring, "consumer_seq", seq)
        self.retention = Retention(ring, self.state, records)

    def cut(self, number: int) -> None:
        self.records.hold_from = number
        self.state.cut(number, digest(number), number)
        self.retention.sent(number)


def digest(number: int) -> bytes:
    return xxhash.xxh3_128_digest(number.to_bytes(8, "little"))


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_a_storage_outage_of_many_batches_leaves_every_one_of_them_comparable(agent: Agent) -> None:
    for number in range(1, 3 * OF_OLD + 1):
        agent.cut(number)
        agent.retention.acknowledged(spooled=number, uploaded=10)
    assert agent.state[Word.FREED] == agent.ring.consumer_seq == 10
    assert all(agent.state.is_ours(number, digest(number), number) for number in range(10, 3 * OF_OLD + 1))


def test_what_is_not_remembered_any_more_is_freed_and_nothing_else(agent: Agent) -> None:
    for number in range(1, 3 * REMEMBERED):
        assert agent.state.may_cut
        agent.cut(number)
        agent.retention.acknowledged(spooled=number, uploaded=10)
        freed = agent.state[Word.FREED]
        assert agent.state.is_ours(freed, digest(freed), freed)
    assert agent.state.held > REMEMBERED // 2
    assert agent.ring.consumer_seq == agent.state[Word.FREED]


def test_nothing_is_cut_when_its_digest_would_replace_one_that_may_be_asked_for(agent: Agent) -> None:
    number = 10
    for earlier in range(1, number + 1):
        agent.cut(earlier)
    agent.retention.acknowledged(spooled=number, uploaded=number)
    while agent.state.may_cut:
        number += 1
        agent.cut(number)
    assert agent.state.is_ours(10, digest(10), 10)
    agent.retention.acknowledged(spooled=number, uploaded=10)
    assert agent.state.may_cut


@pytest.mark.parametrize(
    "held", [REMEMBERED // 8 - 10, REMEMBERED // 8 + 10, REMEMBERED * 7 // 8, REMEMBERED - 2]
)
def test_an_agent_that_is_restarted_with_many_batches_held_goes_on_cutting(agent: Agent, held: int) -> None:
    agent.records.go_to = lambda emitted_to, hold_from: setattr(agent.records, "hold_from", emitted_to)
    for number in range(1, held + 1):
        agent.cut(number)
    agent.retention = Retention(agent.ring, agent.state, agent.records)
    agent.retention.go_on_behind(held, held)
    for number in range(held + 1, 3 * REMEMBERED):
        agent.retention.acknowledged(spooled=number - 1, uploaded=0)
        assert agent.state.may_cut
        agent.cut(number)
        freed = agent.state[Word.FREED]
        assert freed == 0 or agent.state.is_ours(freed, digest(freed), freed)
    assert agent.ring.consumer_seq == agent.state[Word.FREED]


RECORDS = 32
"""In a small ring."""


@given(
    st.lists(st.sampled_from(["time", "mark", "write", "writes"]), min_size=8 * RECORDS, max_size=8 * RECORDS)
)
@settings(max_examples=25)
def test_while_the_ring_is_not_half_full_nothing_is_freed_for_want_of_memory(batches: list[str]) -> None:
    ring_b = RECORDS * RECORD_SIZE
    agent = Agent(96 + (state_words(1 << 30) - 96) * RECORDS // ((1 << 30) // RECORD_SIZE), ring_b)
    number, uploaded, marks = 3, 3, 0
    for earlier in range(1, number + 1):
        agent.cut(earlier)
    for batch in batches:
        if (batch == "time" and not agent.state.may_tell_time) or (
            batch == "mark" and marks == RECORDS // 8 - 1
        ):
            continue
        marks += batch == "mark"
        agent.ring.used_b += {"write": 1, "writes": 2}.get(batch, 0) * RECORD_SIZE
        if agent.ring.used_b * 2 >= ring_b:
            break
        assert agent.state.may_cut
        number += 1
        agent.cut(number)
        agent.retention.acknowledged(spooled=number, uploaded=uploaded)
        assert agent.state[Word.FREED] == uploaded
        assert all(agent.state.is_ours(n, digest(n), n) for n in (uploaded, number))


def test_the_memory_has_room_for_every_record_of_the_ring_and_costs_little() -> None:
    for mib in (1, 64, 1024):
        ring_b = mib << 20
        assert state_words(ring_b) - 96 >= ring_b // RECORD_SIZE
        assert state_words(ring_b) * 8 <= max(LEAST_STATE_WORDS * 8, ring_b // 500)
