"""Disks go away, come back, and change names at each boot; operators name them, by what they see or without a look, and agents hear of it
later, perhaps in another boot. Never is a disk captured that nobody meant, nor does one leave of which nobody said so, nor is there ever
another disk's data under an id; and in the end all that are meant, and there, are captured.

What resolves words, keeps them, answers agents and binds disks is the real thing (SQLite, no kernel). Rules are taken away in turn, and are
missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import binding, bindings
from agent.capture.binding import Identity, Known, Standing
from agent.capture.bindings import Bound, Seen
from agent.desired import check
from agent.status import to_protect
from config_server.operations import desired_state
from config_server.rules import wishes
from config_server.rules.clock import SECOND_NS
from config_server.rules.disks import Offer
from config_server.store import inventory, sqlite
from shared.desired import Verb, WantedDisk, Wish
from shared.errors import ConfigError, RequestError
from shared.status import AgentDisk, AgentReport, AvailableDisk, BoundDisk
from tests.marks import examples

NAME: Final = "web1"
DISKS: Final = ("A", "B", "C", "D")
Step = tuple[str, int]
KINDS: Final = (
    "boot", "boot", "plug", "report", "report", "kill", "again", "same words", "add", "only", "by ids", "begin anew",
)  # fmt: skip
STEPS: Final = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 23)), max_size=25)


class Violated(AssertionError):
    pass


def link_of(disk: str) -> str:
    return f"/dev/disk/by-id/wwn-{disk}"


class Host:
    """An agent, and the disks that are there. After each boot they have other names, and nothing is captured until it has begun."""

    def __init__(self) -> None:
        self.there = ["A", "B", "C"]
        self.number = 0
        self.wish: Wish | None = None
        self.lines: list[Bound] = []
        self.captured: dict[str, Standing] = {}
        self.left_out: list[Known] = []
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

    def protects(self) -> set[str]:
        """Which disks it is to capture, there or away."""
        found = set()
        for disk in self.wanted:
            line = bindings.line_of(disk, self.lines, ())
            bears = (disk.identity or "").partition(":")[2]
            found.add(self.whose[line.id] if line is not None else bears)
        return found - {""}

    def fit(self) -> None:
        """As look.py and protection.py do."""
        at, boot = {disk.path: disk for disk in self.standing}, str(self.number)
        at |= {link_of(disk.identities[0].value): disk for disk in self.standing}
        pinned = [
            binding.Pinned(slot=slot, dev=disk.dev, diskseq=disk.diskseq, sectors=8)
            for slot, disk in enumerate(self.captured.values())
        ]
        slots = {(pin.dev, pin.diskseq) for pin in pinned}
        under = {disk.device: at[disk.device] for disk in self.wanted if disk.device in at}
        known = bindings.all_known(self.wanted, self.lines, under, boot, slots)
        verdicts = binding.decide(known, self.standing, pinned)
        chosen = [verdict for verdict in verdicts if verdict.is_chosen]
        self.left_out = [verdict.known for verdict in verdicts if not verdict.is_chosen]
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

        def bound(id_: str, device: str, *, is_known: bool) -> BoundDisk:
            wanted = by_id.get(id_) or by_path.get(device) or WantedDisk(device)
            return BoundDisk(
                id=id_ if is_known else wanted.id or "", device=device, identity=wanted.identity or ""
            )

        known, out = {line.id for line in self.lines}, {disk.id for disk in self.left_out}
        return AgentReport(
            machine=NAME,
            wish=self.wish,
            disks=[
                AgentDisk(name=id_, device=disk.path, sectors=8, mode="ordered")
                for id_, disk in self.captured.items()
            ],
            available=[
                AvailableDisk(
                    device=disk.path, sectors=8, identity=str(disk.identities[0]), id=ids.get((disk.dev, disk.diskseq), ""),
                    links=[link_of(disk.identities[0].value)],
                )
                for disk in self.standing
            ],
            bound=to_protect(self.wanted, self.lines) if not self.captured else [
                *(bound(line.id, line.device, is_known=True) for line in self.lines if line.id in {*self.captured, *out}),
                *(bound(disk.id, disk.path, is_known=False) for disk in self.left_out if disk.id not in known),
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
                self.report(is_young=number % 3 == 2)
            case "kill":
                self.report(is_killed=True)
                self.host.boot(number)
            case "begin anew" if self.host.there:
                self.begin_anew(number)
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

    def begin_anew(self, number: int) -> None:
        """Another database, whose operator names a disk before its agent ever reported, by where it stands or by a link, and the agent
        comes before names change. Nobody spoke of the others."""
        self.db = sqlite.connect(":memory:")
        inventory.ensure_machine(self.db, NAME, self.now_ns)
        self.heard = AgentReport()
        place = number % len(self.host.there)
        disk = self.host.there[place]
        word = f"/dev/sd{'abcd'[place]}"
        if number % 2 or any(one.id is None and one.device == word for one in self.host.wanted):
            word = link_of(disk)  # no agent takes two new disks of one path
        self.meant = {*self.host.protects()} | {disk}
        offer = Offer.of(None)
        inventory.act(self.db, NAME, Verb.PROTECT, self.now_ns, disks=offer.meant("No", [word], ()))
        self.words = [word]
        self.report(is_young=True)
        self.report(is_killed=number > 11)
        if number > 11:
            self.host.boot(number)

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
        machine = desired_state.settle(self.db, machine, offer, self.heard.wish)
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

    def report(self, *, is_young: bool = False, is_killed: bool = False) -> None:
        """As reporting.py does; what is told is done. `is_young`: its agent has not looked yet which disks there are; `is_killed`: it ends
        between the writing of a wish and the doing."""
        said = self.host.report()
        if is_young:
            said = msgspec.structs.replace(said, available=[])
        self.heard = said
        inventory.ensure_machine(self.db, NAME, self.now_ns)
        offer = Offer.of(said)
        told = desired_state.answer(self.db, NAME, said.wish, self.now_ns, offer=offer).desired.wish
        if told is not None and told != self.host.wish:
            try:
                check(told)
            except ConfigError as exc:
                raise Violated(f"no agent takes {told}: {exc}") from exc
            self.host.wish = told
            if not is_killed:
                self.host.fit()

    def settle(self) -> None:
        for _ in range(3):
            self.report()
            self.host.boot(0)
        machine = inventory.find(self.db, NAME)
        assert machine is not None
        ids = [disk.id or disk.identity or disk.device for disk in machine.disks]
        if len({*ids}) < len(ids):
            raise Violated(f"the database has one disk twice: {machine.disks}")
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


@settings(max_examples=examples(200), deadline=None)
@given(STEPS)
def test_what_is_captured_is_what_was_meant(steps: list[Step]) -> None:
    run(steps)


# ---- each rule is needed

ONLY_A_STRANGER: Final = [("boot", 2), ("report", 0), ("only", 0), ("report", 0)]
NAMES_TURN: Final = [("begin anew", 20), ("begin anew", 6)]
"""Between what is told and the doing."""
NOT_LOOKED: Final = [("begin anew", 16), ("by ids", 22), ("kill", 3), ("begin anew", 10)]


@pytest.mark.parametrize(
    ("module", "name", "mutant", "story"),
    [
        (bindings, "_is_another", lambda *_: False, ONLY_A_STRANGER),
        (Offer, "_proof", lambda *_: None, [("add", 13), ("boot", 2), ("report", 0)]),
        (Offer, "_is_anothers", lambda *_: False, ONLY_A_STRANGER),
        (Offer, "_settled", lambda _offer, disk, _said: disk, NAMES_TURN),
        (Offer, "is_unsettled", lambda *_: False, NOT_LOOKED),
    ],
)
def test_each_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, mutant: Callable[..., Any], story: list[Step]
) -> None:
    """Stories that random ones were cut down to."""
    run(story)
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(Violated):
        run(story)
