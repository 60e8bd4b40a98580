"""What the stream believes of a life of the agent before it. The kernel is the model's."""

from __future__ import annotations

import random

from agent.stream.catchup import CatchUp
from agent.stream.cutter import Stream
from agent.stream.state import AgentState, Word
from tests.epoch_ids import eid
from tests.stream_model.kernel import DISKS, GRANULE, SECTORS, Kernel
from tests.stream_model.reader import Reader

OLDER_CLAIM = 26
EVERYTHING = [-(-SECTORS // GRANULE)] * DISKS


def life(kernel: Kernel) -> Stream:
    catchup = CatchUp([SECTORS] * DISKS, [kernel.todo[i] for i in range(DISKS)], GRANULE)
    for _ in catchup.recount():
        pass
    return Stream(kernel, AgentState(kernel.words), catchup, Reader(kernel, catchup))  # type: ignore[arg-type]


def test_what_an_older_agent_declared_in_between_makes_everything_to_do_once() -> None:
    kernel = Kernel(random.Random(1))
    stream = life(kernel)
    kernel.words[OLDER_CLAIM] = 9  # of an epoch that is over
    stream.begin_epoch(eid(1))
    stream.unreadable.declare(0, [(3, 1)], 0.0)
    state = AgentState(kernel.words)
    state.set_ordered(0, 0)
    stream = life(kernel)
    assert (stream.unreadable.ranges(), stream.catchup.todo_by_disk()) == ([(0, 3, 1)], [0] * DISKS)
    # Rolled back, within the epoch: the older agent keeps what it declares under the epoch's claim, where it always did.
    kernel.words[OLDER_CLAIM : OLDER_CLAIM + 2] = state[Word.CLAIM], 1
    stream = life(kernel)
    assert (stream.unreadable.ranges(), stream.catchup.todo_by_disk()) == ([], EVERYTHING)
    assert not state[Word.ORDERED]
    kernel.todo[:] = 0
    stream.unreadable.declare(0, [(4, 1)], 0.0)
    stream = life(kernel)
    assert (stream.unreadable.ranges(), stream.catchup.todo_by_disk()) == ([(0, 4, 1)], [0] * DISKS)
