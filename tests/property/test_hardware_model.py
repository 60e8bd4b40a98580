"""Machines that are bound to one hardware and another, acted on, backed up and put back: no hardware is ever told another one's disks, what
was said last of protection holds wherever the machine stands, and hardware that is the machine again has the disks that it had.

The tables are the real ones (SQLite), and so is what answers. Each rule is taken away in turn, and is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from config_server.operations import desired_state
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.rules.machine import Machine
from config_server.store import inventory, restored, sqlite
from shared.desired import Verb, WantedDisk, Wish
from shared.status import AgentReport, AvailableDisk
from tests.databases import copied
from tests.marks import examples

NAME: Final = "web1"
OFFER: Final = Offer.of(AgentReport(available=[AvailableDisk(device="/dev/sda", sectors=8)]))
"""The agent has looked which disks there are: here none has an id, or bears anything."""
Step = tuple[str, int]
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(("act", "act", "stop", "report", "report", "move", "move", "back up", "restore")),
        st.integers(0, 9),
    ),
    max_size=25,
)


class Violated(AssertionError):
    pass


class Site:
    """A step takes a second. Whoever is the machine by storage reports; the others are refused before (sides.py)."""

    def __init__(self) -> None:
        self.db = sqlite.connect(":memory:")
        self.copies = [self.copied()]
        self.agents: dict[str, Wish] = {}
        self.bound = "hw0"
        self.now_ns = 1_800_000_000 * SECOND_NS
        self.said: Verb | None = None
        self.is_whole = True
        """No database was put back."""

    def copied(self) -> Connection:
        return copied(self.db)

    def do(self, what: str, number: int) -> None:
        self.now_ns += SECOND_NS
        match what:
            case "act":
                self.act(Verb.PROTECT, *(f"/dev/{self.bound}-{n}" for n in range(1 + number % 3)))
            case "stop":
                self.act(Verb.STOP)
            case "report":
                self.report()
            case "move":
                self.bound = f"hw{number % 3}"
            case "back up":
                self.copies.append(self.copied())
            case "restore":
                self.db, self.is_whole = self.copies[-1 - number % len(self.copies)], False
                self.db = self.copied()
                restored.prepare(self.db, self.now_ns)

    def act(self, verb: Verb, *disks: str) -> None:
        """As protecting.py does."""
        known = inventory.find(self.db, NAME)
        if known is not None and known.identity not in ("", self.bound):
            desired_state.begin_anew(self.db, known, self.bound, None, self.now_ns)
        wanted = tuple(WantedDisk(disk) for disk in disks)
        inventory.act(self.db, NAME, verb, self.now_ns, disks=wanted, identity=self.bound)
        self.said = verb

    def report(self) -> None:
        inventory.ensure_machine(self.db, NAME, self.now_ns)
        before = self.agents.get(self.bound)
        said = desired_state.answer(
            self.db, NAME, before, self.now_ns, offer=OFFER, identity=self.bound, is_the_machine=True
        ).desired.wish
        after = said or before
        if after is None:
            return
        if before is not None and after.mark.number < before.mark.number:
            raise Violated(f"{self.bound} takes {after} for old, since it goes by {before}")
        if any(not disk.device.startswith(f"/dev/{self.bound}-") for disk in after.disks):
            raise Violated(f"{self.bound} is told another one's disks: {after}")
        self.agents[self.bound] = after

    def settle(self) -> None:
        self.report()
        agreed = self.agents.get(self.bound)
        self.report()
        known = inventory.find(self.db, NAME)
        own = known.wish if known is not None else None
        marks = {None if wish is None else wish.mark for wish in (own, agreed, self.agents.get(self.bound))}
        if len(marks) > 1:
            raise Violated(f"{self.bound} goes by {agreed}, and {own} was to be")
        if self.is_whole and self.said is not None and (agreed is None or agreed.verb is not self.said):
            raise Violated(f"{self.bound} goes by {agreed}, and what was said last was {self.said}")


def run(steps: list[Step]) -> None:
    site = Site()
    for what, number in steps:
        site.do(what, number)
    site.settle()


@settings(max_examples=examples(200), deadline=None)
@given(STEPS)
def test_no_hardware_is_told_another_ones_disks_and_what_was_said_last_of_protection_holds(
    steps: list[Step],
) -> None:
    run(steps)


@settings(max_examples=examples(50), deadline=None)
@given(STEPS, st.integers(0, 2), st.integers(0, 8))
def test_hardware_that_is_the_machine_again_has_the_disks_that_it_had(
    steps: list[Step], other: int, disks: int
) -> None:
    site = Site()
    for what, number in steps:
        site.do(what, number)
    site.do("act", disks)
    site.report()
    first, had = site.bound, site.agents[site.bound].disks
    site.do("move", other)
    site.report()
    site.bound = first
    site.settle()
    assert site.agents[first].disks == had


# ---- each rule is needed


def never_moved(_real: Callable[..., Any]) -> Callable[..., Any]:
    def begin_anew(db: Connection, machine: Machine, *_: Any, **_more: Any) -> Machine:
        return machine

    return begin_anew


def of_whoever(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: None


@pytest.mark.parametrize(
    ("module", "name", "mutant", "story"),
    [
        (desired_state, "begin_anew", never_moved, [("act", 1), ("report", 0), ("move", 1), ("report", 0)]),
        (inventory, "note_identity", of_whoever, [("act", 1), ("report", 0), ("move", 1), ("report", 0)]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, mutant: Callable[..., Any], story: list[Step]
) -> None:
    run(story)
    monkeypatch.setattr(module, name, mutant(getattr(module, name)))
    with pytest.raises(Violated):
        run(story)
