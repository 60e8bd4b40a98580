"""Which disks hang, and which are given up; over a made-up sysfs, with a clock of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.continuity.hanging import HANGS_S, Hanging
from agent.continuity.patience import FIRST_S, Patience
from agent.stream.state import AgentState, Word
from shared.errors import DeviceError, DiskHangsError, WriteHangsError
from tests.disk_parts import make_disk


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Looks once, some seconds later than before; returns the disks that hang."""
    disks = [
        make_disk(tmp_path, name, {"inflight": "0 0", "stat": " ".join(["0"] * 17)})
        for name in ("sda", "sdb")
    ]
    capture: Any = SimpleNamespace(disks=disks, mode="ordered")
    nobody: Any = SimpleNamespace(unread=dict, silent=frozenset())
    hanging = Hanging(capture, AgentState(np.zeros(4096, np.uint64)), nobody, nobody, Patience())
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def look_at(later_s: float, *, inflight: str, reads: int, gone: tuple[int, ...] = ()) -> list[str]:
        nonlocal now
        now += later_s
        (tmp_path / "block/sda/inflight").write_text(f"{inflight}\n")
        (tmp_path / "block/sda/stat").write_text(" ".join([str(reads), *["0"] * 16]))
        hanging.look(gone, sysfs=tmp_path)
        return [problem.object for problem in hanging.problems.values()]

    return look_at


def test_a_disk_on_which_nothing_completes_hangs_until_something_does(look: Callable[..., list[str]]) -> None:
    assert look(0, inflight="1 0", reads=5) == []
    assert look(HANGS_S / 2, inflight="1 3", reads=5) == []
    assert look(HANGS_S / 2, inflight="0 3", reads=5) == ["sda"]
    assert look(HANGS_S, inflight="0 3", reads=5) == ["sda"]
    assert look(1, inflight="0 3", reads=6) == []
    assert look(HANGS_S, inflight="0 3", reads=6) == ["sda"]
    assert look(1, inflight="0 3", reads=6, gone=(0,)) == []


def test_a_disk_that_is_slow_or_idle_does_not_hang(look: Callable[..., list[str]]) -> None:
    for reads in range(3):
        assert look(HANGS_S - 1, inflight="1 0", reads=reads) == []
    assert look(HANGS_S - 1, inflight="0 0", reads=3) == []
    assert look(HANGS_S, inflight="0 0", reads=3) == []
    assert look(1, inflight="1 0", reads=3) == []


class Machine:
    """Two disks; what the witnesses say of them, a test sets."""

    def __init__(self, mode: str = "ordered") -> None:
        disks = [SimpleNamespace(name=name, id=name, path=Path("/dev") / name) for name in ("sda", "sdb")]
        self.capture: Any = SimpleNamespace(disks=disks, mode=mode)
        self.state = AgentState(np.zeros(4096, np.uint64))
        self.unread: dict[int, DeviceError] = {}
        self.watch: Any = SimpleNamespace(silent=frozenset())
        self.patience = Patience()
        self.begin()

    def begin(self) -> None:
        rounds: Any = SimpleNamespace(unread=lambda: self.unread)
        self.hanging = Hanging(self.capture, self.state, rounds, self.watch, self.patience)

    def say(self, unread: set[int], silent: set[str]) -> None:
        self.unread = dict.fromkeys(unread, DeviceError("it gives errors only"))
        self.watch.silent = frozenset(silent)

    def look(self, sysfs: Path, *, gone: tuple[int, ...] = ()) -> set[str]:
        """Who is given up."""
        self.hanging.look(gone, sysfs=sysfs)
        return {*self.hanging.give_up(gone)}


