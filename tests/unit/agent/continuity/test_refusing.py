"""Which disk is given up because too much of it cannot be read, and when; with a clock of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.continuity.patience import FIRST_S, Patience
from agent.continuity.refusing import SAMPLE, OutOfRoom
from agent.stream.lane import Lack
from agent.stream.state import AgentState, Word
from agent.stream.unreadable import Runs, Unreadable
from shared.errors import DeviceError, DiskHangsError, TooMuchUnreadableError

FULL, HANGS = TooMuchUnreadableError("too much"), DiskHangsError("it hangs")
BAD = [(1000, 40), (5000, 1)]


def with_little_room(count: int) -> Unreadable:
    made = Unreadable(count, np.zeros(9, np.uint64), claim=1)
    made.begin()
    return made


class Machine:
    """Disks of which the second one takes most of the room, and the first one some."""

    def __init__(self, count: int = 2, mode: str = "ordered") -> None:
        names = [f"sd{letter}" for letter in "abc"[:count]]
        disks = [SimpleNamespace(id=name, path=Path("/dev") / name) for name in names]
        capture: Any = SimpleNamespace(disks=disks, mode=mode)
        self.state = AgentState(np.zeros(4096, np.uint64))
        self.troubles: dict[int, DeviceError] = {1: FULL} if count > 1 else {0: FULL}
        self.unreadable = with_little_room(count)
        self.unreadable.declare(count > 1, BAD, 0.0)
        self.unreadable.declare(0, [(7, 3)], 0.0)
        self.patience = Patience()
        self.refused_at = self.tried_at = 0.0
        self.without_room: dict[int, Runs | None] = {slot: [(9000, 200)] for slot in range(count)}
        rounds: Any = SimpleNamespace(
            unread=lambda: self.troubles,
            lack=lambda slot: Lack(self.tried_at, self.refused_at, self.without_room[slot]),
        )
        self.out_of_room = OutOfRoom(capture, self.state, rounds, lambda: self.unreadable, self.patience)

    def looks(self, *gone: int, asks: bool = True, tries: bool = True) -> list[str]:
        """Who is given up by a look, before which something was refused, and with `tries` by a round that had not been full before."""
        if asks:
            self.refused_at = time.monotonic()
        if asks and tries:
            self.tried_at = self.refused_at
        self.found = self.out_of_room.give_up(gone)
        return [*self.found]


@pytest.mark.parametrize(
    ("count", "mode", "ordered", "troubles", "gone", "given_up"),
    [
        (2, "ordered", False, {1: FULL}, (), ["sdb"]),
        (2, "ordered", False, {0: FULL}, (), ["sda"]),  # the other takes most of the room, and lacks nothing
        (2, "ordered", False, {0: FULL, 1: FULL}, (), ["sdb"]),
        (2, "ordered", True, {1: FULL}, (), []),
        (2, "bitmap", False, {1: FULL}, (), []),  # there is no order to win
        (2, "ordered", False, {}, (), []),
        (2, "ordered", False, {1: HANGS}, (), []),  # that is another's matter
        (1, "ordered", False, {0: FULL}, (), []),  # nobody would be left…
        (2, "ordered", False, {1: FULL}, (0,), []),
        (2, "ordered", False, {0: HANGS, 1: FULL}, (), []),
        (3, "ordered", False, {0: HANGS, 1: FULL}, (), ["sdb"]),  # … but here
        (2, "ordered", False, {0: FULL}, (1,), []),
        (3, "ordered", False, {1: FULL}, (1,), []),  # that one is given up for being gone
    ],
)  # fmt: skip
def test_the_others_go_on_without_the_disk_of_which_most_is_named_when_they_have_waited(
    clock: Callable[[float], None],
    count: int,
    mode: str,
    ordered: bool,
    troubles: dict[int, DeviceError],
    gone: tuple[int, ...],
    given_up: list[str],
) -> None:
    machine = Machine(count, mode)
    machine.troubles = troubles
    machine.state[Word.ORDERED] = int(ordered)
    assert machine.looks(*gone) == []
    clock(FIRST_S)
    assert machine.looks(*gone) == []
    clock(1)
    assert machine.looks(*gone) == given_up
    assert [name for name in ("sda", "sdb", "sdc") if machine.patience.is_given_up(name)] == given_up


def test_what_is_said_of_it_has_its_name_and_cause_and_the_sample_is_of_what_it_refused(
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    machine.looks()
    clock(FIRST_S + 1)
    machine.looks()
    (refusing,) = machine.found.values()
    assert (refusing.error.code, refusing.error.what) == ("US594", "Disk sdb (/dev/sdb) is not protected")
    assert "41 sectors are named, 1000 to 5000" in refusing.error.cause
    declared = {first + i for first, count in BAD for i in range(count)}
    assert len({*refusing.sample}) == SAMPLE
    assert {1000, 5000} <= {*refusing.sample} <= declared
    few = Unreadable(1)
    few.declare(0, [(7, 2)], 0.0)
    assert few.sample(0, SAMPLE) == (7, 8)


def test_a_round_that_had_room_in_between_begins_the_wait_anew_and_each_time_it_is_twice_as_long(
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    for troubles in ({1: FULL}, {}, {1: FULL}):
        machine.troubles = dict(troubles)
        assert machine.looks() == []
        clock(FIRST_S / 2 + 1)
    assert machine.looks() == []
    clock(FIRST_S)
    assert machine.looks() == ["sdb"]
    machine.troubles = {}
    assert machine.looks() == []
    machine.troubles = {1: FULL}
    machine.looks()
    clock(2 * FIRST_S)
    assert machine.looks() == []
    clock(1)
    assert machine.looks() == ["sdb"]


def test_what_nobody_has_looked_at_again_is_no_reason(clock: Callable[[float], None]) -> None:
    machine = Machine()
    machine.looks()
    clock(FIRST_S + 1)
    assert machine.looks(asks=False) == [], "no server takes what is read, say"
    clock(FIRST_S)
    assert machine.looks(asks=False) == []
    assert machine.looks() == ["sdb"], "one refusal is enough, however long the round goes on"


def test_where_there_is_room_by_now_the_next_round_names_it(clock: Callable[[float], None]) -> None:
    machine = Machine()
    machine.looks()
    clock(FIRST_S + 1)
    machine.without_room[1] = [(9000, 20)]
    assert machine.looks() == [], "a disk that is well again is given up for one bad sector"
    machine.without_room[1] = [(9000, 20), (20_000, 180)]
    assert machine.looks() == ["sdb"]


def test_who_is_let_off_for_room_that_there_is_by_now_is_given_up_when_a_chunk_was_tried_again_and_had_none(
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    machine.without_room[1] = [(9000, 20)]
    for _ in range(3):
        assert machine.looks() == [], "before the wait is over nobody needs to be let off"
        clock(FIRST_S / 3 + 1)
    assert machine.looks() == []
    for _ in range(3):
        clock(1)
        assert machine.looks(tries=False) == [], "the rest of a round that was full before"
    clock(1)
    assert machine.looks() == ["sdb"]


def test_who_lacks_room_anew_is_let_off_anew(clock: Callable[[float], None]) -> None:
    machine = Machine()
    machine.without_room[1] = [(9000, 20)]
    for _ in range(2):
        machine.troubles = {1: FULL}
        machine.looks()
        clock(FIRST_S + 1)
        assert machine.looks() == []
        machine.troubles = {}
        machine.looks()


def test_of_what_is_more_than_is_kept_in_mind_nobody_hopes_that_it_has_room(
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    machine.looks()
    clock(FIRST_S + 1)
    machine.without_room[1] = None
    assert machine.looks() == ["sdb"]


@pytest.mark.parametrize("fits", [False, True])
def test_no_disk_goes_in_the_stead_of_one_that_was_let_off(
    clock: Callable[[float], None], fits: bool
) -> None:
    """What is known of that one is the least that it needs: without the other it might lack room still."""
    machine = Machine(3)
    machine.troubles = {0: FULL, 1: FULL}
    machine.looks()
    clock(FIRST_S + 1)
    machine.without_room[1] = [(9000, 20)]
    assert machine.looks() == []
    clock(1)
    if fits:
        machine.troubles = {0: FULL}
    assert machine.looks() == (["sda"] if fits else ["sdb"])


def test_of_each_epoch_what_it_declares_counts(clock: Callable[[float], None]) -> None:
    machine = Machine()
    machine.unreadable, before = Unreadable(2), machine.unreadable
    machine.looks()
    clock(FIRST_S + 1)
    assert machine.looks() == []
    machine.unreadable = before
    assert machine.looks() == ["sdb"]


def test_a_disk_that_was_written_until_nothing_is_named_is_not_given_up(
    clock: Callable[[float], None],
) -> None:
    machine = Machine()
    machine.looks()
    clock(FIRST_S + 1)
    for first, count in BAD:
        machine.unreadable.remove(1, [(first, count)])
    assert machine.looks() == []
