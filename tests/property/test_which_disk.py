"""Lives of machines whose disks are known by number here, whatever they bear and wherever they stand: links are exchanged, labels copied,
disks pulled and put back, machines rebooted, a line is written once more, an older agent ran before, the file is lost, put back
as it was at the last reboot, or cannot be written, the agent is killed when it is, a disk does not answer for one look.

Where a disk is away, nothing tells it from an unprotected clone that stands, nor one that is bound or configured by a serial number from
another that bears the same: that is not lived here.

The truth is the number. No id is ever given another's disk, no new id the disk of one that is configured; and what can be told is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.capture import bindings, pinned_lines
from agent.capture.binding import TOLD, Action, Identity, Kind, Pinned, Standing, decide
from agent.capture.bindings import Bound
from shared.desired import WantedDisk
from tests.marks import examples

DISKS: Final = 3
SECTORS: Final = 2048
REDUNDANT: Final = "/more"
WORLD_WIDE, TABLE, SERIAL, TWIN, PORTED_TWIN = range(5)
"""What tells a disk from the others: its world-wide name, its partition table, that beside a serial number which others bear, nothing, or
nothing but its port."""
NUMBER = st.integers(0, DISKS - 1)
STEP = st.one_of(
    st.tuples(st.just("restart"), NUMBER, NUMBER),
    st.tuples(st.just("link"), NUMBER, st.integers(0, DISKS)),
    st.tuples(st.just("line"), st.integers(0, DISKS), NUMBER),
    st.tuples(st.just("no line"), NUMBER, NUMBER),
    st.tuples(st.just("label"), NUMBER, NUMBER),
    st.tuples(st.just("back"), NUMBER, NUMBER),
    st.tuples(st.just("away"), NUMBER, NUMBER),
    st.tuples(st.just("reboot"), NUMBER, NUMBER),
    st.tuples(st.just("older agent"), NUMBER, NUMBER),
    st.tuples(st.just("lost file"), NUMBER, NUMBER),
    st.tuples(st.just("silent"), NUMBER, NUMBER),
    st.tuples(st.just("clone"), NUMBER, NUMBER),
    st.tuples(st.just("killed"), NUMBER, NUMBER),
    st.tuples(st.just("unwritten"), NUMBER, NUMBER),
    st.tuples(st.just("put back"), NUMBER, NUMBER),
)


@dataclass
class Machine:
    kinds: Sequence[int]
    protected: int
    place: list[int] = field(default_factory=lambda: [*range(DISKS)])
    seq: list[int] = field(default_factory=lambda: [*range(1, DISKS + 1)])
    next_seq: int = DISKS + 1
    boot: int = 0
    labels: int = DISKS
    copied: bool = False
    away: int | None = None
    has_forgotten: bool = False
    silent: int | None = None
    has_room: bool = True

    def __post_init__(self) -> None:
        """An older agent captured the protected ones, and bound them by the strongest that they have."""
        self.label = [*range(DISKS)]
        self.lines = [WantedDisk(self.path(disk)) for disk in range(self.protected)]
        self.links: dict[str, int] = {self.path(disk): disk for disk in range(self.protected)}
        self.bound = [
            Bound(f"id{disk}", self.path(disk), str(self.standing(disk).identities[0]), f"/dev/sd{disk}")
            for disk in range(self.protected)
        ]
        self.truth = {bound.id: disk for disk, bound in enumerate(self.bound)}
        self.captured: dict[str, tuple[int, int]] = {
            bound.id: (self.place[disk], self.seq[disk]) for disk, bound in enumerate(self.bound)
        }
        self.pinned_lines: dict[str, Bound] = {}
        self.backup = self.bound

    def path(self, disk: int) -> str:
        return f"/dev/disk/{'by-path' if self.kinds[disk] == PORTED_TWIN else 'by-id'}/{disk}"

    def standing(self, disk: int) -> Standing:
        name = f"sd{self.place[disk]}"
        table = Identity(Kind.GPT, f"{self.label[disk]}")
        borne = {
            WORLD_WIDE: [Identity(Kind.WWID, f"{disk}")],
            TABLE: [table],
            SERIAL: [Identity(Kind.SERIAL, "same"), table],
        }.get(self.kinds[disk], [Identity(Kind.WWID, "twin")])
        if disk == self.silent:
            borne = [identity for identity in borne if identity.kind not in TOLD]
        return Standing(
            path=f"/dev/{name}",
            name=name,
            dev=self.place[disk],
            diskseq=self.seq[disk],
            sectors=SECTORS,
            identities=(*borne, Identity(Kind.NAME, f"{name}, {SECTORS} sectors")),
            is_read=disk != self.silent,
        )

    def is_captured(self, disk: int) -> bool:
        return (self.place[disk], self.seq[disk]) in self.captured.values()

    def step(self, what: str, one: int, other: int) -> None:
        match what:
            case "link" if one < self.protected and self.kinds[one] != PORTED_TWIN:
                self.links.pop(self.path(one), None)
                if other < DISKS:
                    self.links[self.path(one)] = other
            case "line" | "no line":
                self.lines = [line for line in self.lines if line.device != REDUNDANT]
                self.links.pop(REDUNDANT, None)
                if what == "line":
                    is_known = any(bound.device == REDUNDANT for bound in self.bound)
                    strongest = str(self.standing(other).identities[0])
                    self.lines.insert(
                        one,
                        WantedDisk(
                            REDUNDANT,
                            identity=strongest
                            if one == 1 and not is_known and self.kinds[other] != SERIAL
                            else None,
                        ),
                    )
                    self.links[REDUNDANT] = other
            case "label" if self.is_captured(one) and self.away is None:  # a new one, or another disk's
                self.labels += 1
                self.copied |= one != other
                self.label[one] = self.labels if one == other else self.label[other]
            case "back":
                self.seq[one] = self.next_seq
                self.next_seq += 1
            case "away" if self.may_go(one):
                self.away = one if one != other else None
                self.step("back", one, one)
            case "reboot":  # numbers of the last boot are given again, to others
                self.boot += 1
                self.backup = self.bound
                self.captured, self.pinned_lines = {}, {}
                self.place = [(place + one) % DISKS for place in self.place]
                self.seq = [1 + (place + other) % DISKS for place in self.place]
                self.next_seq = DISKS + 1
            case "older agent":
                self.bound = [Bound(b.id, b.device, b.identity, b.last) for b in self.bound]
                self.has_forgotten = True
            case "lost file" if self.is_all_captured():
                self.bound = []
                self.has_forgotten |= self.captured.keys() > self.pinned_lines.keys()
                if one != other:
                    self.step("silent", one, other)
            case "put back" if self.is_all_captured():  # the file of the boot before
                self.bound = self.backup
                self.has_forgotten = True
            case "clone" if one not in self.truth.values() and self.away is None:
                self.copied |= one != other
                self.label[one] = self.label[other]
            case "silent" if self.may_be_silent(one):
                self.silent = one
                self.look()
                self.silent = None
            case (
                "killed"
            ):  # when the file is written, before capture is touched, or when what leaves has left
                captured, pinned = self.captured, self.pinned_lines
                self.look()
                if one != other:
                    captured = {id_: at for id_, at in captured.items() if self.captured.get(id_) == at}
                self.captured = captured
                self.pinned_lines = {id_: line for id_, line in pinned.items() if id_ in captured}
            case "unwritten":
                self.has_room = False
                self.look()
                self.has_room = True

    def is_all_captured(self) -> bool:
        """Whether the pins say all that the file does. Where a path leads elsewhere, it means what it leads to once the file is lost."""
        leads = all(self.links.get(self.path(disk)) == disk for disk in range(self.protected))
        return leads and {bound.id for bound in self.bound} <= self.captured.keys()

    def may_be_silent(self, disk: int) -> bool:
        """Whether no clone of it can be taken for it: it is looked for where its path leads."""
        leads = self.links.get(self.path(disk)) == disk and REDUNDANT not in self.links
        return leads or not self.copied

    def may_go(self, disk: int) -> bool:
        """Whether nothing that is not protected can be taken for it. A disk is bound by a serial number that others bear where an older
        agent wrote the file anew, and forgot that they do."""
        twins = [other for other in range(DISKS) if self.kinds[other] in (TWIN, PORTED_TWIN)]
        by_serial = {self.truth[bound.id] for bound in self.bound if bound.identity.startswith("serial:")}
        if self.has_forgotten and disk in by_serial and self.kinds.count(SERIAL) > 1:
            return False
        return all(twin < self.protected for twin in twins) if disk in twins else not self.copied

    def look(self) -> None:
        standing = [self.standing(disk) for disk in range(DISKS) if disk != self.away]
        there = {(one.dev, one.diskseq): one for one in standing}
        pins = [
            Pinned(slot=slot, dev=dev, diskseq=seq, sectors=SECTORS, id=id_)
            for slot, (id_, (dev, seq)) in enumerate(self.captured.items())
        ]
        boot = f"boot-{self.boot}"
        noted = {there[at].path: there[at] for at in self.captured.values() if at in there}
        remembered = bindings.with_notes(self.bound, noted, boot)
        whose = {
            pin.id: bindings.PinnedTo(which, there[which].path, self.pinned_lines.get(pin.id))
            for pin in pins
            if (which := (pin.dev, pin.diskseq)) in there
        }
        said = bindings.configured(self.lines, remembered)
        remembered = pinned_lines.with_pins(remembered, whose, boot, there, said)
        at = {path: self.standing(disk) for path, disk in self.links.items() if disk != self.away}
        known = bindings.all_known(self.lines, remembered, at, boot, {*self.captured.values()})
        verdicts = decide(known, standing, pins)
        is_noted = {bound.id for bound in remembered if bound.seen and bound.seen.boot == boot}
        configured = {disk.id for disk in known}
        unknown = {bound.id for bound in remembered if not bound.identity}
        now, captured = [], {}
        owner = {at: id_ for id_, at in self.captured.items()}
        for verdict in verdicts:
            id_, disk = verdict.known.id, verdict.standing
            if disk is None:
                self.check_it_could_not_be_told(id_, id_ in is_noted)
                continue
            number = self.place.index(disk.dev)
            if id_ not in self.truth:
                owners = {owner for owner, owned in self.truth.items() if owned == number}
                assert not owners & configured, f"{id_} is given the disk of {owners}"
            assert self.truth.get(id_, number) == number, f"{id_} is given another's disk"
            assert (verdict.action is Action.CONTINUE) == self.is_captured(number)
            if verdict.action is Action.ATTACH and (not disk.is_read or not self.has_room):
                continue  # it is left out
            self.truth[id_] = number
            assert owner.get((disk.dev, disk.diskseq), id_) == id_, "a captured disk has another id"
            captured[id_] = disk.dev, disk.diskseq
            is_unknown = verdict.known.identity is None or id_ in unknown
            if verdict.action is Action.CONTINUE and is_unknown and not disk.is_read:
                continue
            identity = verdict.identity if disk.is_read else verdict.known.identity
            assert identity is not None
            assert identity.kind is not Kind.NAME or self.kinds[number] not in (WORLD_WIDE, TABLE), (
                "it is known better"
            )
            now.append(bindings.bind(verdict, identity, remembered, boot))
        lines = pinned_lines.numbered(bindings.after(remembered, now), remembered, self.bound)
        self.captured = captured
        self.pinned_lines = {line.id: line for line in lines if line.id in captured}
        if self.has_room:
            self.bound = lines

    def check_it_could_not_be_told(self, id_: str, is_noted: bool) -> None:
        disk = self.truth.get(id_)
        if disk is None or disk == self.away or self.silent is not None:
            return
        proof = (self.place[disk], self.seq[disk])
        assert not (is_noted and self.captured.get(id_) == proof), f"{id_} is captured, and not gone on with"
        owners = [owner for owner, owned in self.truth.items() if owned == disk]
        is_ported = self.kinds[disk] == PORTED_TWIN and id_ == f"id{disk}"
        if len(owners) == 1 and (self.kinds[disk] == WORLD_WIDE or is_ported):
            raise AssertionError(f"{id_} is unmistakable, and refused")
        is_main = id_ in {f"id{number}" for number in range(DISKS)}
        if len(owners) == 1 and is_main and self.kinds[disk] in (TABLE, SERIAL) and not self.copied:
            raise AssertionError(f"{id_} alone bears its partition table, and is refused")


KINDS = st.lists(st.integers(WORLD_WIDE, PORTED_TWIN), min_size=DISKS, max_size=DISKS)


@given(KINDS, st.integers(1, DISKS), st.lists(STEP, max_size=10))
@example([WORLD_WIDE] * 3, 2, [("line", 2, 0)])
@example([WORLD_WIDE] * 3, 2, [("link", 0, 1), ("link", 1, 0)])
@example([TABLE] * 3, 2, [("link", 0, 1)])
@example([TWIN, TWIN, TABLE], 2, [("link", 1, 0)])
@example([TWIN, TWIN, TABLE], 2, [("away", 0, 1), ("reboot", 1, 0)])
@example([SERIAL] * 3, 2, [("restart", 0, 0), ("reboot", 1, 0)])
@example([TABLE] * 3, 2, [("label", 0, 0), ("lost file", 0, 0), ("link", 0, 1), ("link", 1, 0)])
@example([TABLE] * 3, 1, [("clone", 1, 0), ("back", 0, 0), ("silent", 0, 0)])
@example([TABLE] * 3, 2, [("lost file", 0, 1), ("reboot", 1, 0)])
@example([TABLE] * 3, 2, [("label", 0, 1), ("back", 0, 0), ("silent", 0, 0)])
@example([SERIAL, WORLD_WIDE, SERIAL], 1, [("away", 0, 1), ("line", 0, 2), ("away", 2, 0)])
@example([SERIAL, WORLD_WIDE, SERIAL], 1, [("away", 0, 1), ("line", 0, 2), ("no line", 0, 0), ("away", 2, 0)])
@settings(max_examples=examples(150))
def test_no_id_is_given_anothers_disk_and_what_can_be_told_is_told(
    kinds: list[int], protected: int, steps: list[tuple[str, int, int]]
) -> None:
    machine = Machine(kinds, protected)
    machine.look()
    for step in steps:
        machine.step(*step)
        machine.look()