@pytest.mark.parametrize(
    ("ordered", "unread", "silent", "gone", "given_up"),
    [
        (False, {1}, {"sdb"}, (), {"sdb"}),
        (False, {1}, set(), (), set()),  # it answers: that a part of it cannot be read is another matter
        (False, set(), {"sdb"}, (), set()),  # nothing has to be read of it
        (True, {1}, {"sdb"}, (), set()),
        (False, {0, 1}, {"sda", "sdb"}, (), set()),  # nobody would be left
        (False, {1}, {"sdb"}, (0,), set()),
        (False, {1}, {"sdb"}, (1,), set()),  # that is said and done elsewhere
    ],
)
def test_the_others_go_on_without_a_disk_that_has_to_be_read_and_does_not_answer(
    ordered: bool,
    unread: set[int],
    silent: set[str],
    gone: tuple[int, ...],
    given_up: set[str],
    tmp_path: Path,
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    machine.state[Word.ORDERED] = int(ordered)
    machine.say(unread, silent)
    assert machine.look(tmp_path, gone=gone) == set()
    clock(FIRST_S)
    assert machine.look(tmp_path, gone=gone) == set()
    clock(1)
    assert machine.look(tmp_path, gone=gone) == given_up


def test_where_there_is_no_order_to_win_no_disk_is_given_up(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine("bitmap")
    machine.say({1}, {"sdb"})
    machine.look(tmp_path)
    clock(FIRST_S + 1)
    assert machine.look(tmp_path) == set()


def test_a_disk_that_answered_in_between_is_waited_for_anew(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    for silent in ({"sdb"}, set(), {"sdb"}):
        machine.say({1}, silent)
        assert machine.look(tmp_path) == set()
        clock(FIRST_S / 2 + 1)
    assert machine.look(tmp_path) == set()


def test_one_that_was_given_up_is_waited_for_longer_by_the_next_who_looks(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    machine.say({1}, {"sdb"})
    for wait_s in (FIRST_S, 2 * FIRST_S):
        machine.patience.take_in(["sdb"])
        machine.begin()
        assert machine.look(tmp_path) == set()
        clock(wait_s)
        assert machine.look(tmp_path) == set()
        clock(1)
        assert machine.look(tmp_path) == {"sdb"}


@pytest.mark.parametrize("answered", [False, True])
def test_whoever_looks_next_goes_on_with_the_wait_unless_the_disk_answered_in_between(
    answered: bool, tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    machine.say({1}, {"sdb"})
    machine.look(tmp_path)
    clock(FIRST_S - 10)
    machine.look(tmp_path)
    machine.begin()  # an agent that was started again
    machine.watch.silent = None
    machine.look(tmp_path)  # nobody has asked yet
    if answered:
        machine.say({1}, set())
        machine.look(tmp_path)
    machine.say({1}, {"sdb"})
    assert machine.look(tmp_path) == set()
    clock(11)
    assert machine.look(tmp_path) == (set() if answered else {"sdb"})


def test_disks_that_fell_silent_one_after_the_other_are_given_up_together(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    machine.capture.disks.append(SimpleNamespace(name="sdc", id="sdc", path=Path("/dev/sdc")))
    machine.begin()
    machine.say({1}, {"sdb"})
    machine.look(tmp_path)
    clock(FIRST_S)
    machine.say({1, 2}, {"sdb", "sdc"})
    machine.look(tmp_path)
    clock(1)
    assert machine.look(tmp_path) == {"sdb", "sdc"}


def test_a_hang_that_the_kernel_does_not_count_is_named_by_the_reads(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    machine.unread = {1: DiskHangsError("Protected disk /dev/sdb does not answer reads")}
    machine.look(tmp_path)
    assert [(problem.code, problem.object) for problem in machine.hanging.problems.values()] == [
        ("US592", "sdb")
    ]
    machine.say({1}, {"sdb"})  # errors are no silence: what reads them says so
    machine.look(tmp_path)
    assert machine.hanging.problems == {}


def test_a_session_that_has_not_read_yet_does_not_begin_the_wait_anew(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    machine = Machine()
    machine.say({1}, {"sdb"})
    machine.look(tmp_path)
    clock(FIRST_S - 5)
    assert machine.look(tmp_path) == set()
    machine.begin()  # another disk is back, say
    for _ in range(
        2
    ):  # somebody asks, for a disk's sake that is left out; reads hang, but not for long enough
        machine.say(set(), {"sdb"})
        assert machine.look(tmp_path) == set()
        clock(10)
    machine.say({1}, {"sdb"})
    assert machine.look(tmp_path) == set()
    clock(6)
    assert machine.look(tmp_path) == {"sdb"}


def test_a_write_that_hangs_on_a_disk_that_answers_is_named_for_what_it_is_and_nobody_is_given_up(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    for name in ("sda", "sdb"):
        make_disk(
            tmp_path, name, {"inflight": "0 1" if name == "sdb" else "0 0", "stat": " ".join(["0"] * 17)}
        )
    machine = Machine()
    named = []
    for seconds in (HANGS_S, HANGS_S, FIRST_S):
        machine.look(tmp_path)
        clock(seconds)
        assert machine.look(tmp_path) == set()
        named.append([problem.code for problem in machine.hanging.problems.values()])
        machine.unread = {1: WriteHangsError("A part of protected disk /dev/sdb cannot be read")}
    assert named == [["US592"], ["US587"], ["US587"]]
