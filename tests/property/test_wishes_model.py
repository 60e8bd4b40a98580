"""Operators act, databases are backed up, put back, set back unnoticed and lost, agents are away for any time: never does an agent stop, or
drop a disk, for an act that is older than the one that it goes by, nor a disk of which nobody has said that it shall go; and in the end all
agree.

The tables are the real ones (SQLite), and so is what judges and answers. Each rule is taken away in turn, and is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from config_server.operations import desired_state
from config_server.rules import wishes
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.rules.wishes import Adopt, Tell
from config_server.store import incarnations, inventory, restored, sqlite
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.status import AgentReport, AvailableDisk
from tests.databases import copied
from tests.marks import examples

START_NS: Final = 1_800_000_000 * SECOND_NS
MACHINES: Final = ("web1", "web2")
DISKS: Final = ((), ("sda",), ("sdb",), ("sda", "sdb"), ("sda", "sdb", "sdc"))
"""What is asked for; nothing: that it stops."""
AVAILABLE: Final = [AvailableDisk(device=f"/dev/{disk}", sectors=8) for disk in DISKS[-1]]

COVERS: Final = wishes.covers
"""What counts here, whatever a mutant makes of it."""

Step = tuple[str, int]
NOTICED: Final = ("act", "act", "report", "report", "back up", "restore", "begin anew")
ALL: Final = (*NOTICED, "set back", "set back")
CLOCKS: Final = (*NOTICED, "set the clock")


def steps_of(kinds: tuple[str, ...]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9)), max_size=25)


class Violated(AssertionError):
    pass


class Site:
    """One database at a time, and an agent for each machine. A step takes a second."""

    def __init__(self) -> None:
        self.db = sqlite.connect(":memory:")
        self.said: set[tuple[str, str]] = set()
        """Machines and disks of which an operator has said that they shall go, and its agent has not heard of that."""
        self.copies: list[tuple[Connection, set[tuple[str, str]]]] = [(self.copied(), set())]
        """With what was said of disks by the acts that each has."""
        self.agents: dict[str, Wish] = {}
        self.order: dict[str, int] = {}
        """Of each act: the how many-eth it really was."""
        self.now_ns = START_NS
        self.begun = self.acts = 0
        """How many acts there were when the database was put back last."""
        self.is_certain = True
        """Nobody has set it back since."""
        self.is_noticed = True
        """Nobody has ever set one back, or a clock."""

    def copied(self) -> Connection:
        return copied(self.db)

    def do(self, what: str, number: int) -> None:
        self.now_ns += SECOND_NS
        machine, (older, said) = MACHINES[number % 2], self.copies[-1 - number % len(self.copies)]
        match what:
            case "act":
                self.act(machine, DISKS[number // 2])
            case "report":
                self.report(machine)
            case "back up":
                self.copies.append((self.copied(), {*self.said}))
            case "restore":
                self.put(older)
                restored.prepare(self.db, self.now_ns)
                self.said.clear()  # it may have been taken back behind the backup
            case "set back":
                self.copies.append((self.copied(), {*self.said}))  # the other one may come back, too
                self.put(older)
                self.said |= said
                self.is_certain = self.is_noticed = False
            case "begin anew":
                self.put(sqlite.connect(":memory:"))
            case "set the clock":
                self.is_noticed = False
                self.now_ns += (number - 5) * 1000 * SECOND_NS

    def put(self, other: Connection) -> None:
        self.db, self.begun, self.is_certain = other, self.acts, True
        self.db = self.copied()

    def act(self, machine: str, disks: tuple[str, ...]) -> None:
        wanted = tuple(WantedDisk(f"/dev/{disk}") for disk in disks)
        verb = Verb.PROTECT if disks else Verb.STOP
        before = inventory.find(self.db, machine)
        seen = {disk.device for disk in before.disks} if before is not None and not before.ended else set()
        if verb is Verb.STOP:
            seen = {f"/dev/{disk}" for disk in DISKS[-1]}
        self.said |= {(machine, disk) for disk in seen}
        self.said -= {(machine, disk.device) for disk in wanted}
        made = inventory.act(self.db, machine, verb, self.now_ns, disks=wanted).wish
        assert made is not None
        self.acts += 1
        self.order.setdefault(made.mark.act, self.acts)

    def report(self, machine: str) -> None:
        before = self.agents.get(machine)
        own = inventory.find(self.db, machine)
        offer = Offer.of(AgentReport(wish=before, available=AVAILABLE))
        said = desired_state.answer(self.db, machine, before, self.now_ns, offer=offer).desired.wish
        after = said or before
        if after is None:
            return
        if before is not None and after.mark.number < before.mark.number:
            raise Violated(f"{machine} takes {after} for old, since it goes by {before}")
        self.agents[machine] = after
        if before is None:
            return
        if own is not None and own.wish is not None and own.wish.mark == before.mark:
            self.said = {(other, disk) for other, disk in self.said if other != machine}
        left = {(machine, disk.device) for disk in self.disks_of(before) - self.disks_of(after)}
        if left - self.said:
            raise Violated(
                f"{machine} went from {before} to {after}, and nobody said that {left - self.said} shall go"
            )
        if not COVERS(after, before) and self.of(after) < self.of(before):
            raise Violated(f"{machine} went from {before} to the older {after}")
        if self.is_noticed and self.of(after) < self.of(before):
            raise Violated(f"{machine} went from {before} back to {after}")
        if self.is_certain and own is not None and own.wish is not None:
            is_later = self.of(before) <= self.begun < self.of(own.wish)
            if is_later and after.mark.act != own.wish.mark.act:
                raise Violated(f"{machine} goes by {after} from before the restore, and not by {own.wish}")

    @staticmethod
    def disks_of(wish: Wish) -> frozenset[WantedDisk]:
        return frozenset(wish.disks if wish.verb is Verb.PROTECT else ())

    def of(self, wish: Wish) -> int:
        return self.order[wish.mark.act]

    def settle(self) -> None:
        for machine in MACHINES:
            self.report(machine)
            agreed = self.agents.get(machine)
            self.report(machine)
            known = inventory.find(self.db, machine)
            # What is kept with a wish to stop is not told.
            marks = (None if wish is None else wish.mark for wish in (known.wish if known else None, agreed))
            if self.agents.get(machine) != agreed or len({*marks}) > 1:
                raise Violated(f"{machine} goes by {agreed}, and {known} was to be")


def run(steps: list[Step]) -> None:
    site = Site()
    for what, number in steps:
        site.do(what, number)
    site.settle()


@settings(max_examples=examples(150), deadline=None)
@given(steps_of(ALL))
@example([("back up", 0), ("act", 0), ("report", 0), ("set back", 0), ("act", 4), ("report", 0)])
@example([("act", 0), ("back up", 0), ("restore", 0), ("act", 6), ("report", 0), ("set back", 0)])
def test_no_agent_stops_or_drops_a_disk_for_an_older_act_and_in_the_end_all_agree(steps: list[Step]) -> None:
    run(steps)


def run_by_any_clock(steps: list[Step]) -> None:
    site = Site()
    for what, number in steps:
        site.is_certain = False  # what is in doubt by a clock need not be what was said last
        site.do(what, number)
    site.settle()


@settings(max_examples=examples(150), deadline=None)
@given(steps_of(CLOCKS))
def test_so_it_is_with_any_clock_where_whoever_put_a_database_back_said_so(steps: list[Step]) -> None:
    run_by_any_clock(steps)


# ---- each rule is needed


def no_adoption(real: Callable[..., Any]) -> Callable[..., Any]:
    def judge(own: Any, told: Any, history: Any) -> Any:
        return wishes.Agree() if own is None else real(own, told, history)

    return judge


def whoever_has_it_tells(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda own, told, _history: Tell(own.wish) if own else Adopt(told) if told else wishes.Agree()


def no_doubt(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: ""


def no_clocks(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda own, told, ours, theirs: real(own, told, ours, theirs) if ours == theirs else ""


def in_doubt_the_server_tells(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: True


def numbers_alone(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda mark, _history, _current: (0, mark.number)


def strangers_first(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda mark, history, current: (
        real(mark, history, current) if mark.incarnation in history else (-1, mark.number)
    )


def strangers_last(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda mark, history, current: (
        real(mark, history, current) if mark.incarnation in history else (99, mark.number)
    )


def no_new_incarnation(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda db: incarnations.history(db)[-1]


def numbers_from_one(real: Callable[..., Any]) -> Callable[..., Any]:
    def next_mark(incarnation: str, before: Any, now_ns: int) -> Mark:
        made: Mark = real(incarnation, before, now_ns)
        return msgspec.structs.replace(made, number=1)

    return next_mark


STRANGER: Final = [
    ("act", 2),
    ("back up", 0),
    ("back up", 0),
    ("begin anew", 5),
    ("act", 0),
    ("report", 0),
    ("restore", 1),
]
"""A new installation, in whose place the backup is put after all."""
RESTORED: Final = [("act", 9), ("report", 1), ("begin anew", 5), ("act", 1)]
COMES_BACK: Final = [("act", 1), ("set back", 5), ("act", 5), ("back up", 0), ("report", 5), ("set back", 1)]
"""One of two databases, and then the other one again."""
NEITHER_COVERS: Final = [
    ("act", 1), ("set back", 2), ("set back", 4), ("set back", 1), ("set back", 8), ("begin anew", 2), ("act", 5),
    ("report", 3), ("set back", 3),
]  # fmt: skip
TOLD_IN_DOUBT: Final = [
    ("act", 0), ("back up", 4), ("set back", 1), ("act", 4), ("set back", 6), ("back up", 5), ("restore", 6), ("back up", 2),
    ("back up", 5), ("report", 0), ("back up", 0), ("back up", 1), ("restore", 7),
]  # fmt: skip
SET_BACK: Final = [
    ("act", 3), ("back up", 1), ("act", 9), ("report", 5), ("set back", 3), ("set back", 9), ("set back", 0), ("restore", 3),
]  # fmt: skip
LOST: Final = [("act", 8), ("back up", 0), ("back up", 3), ("act", 8), ("report", 0), ("restore", 9)]
"""An act behind the backup, of which the agent knows."""


UNSAID: Final = [("act", 4), ("report", 0), ("restore", 0), ("act", 2), ("report", 0)]
TAKEN_BACK: Final = [("act", 6), ("report", 0), ("act", 0), ("back up", 0), ("restore", 0), ("report", 0)]
"""Perhaps: behind the backup."""
SAID_BEFORE: Final = [
    ("act", 6), ("report", 0), ("act", 2), ("back up", 0), ("restore", 0), ("act", 2), ("report", 0),
]  # fmt: skip
SAID_LONG_AGO: Final = [
    ("act", 6), ("report", 0), ("act", 2), ("report", 0), ("report", 0), ("back up", 0), ("begin anew", 0), ("report", 0),
    ("act", 6), ("report", 0), ("set back", 0), ("act", 2), ("report", 0),
]  # fmt: skip


def nothing(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: ()


def never(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: False


def told_as_it_was(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _db, _machine, wish, _over: wish


@pytest.mark.parametrize(
    ("module", "name", "mutant", "story"),
    [
        (desired_state, "judge", no_adoption, [("act", 7), ("report", 3), ("begin anew", 2)]),
        (desired_state, "judge", whoever_has_it_tells, SET_BACK),
        (wishes, "_doubt", no_doubt, COMES_BACK),
        (wishes, "_doubt", no_clocks, NEITHER_COVERS),
        (wishes, "covers", in_doubt_the_server_tells, TOLD_IN_DOUBT),
        (wishes, "_place", numbers_alone, RESTORED),
        (wishes, "_place", strangers_first, STRANGER),
        (wishes, "_place", strangers_last, RESTORED),
        (incarnations, "begin", no_new_incarnation, STRANGER),
        (wishes, "next_mark", numbers_from_one, LOST),
        (inventory, "renumber", told_as_it_was, [("act", 9), *RESTORED]),
        (desired_state, "_unsaid", nothing, UNSAID),
        (wishes, "_is_unheard", never, TAKEN_BACK),
        (inventory, "forget_unheard", nothing, SAID_BEFORE),
        (inventory, "heard", nothing, SAID_LONG_AGO),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, mutant: Callable[..., Any], story: list[Step]
) -> None:
    """Stories that random ones were cut down to."""
    run(story)
    monkeypatch.setattr(module, name, mutant(getattr(module, name)))
    with pytest.raises(Violated):
        run(story)
