"""A disk that stays the same one to the kernel (its diskseq), and holds something else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.capture import layout, libbpf
from agent.capture.audit import SAME, Outcome
from agent.capture.disks import Disk, find_disk
from agent.capture.maps import Capture, detach
from agent.continuity.auditor import Continuity
from agent.stream.state import AgentState, Reason, Word
from agent.stream.unreadable import Unreadable
from tests.capture_parts import MIB, is_emptied, needs_capture, queue_setting, rig, run, until, zram
from tests.epoch_ids import eid
from tests.protected_machine import machine_with_two_disks, reattach

pytestmark = needs_capture
THERE_NS = 123


@contextmanager
def looking(capture: Capture) -> Iterator[Continuity]:
    """Continuity over a capture, as an agent has it after its start. The rounds of catch-up are not there."""
    state = AgentState(capture.state)
    state[Word.SETTLED] = 1
    rounds: Any = SimpleNamespace(leave_out=lambda disks: None, unread=dict, read_again=lambda writes: None)
    watch: Any = SimpleNamespace(is_one_back=lambda *, looking: False, silent=frozenset())
    yield Continuity(capture, state, rounds, watch, lambda: Unreadable(len(capture.disks)))


def begin_epoch(capture: Capture) -> AgentState:
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    return state


def test_a_disk_that_was_emptied_while_no_agent_ran_ends_the_epoch_and_is_audited_again() -> None:
    with rig(4 * MIB, count=0, attached=False) as r, ExitStack() as undo:
        disk = undo.enter_context(zram(4 * MIB))
        undo.callback(lambda: detach(r.pin_dir))
        r.disks = [disk]
        capture = r.attach()
        state = begin_epoch(capture)
        with looking(capture) as continuity:
            r.write(0, b"A" * 8192)
            for _ in range(SAME):
                continuity.check()
            assert (state[Word.EPOCH], state[Word.WENT]) == (7, 0)
        state[Word.ALL_THERE_NS] = THERE_NS
        capture.close()
        del continuity, capture
        folder = Path(f"/sys/block/{disk.name}")
        until(lambda: is_emptied(folder), "the disk stays in use")
        (folder / "disksize").write_text(str(4 * MIB))
        assert find_disk(disk.path).diskseq == disk.diskseq
        again = r.attach()
        assert not again.fresh
        state = AgentState(again.state)
        with looking(again) as continuity:
            continuity.check()
            assert (state[Word.EPOCH], state.reason) == (0, Reason.DISK_RETURNED)
            assert state[Word.SUSPECT_SINCE_NS] == THERE_NS
            assert "began anew" in continuity.problems[0].cause
            state.begin_epoch(eid(8))
            r.write(8192, b"B" * 8192)
            for _ in range(SAME):
                continuity.check()
            assert (state[Word.EPOCH], continuity._verdicts[0].outcome) == (8, Outcome.EXACT)
        again.close()


@pytest.mark.parametrize("killed", [True, False])
def test_a_disk_that_was_gone_and_is_back_as_the_same_one_ends_the_epoch(killed: bool) -> None:
    with rig(4 * MIB, count=2) as r:
        state = begin_epoch(r.capture)
        with looking(r.capture) as continuity:
            continuity.check()
            there_ns = state[Word.ALL_THERE_NS]
            resize(r.backing[1], r.disks[1], 0)
            continuity.check()
            assert [problem.code for problem in continuity.problems] == ["US220"]
            assert state[Word.EPOCH] == 7
        with r.backing[1].open("wb") as file:
            file.write(b"Z" * 4096)
        resize(r.backing[1], r.disks[1], 4 * MIB)
        assert find_disk(r.disks[1].path).diskseq == r.disks[1].diskseq
        if killed:
            r.capture.close()
            r.attach()
            state = AgentState(r.capture.state)
        with looking(r.capture) if killed else ExitStack() as another:
            found = another if isinstance(another, Continuity) else continuity
            found.check()
            assert (state[Word.EPOCH], state.reason) == (0, Reason.DISK_RETURNED)
            assert 0 < state[Word.SUSPECT_SINCE_NS] <= max(there_ns, time.time_ns())
            state.begin_epoch(eid(8))
            found.check()
            assert (state[Word.EPOCH], state[Word.WENT]) == (8, 0), "it ends every epoch"


def test_what_is_written_to_another_disk_in_the_place_of_one_that_is_gone_is_nobodys_loss() -> None:
    with machine_with_two_disks() as machine:
        capture, _ = machine.protect()
        r, state = machine.rig, begin_epoch(capture)
        state.set_ordered(0, 0)
        with looking(capture) as continuity:
            for _ in range(SAME):
                continuity.check()
            reattach(r.device, r.backing[0])
            r.write(0, b"S" * 8192)  # past capture, for it is not the captured disk
            for _ in range(2):
                continuity.check()
            assert [problem.code for problem in continuity.problems] == ["US220"]
            assert continuity._verdicts[0].outcome is Outcome.UNVERIFIABLE
            assert (state[Word.EPOCH], state[Word.ORDERED]) == (7, 1)


def test_a_disk_that_is_not_counted_keeps_no_write_of_another_open() -> None:
    with rig(4 * MIB, count=2, attached=False) as r, queue_setting(r.disks[1], "iostats", "0"):
        r.disks = [find_disk(disk.path) for disk in r.disks]
        capture = r.attach()
        begin_epoch(capture)
        stale = np.zeros((), layout.OPEN_WRITE)
        stale["since_ns"], stale["sectors"] = 1, 8
        fd = libbpf.get(r.pin_dir / "open")
        try:
            for slot in (0, 1):
                stale["disk"] = slot
                libbpf.update(fd, slot.to_bytes(8, "little"), stale.tobytes())
        finally:
            os.close(fd)
        with looking(capture) as continuity:
            for _ in range(SAME + 1):
                continuity.check()
        assert capture.open_writes()["disk"].tolist() == [1]
        assert [problem.code for problem in continuity.problems] == ["US406"]
        capture.close()


def resize(backing: Path, disk: Disk, size_b: int) -> None:
    with backing.open("r+b") as file:
        file.truncate(size_b)
    run("losetup", "--set-capacity", str(disk.path))
