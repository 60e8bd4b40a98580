"""Lives of disks.json and of the lines that are pinned beside a capture: which disk an id is changes as somebody says so; starts are
killed between any two of their steps; the file cannot be written, is lost, or put back from a backup. The two together always tell what
was decided last, as far as it was written anywhere, and never one part of it by the other's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.capture.binding import Identity, Kind, Standing
from agent.capture.bindings import Bound, PinnedTo, Seen, after
from agent.capture.pinned_lines import numbered, with_pins

IDS: Final = ("one", "other", "third")
DISKS: Final = 4
BOOT: Final = "this"
FILE, PINS, ID, NOTES, DONE = range(5)
"""Behind what a start is killed."""
START = st.tuples(
    st.just("start"),
    st.lists(st.integers(0, DISKS - 1), min_size=len(IDS), max_size=len(IDS), unique=True),
    st.integers(1, len(IDS)),
    st.integers(FILE, DONE),
    st.booleans(),
)
STEP = START | st.tuples(st.just("lost")) | st.tuples(st.just("back")) | st.tuples(st.just("kept"))


STANDING: Final = {
    (disk, 1): Standing(
        path=f"/dev/sd{disk}",
        name=f"sd{disk}",
        dev=disk,
        diskseq=1,
        sectors=8,
        identities=(Identity(Kind.GPT, str(disk)),),
    )
    for disk in range(DISKS)
}


def line(id_: str, disk: int) -> Bound:
    return Bound(id_, f"/dev/sd{disk}", f"gpt:{disk}", f"/dev/sd{disk}", Seen(BOOT, disk, 1))


@dataclass
class Host:
    file: list[Bound] = field(default_factory=list)
    backup: list[Bound] = field(default_factory=list)
    captured: dict[int, tuple[str, Bound | None]] = field(default_factory=dict)
    """By disk, what is pinned."""
    decided: dict[str, int] = field(default_factory=dict)
    """What was decided last of each id, and is written somewhere."""

    def whose(self) -> dict[str, tuple[int, Bound | None]]:
        """What the pins say; an id that two slots have is of neither."""
        times = Counter(id_ for id_, _ in self.captured.values())
        return {
            id_: (disk, pinned) for disk, (id_, pinned) in self.captured.items() if id_ and times[id_] == 1
        }

    def known(self) -> list[Bound]:
        pinned = {
            id_: PinnedTo((disk, 1), f"/dev/sd{disk}", pinned) for id_, (disk, pinned) in self.whose().items()
        }
        return with_pins(self.file, pinned, BOOT, STANDING)

    def start(self, disks: list[int], wanted: int, killed_behind: int, has_room: bool) -> None:
        """The ids are these disks from now on; so many of them are captured."""
        chosen = dict(zip(IDS[:wanted], disks, strict=False))
        remembered = self.known()
        if not has_room:  # what is written nowhere is not captured
            named = {(bound.id, bound.identity) for bound in remembered}
            chosen = {id_: disk for id_, disk in chosen.items() if (id_, f"gpt:{disk}") in named}
        now = []
        for id_, disk in chosen.items():
            before = next((bound.number for bound in remembered if bound.id == id_), 0)
            now.append(replace(line(id_, disk), number=before))
        lines = numbered(after(remembered, now), remembered)
        if has_room:
            self.file = lines
            self.decide(chosen)
        if killed_behind == FILE:
            return
        self.captured = {disk: self.captured.get(disk, ("", None)) for disk in chosen.values()}
        self.decided = {id_: disk for id_, disk in self.decided.items() if self.is_written(id_, disk)}
        if killed_behind == PINS:
            return
        by_id = {bound.id: bound for bound in lines}
        for id_, disk in [*chosen.items()][: wanted if killed_behind in (ID, DONE) else 1]:
            former = self.captured[disk][1]
            is_of_it = former is not None and former.id == id_
            self.captured[disk] = id_, (former if is_of_it else None) if killed_behind == ID else by_id[id_]
            if not has_room:
                self.decide({id_: disk})

    @property
    def pinned(self) -> int:
        """The highest number that is pinned."""
        return max((line.number for _, line in self.captured.values() if line), default=0)

    def keep_file(self) -> None:
        """As it was brought about: what was not is later than the pins wherever it comes from."""
        if all(line.number <= self.pinned for line in self.file):
            self.backup = self.file

    def lose_file(self) -> None:
        """Where nothing that is pinned is as late as a backup, numbers begin anew below those of that one, and say nothing of it."""
        if any(line.number > self.pinned for line in self.backup):
            self.backup = []
        self.file = []

    def is_written(self, id_: str, disk: int) -> bool:
        is_in_file = any((bound.id, bound.seen) == (id_, Seen(BOOT, disk, 1)) for bound in self.file)
        return is_in_file or self.captured.get(disk, ("", None))[0] == id_

    def decide(self, chosen: dict[str, int]) -> None:
        self.decided = {id_: disk for id_, disk in self.decided.items() if disk not in chosen.values()}
        self.decided |= chosen


@given(st.lists(STEP, max_size=12))
@settings(max_examples=300)
@example([("start", [0, 1, 2], 1, DONE, True), ("start", [1, 0, 2], 1, FILE, True)])
@example([("start", [0, 1, 2], 2, DONE, True), ("start", [1, 0, 2], 2, NOTES, True)])
@example([("start", [0, 1, 2], 1, DONE, True), ("start", [1, 0, 2], 1, DONE, False)])
@example([("start", [0, 1, 2], 2, ID, True), ("lost",), ("start", [0, 1, 2], 2, DONE, True)])
@example([("start", [0, 1, 2], 1, DONE, True), ("kept",), ("start", [1, 0, 2], 1, DONE, True), ("back",)])
def test_what_was_decided_last_of_each_captured_disk_is_told_whatever_was_written_last(
    steps: list[tuple[str, list[int], int, int, bool]],
) -> None:
    host = Host()
    for what, *arguments in steps:
        match what:
            case "lost":
                host.lose_file()
                host.decided = {id_: disk for id_, (disk, _) in host.whose().items()}
            case "kept":
                host.keep_file()
            case "back":  # of what is pinned without a line the file may be the later
                host.file = host.backup
                host.decided = {id_: disk for id_, (disk, pinned) in host.whose().items() if pinned}
            case _:
                host.start(*arguments)  # type: ignore[arg-type]
        found = host.known()
        seen = [bound.seen for bound in found if bound.seen]
        assert len(seen) == len({*seen}), "one disk is noted for two"
        for bound in found:
            assert bound.seen is None or bound.identity in ("", f"gpt:{bound.seen.dev}"), (
                "bound to one disk by what another bears"
            )
        by_id = {bound.id: bound.seen.dev for bound in found if bound.seen}
        for id_, disk in host.decided.items():
            assert by_id.get(id_) == disk, f"{id_} was decided to be {disk}"
