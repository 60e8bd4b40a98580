"""Which disk is given up for want of room: rounds over bad sectors, with the real lane, the real words and the real rule."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.continuity.patience import FIRST_S, Patience
from agent.continuity.refusing import OutOfRoom
from agent.stream.catchup import Chunk
from agent.stream.lane import Lane, ReadChunk
from agent.stream.refusals import WORD_SECTORS
from agent.stream.spans import TooMuchRefused
from agent.stream.state import AgentState
from agent.stream.unreadable import Runs, Unreadable
from shared.errors import TooMuchUnreadableError
from tests.marks import examples

WORDS: Final = 200
CELL: Final = 16
"""Sectors of a word, at most."""
FILL: Final = 10_000_000
"""From where on the second disk has named what fills its room, a sector a word."""


class Machine:
    """Two disks; the second one has no room left. `bad`: how many words what it refuses would take, of each of its chunks to do."""

    def __init__(self, bad: list[int]) -> None:
        self.now = 1000.0
        self.unreadable = Unreadable(2, np.zeros(WORDS, np.uint64), claim=1)
        self.unreadable.begin()
        self.unreadable.declare(0, [(7, 1)], 0.0)
        self.filled = 0
        while self.unreadable.has_room(1, [(FILL + CELL * self.filled, 1)], []):
            self.unreadable.declare(1, [(FILL + CELL * self.filled, 1)], 0.0)
            self.filled += 1
        self.bad: dict[int, Runs] = {
            word: [(word * WORD_SECTORS + CELL * i, 1) for i in range(words)]
            for word, words in enumerate(bad)
        }
        disks: Any = [SimpleNamespace(id=name, path=Path("/dev") / name) for name in ("sda", "sdb")]
        self.lane = lane = Lane(1, disks[1], WORD_SECTORS * 1000)
        capture: Any = SimpleNamespace(disks=disks, mode="ordered")
        rounds: Any = SimpleNamespace(
            unread=lambda: {1: lane.too_much} if lane.too_much else {}, lack=lambda _: lane.lack
        )
        state = AgentState(np.zeros(4096, np.uint64))
        self.rule = OutOfRoom(capture, state, rounds, lambda: self.unreadable, Patience())
        self.given_up = False
        self.was_given_up = False
        """Before the last words were freed."""

    def frees(self, words: int) -> None:
        """A trial was given them, say, and a round sent them."""
        self.was_given_up |= self.given_up and words > 0
        words = min(words, self.filled - 1)
        self.filled -= words
        self.unreadable.remove(1, [(FILL + CELL * self.filled, CELL * words)])

    def round(self, frees_at: dict[int, int], step_s: float, when_tried: int = 0) -> None:
        """Over all chunks to do, with a look behind each; before each of some, words become free, and when one had no room."""
        self.lane.begin_round()
        for n, (word, runs) in enumerate([*self.bad.items()]):
            self.frees(frees_at.get(n, 0))
            chunk = Chunk(1, word, (1 << 64) - 1, word * WORD_SECTORS, WORD_SECTORS)
            if self.lane.may_lose(chunk) < len(runs):
                self.lane.leave_refused(TooMuchRefused(chunk, runs[0][0]))
            else:
                read = ReadChunk(chunk, np.zeros(0, np.uint8), runs, True, mmap.mmap(-1, 4096))
                if not self.lane.declares(read):
                    pass
                elif self.unreadable.has_room(1, runs, []):
                    self.unreadable.declare(1, runs, self.now)
                    del self.bad[word]
                else:
                    self.lane.take_back(read, TooMuchUnreadableError("full"))
                    self.frees(when_tried)
            self.looks(step_s)
        self.lane.end_round()
        self.looks(step_s)

    def looks(self, step_s: float) -> None:
        self.now += step_s
        self.given_up |= bool(self.rule.give_up(()))

    def wait_is_over_in(self, looks: int, step_s: float) -> None:
        self.now = max(self.now, 1000.0 + FIRST_S - looks * step_s)


steps = st.sampled_from([0.1, 1.0])


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.integers(1, 6), min_size=12, max_size=24), st.integers(0, 3), st.integers(0, 6), steps)
def test_a_disk_whose_bad_sectors_fit_before_it_is_given_up_is_not_given_up(
    bad: list[int], chunk: int, over_in: int, step_s: float
) -> None:
    """However little of them was looked through when room became free, in the middle of a round, and the wait over."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(bad)
        patch.setattr(time, "monotonic", lambda: machine.now)
        machine.round({}, step_s)
        machine.wait_is_over_in(over_in, step_s)
        machine.round({min(chunk, len(bad) - 1): sum(bad)}, step_s)
        if machine.was_given_up:
            return
        for _ in range(3):
            machine.round({}, step_s)
        assert not machine.given_up
        assert not machine.bad
        assert machine.lane.too_much is None
        machine.lane.threads.close()


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.integers(3, 6), min_size=20, max_size=24), st.integers(0, 6), steps)
def test_a_disk_of_which_most_does_not_fit_is_given_up_whatever_is_freed_now_and_then(
    bad: list[int], over_in: int, step_s: float
) -> None:
    """Each time all that is known would fit. As soon as a chunk was tried again behind the wait."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(bad)
        patch.setattr(time, "monotonic", lambda: machine.now)
        machine.round({}, step_s)
        machine.wait_is_over_in(over_in, step_s)
        for _ in range(3):
            machine.round({}, step_s, when_tried=len(machine.bad) + 5)
        assert machine.given_up
        machine.lane.threads.close()
