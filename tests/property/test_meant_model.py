"""Disks go away, come back, and change names at each boot; operators name them, by what they see or without a look, and agents hear of it
later, perhaps in another boot. Never is a disk captured that nobody meant, nor does one leave of which nobody said so, nor is there ever
another disk's data under an id; and in the end all that are meant, and there, are captured.

What resolves words, keeps them, answers agents and binds disks is the real thing (SQLite, no kernel). Rules are taken away in turn, and are
missed.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import binding, bindings
from agent.capture.binding import Identity, Standing
from agent.capture.bindings import Bound, Seen
from config_server.operations import desired_state
from config_server.rules import wishes
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.store import inventory, sqlite
from shared.desired import Verb, WantedDisk, Wish
from shared.errors import RequestError
from shared.status import AgentDisk, AgentReport, AvailableDisk, BoundDisk

NAME: Final = "web1"
DISKS: Final = ("A", "B", "C", "D")
Step = tuple[str, int]
KINDS: Final = ("boot", "boot", "plug", "report", "report", "again", "same words", "add", "only", "by ids")
STEPS: Final = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 23)), max_size=25)


class Violated(AssertionError):
    pass


class Host:
    """An agent, and the disks that are there. After each boot they have other names, and nothing is captured until it has begun."""

    def __init__(self) -> None:
        self.there = ["A", "B", "C"]
        self.number = 0
        self.wish: Wish | None = None
        self.lines: list[Bound] = []
        self.captured: dict[str, Standing] = {}
        self.whose: dict[str, str] = {}
        """Which disk each id was given to."""

    @property
    def standing(self) -> list[Standing]:
        return [
            Standing(
                path=f"/dev/sd{'abcd'[place]}", name=f"sd{'abcd'[place]}", dev=place + 1, sectors=8,
                diskseq=10 * self.number + place + 1, identities=(Identity.parse(f"wwid:{disk}"),),
            )
            for place, disk in enumerate(self.there)
        ]  # fmt: skip

    def boot(self, number: int) -> None:
        self.number += 1
        turn = number % max(1, len(self.there))
        self.there = self.there[turn:] + self.there[:turn]
        if number > 11:
            self.there.reverse()
        self.captured = {}
        self.fit()

    def plug(self, number: int) -> None:
        disk = DISKS[number % len(DISKS)]
        if disk in self.there:
            self.there.remove(disk)
        else:
            self.there.insert(number % (len(self.there) + 1), disk)
        self.boot(0)

    @property
    def wanted(self) -> tuple[WantedDisk, ...]:
        return self.wish.disks if self.wish is not None else (WantedDisk("/dev/sda"),)

    def fit(self) -> None:
        """As look.py and protection.py do."""
        at, boot = {disk.path: disk for disk in self.standing}, str(self.number)
        pinned = [
            binding.Pinned(slot=slot, dev=disk.dev, diskseq=disk.diskseq, sectors=8)
            for slot, disk in enumerate(self.captured.values())
        ]
        slots = {(pin.dev, pin.diskseq) for pin in pinned}
        under = {disk.device: at[disk.device] for disk in self.wanted if disk.device in at}
        known = bindings.all_known(self.wanted, self.lines, under, boot, slots)
        chosen = [verdict for verdict in binding.decide(known, self.standing, pinned) if verdict.is_chosen]
        now = []
        self.captured = {}
        for verdict in chosen:
            assert verdict.standing is not None
            disk, id_ = verdict.standing, verdict.known.id
            now.append(
                Bound(
                    id_,
                    verdict.known.path,
                    str(verdict.identity),
                    disk.path,
                    Seen(boot, disk.dev, disk.diskseq),
                )
            )
            self.captured[id_] = disk
            bears = disk.identities[0].value
            if self.whose.setdefault(id_, bears) != bears:
                raise Violated(f"disk {bears} is captured as {id_}, which is {self.whose[id_]}")
        self.lines = bindings.after(self.lines, now)

    def report(self) -> AgentReport:
        borne = {(disk.dev, disk.diskseq): disk.identities for disk in self.standing}
        ids = bindings.ids(self.lines, borne) | {(d.dev, d.diskseq): id_ for id_, d in self.captured.items()}
        by_id = {disk.id: disk for disk in self.wanted if disk.id}
        by_path = {disk.device: disk for disk in self.wanted if not disk.id}

        def configured(line: Bound) -> str:
            wanted = by_id.get(line.id) or by_path.get(line.device)
            return (wanted.identity if wanted is not None else None) or ""

        return AgentReport(
            machine=NAME,
            wish=self.wish,
            disks=[
                AgentDisk(name=id_, device=disk.path, sectors=8, mode="ordered")
                for id_, disk in self.captured.items()
            ],
            available=[
                AvailableDisk(
                    device=disk.path, sectors=8, identity=str(disk.identities[0]), id=ids.get((disk.dev, disk.diskseq), "")
                )
                for disk in self.standing
            ],
            bound=[
                BoundDisk(id=line.id, device=line.device, identity=configured(line))
                for line in self.lines
                if line.id in by_id or line.id in self.captured
            ],
        )  # fmt: skip


class Site:
    def __init__(self) -> None:
        self.db = sqlite.connect(":memory:")
        self.host = Host()
        self.host.fit()
        self.now_ns = 1_800_000_000 * SECOND_NS
        self.meant = {"A"}
        """By its configuration."""
        self.words: list[str] = []
        self.heard = AgentReport()
        self.report()

    def do(self, what: str, number: int) -> None:
        self.now_ns += SECOND_NS
        seen = {disk.device: disk.identity.partition(":")[2] for disk in self.heard.available}
        match what:
            case "boot":
                self.host.boot(number)
            case "plug":
                self.host.plug(number)
            case "report":
                self.report()
            case "again":
                self.act(self.default())
            case "same words" if self.words:
                self.act(self.words)
            case "add" if seen:
                path = sorted(seen)[number % len(seen)]
                if self.act([*self.default(), path]):
                    self.meant |= {seen[path]}
            case "only" if seen:
                paths = [path for place, path in enumerate(sorted(seen)) if (number + 1) >> place & 1]
                if paths and self.act(paths, fewer=True):
                    self.meant = {seen[path] for path in paths}
            case "by ids":
                ids = [id_ for id_ in self.default() if id_ in self.host.whose]
                if ids and self.act(ids[: 1 + number % len(ids)], fewer=True):
                    self.meant = {self.host.whose[id_] for id_ in ids[: 1 + number % len(ids)]}

    def default(self) -> list[str]:
        """Of the command line, where nobody names a disk."""
        machine = inventory.find(self.db, NAME)
        assert machine is not None
        found = Offer.of(self.heard).candidates(machine)
        return [disk.name for disk in found if disk.wanted]

    def act(self, words: list[str], *, fewer: bool = False) -> bool:
        """As protecting.py does; whether it was taken."""
        offer, machine = Offer.of(self.heard), inventory.find(self.db, NAME)
        assert machine is not None
        try:
            disks = offer.meant("No", list(dict.fromkeys(words)), machine.disks)
            offer.check("No", disks, machine.disks)
        except RequestError:
            return False
        if not fewer and wishes.without(machine.disks, disks):
            return False
        mark = self.heard.wish.mark if self.heard.wish is not None else None
        inventory.act(self.db, NAME, Verb.PROTECT, self.now_ns, disks=disks, known=mark)
        self.words = words
        return True

    def report(self) -> None:
        """As reporting.py does; what is told is done."""
        self.heard = said = self.host.report()
        inventory.ensure_machine(self.db, NAME, self.now_ns)
        offer = Offer.of(said)
        told = desired_state.answer(self.db, NAME, said.wish, self.now_ns, offer=offer).desired.wish
        inventory.note_bound(self.db, inventory.machine(self.db, NAME), "", offer.bound, said.wish)
        if told is not None and told != self.host.wish:
            paths = [disk.device for disk in told.disks if disk.id is None]
            if len({*paths}) < len(paths):
                raise Violated(f"no agent takes {told}: a path is said twice")
            self.host.wish = told
            self.host.fit()

    def settle(self) -> None:
        for _ in range(3):
            self.report()
            self.host.boot(0)
        captured = {disk.identities[0].value for disk in self.host.captured.values()}
        if captured != self.meant & {*self.host.there}:
            raise Violated(
                f"{captured} are captured, and {self.meant} are meant; {self.host.there} are there"
            )


def run(steps: list[Step]) -> None:
    site = Site()
    for what, number in steps:
        site.do(what, number)
    site.settle()


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_what_is_captured_is_what_was_meant(steps: list[Step]) -> None:
    run(steps)


# ---- each rule is needed

TWICE_NAMED: Final = [
    ("add", 13), ("boot", 2), ("report", 9), ("again", 0), ("boot", 2), ("report", 0), ("only", 0), ("report", 0), ("add", 0),
]  # fmt: skip
ONLY_A_STRANGER: Final = [("boot", 2), ("report", 0), ("only", 0), ("report", 0)]


@pytest.mark.parametrize(
    ("module", "name", "answer", "story"),
    [
        (bindings, "_line_bearing", None, TWICE_NAMED),
        (bindings, "_is_another", False, ONLY_A_STRANGER),
        (Offer, "_proof", None, [("add", 13), ("boot", 2), ("report", 0)]),
        (Offer, "_is_anothers", False, ONLY_A_STRANGER),
    ],
)
def test_each_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, answer: object, story: list[Step]
) -> None:
    """Stories that random ones were cut down to."""
    run(story)
    monkeypatch.setattr(module, name, lambda *_: answer)
    with pytest.raises(Violated):
        run(story)
