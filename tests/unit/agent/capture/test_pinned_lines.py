"""Of what the file says of a disk and of what is pinned with its capture the later counts, whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from agent.capture.binding import Identity, Pinned, Standing
from agent.capture.bindings import Bound, PinnedTo, Seen, all_known
from agent.capture.pinned_lines import as_pinned, line_pinned, numbered, with_pins
from shared.desired import WantedDisk

SEEN = Seen("this", 16, 5)
BOUND = Bound("sdb", "/dev/x", "gpt:1", "/dev/sdb", SEEN)


def standing(*identities: str) -> Standing:
    """What stands at /dev/sdb."""
    borne = tuple(Identity.parse(text) for text in (*identities, "name:sdb, 8 sectors"))
    return Standing(path="/dev/sdb", name="sdb", dev=16, diskseq=5, sectors=8, identities=borne)


def test_what_the_file_does_not_say_of_captured_disks_the_pins_do() -> None:
    pin = PinnedTo((16, 5), "/dev/sdb", structs.replace(BOUND, number=2))
    assert with_pins([], {"sdb": pin}, "this") == [pin.line]
    elsewhere = structs.replace(BOUND, last="/dev/sdc", seen=Seen("this", 32, 4), number=1)
    assert with_pins([elsewhere], {"sdb": pin}, "this") == [pin.line], "where it stands now was not written"
    before = structs.replace(BOUND, seen=Seen("before", 16, 5), number=9)
    assert with_pins([before], {"sdb": pin}, "this") == [pin.line], "another lineage: the file was put back"
    renamed = structs.replace(BOUND, id="root", number=3)
    newer = structs.replace(elsewhere, number=3)
    for lines in ([structs.replace(BOUND, number=2)], [renamed], [newer, renamed], [newer]):
        assert with_pins(lines, {"sdb": pin}, "this") == lines, "the file is newer"
    taken = structs.replace(renamed, number=1)
    assert with_pins([taken], {"sdb": pin}, "this") == [structs.replace(taken, seen=None), pin.line]
    assert with_pins([], {"sdb": pin._replace(which=(16, 0))}, "this") == [], "before Linux 5.15"


def test_of_a_pin_without_a_line_it_is_not_known_by_what_its_disk_is_bound_and_nothing_is_written_of_that() -> (
    None
):
    """An older agent pinned the id alone."""
    pin = PinnedTo((16, 5), "/dev/sdb")
    [made] = with_pins([], {"sdb": pin}, "this")
    assert made == Bound("sdb", "/dev/sdb", "", "/dev/sdb", SEEN)
    assert numbered([made], [made]) == []
    for wanted in (WantedDisk("/dev/sdb"), WantedDisk("/dev/x", "sdb"), WantedDisk("/dev/x", "sdb", "gpt:A")):
        there = {wanted.device: standing("gpt:1")}
        [known] = all_known([wanted], [made], there, "this", {(16, 5)})
        assert (known.id, known.noted, known.is_new) == ("sdb", (16, 5), False)


def test_a_line_that_an_older_agent_wrote_behind_the_pins_is_later_and_stays_so() -> None:
    pin = PinnedTo((16, 5), "/dev/sdb", structs.replace(BOUND, number=7))
    for line in (structs.replace(BOUND, seen=Seen("this", 32, 6)), structs.replace(BOUND, id="root")):
        [found] = with_pins([line], {"sdb": pin}, "this", {(32, 6): standing("gpt:1")})
        assert found == structs.replace(line, number=8)
        assert with_pins([found], {"sdb": pin}, "this") == [found]


ELSEWHERE = Seen("this", 32, 4)
AWAY = Seen("this", 16, 4)


@pytest.mark.parametrize("number", [0, 9])
@pytest.mark.parametrize("seen", [AWAY, Seen("before", 16, 5), None])
def test_a_pin_without_a_line_goes_on_unless_the_disk_that_the_file_notes_stands(
    seen: Seen | None, number: int
) -> None:
    """An older agent, or one that was killed at once, had no room in the file when it captured the disk anew."""
    pin = {"sdb": PinnedTo((16, 5), "/dev/sdb")}
    there = dict.fromkeys([(16, 5), (32, 4)], standing("gpt:1"))
    stale = structs.replace(BOUND, seen=seen, number=number, last="/dev/sdz")
    assert with_pins([stale], pin, "this", there) == [structs.replace(BOUND, number=number)]
    later = structs.replace(stale, seen=ELSEWHERE)
    assert with_pins([later], pin, "this", there) == [later], "it was killed behind the file"
    root = structs.replace(BOUND, id="root", number=number)
    given = with_pins([stale, root], pin, "this", there)
    assert given == [stale, root], "its disk is another's since"


def test_a_line_is_joined_only_with_a_disk_that_bears_its_identity_and_is_kept_until_the_disk_says_all() -> (
    None
):
    pin = {"sdb": PinnedTo((16, 5), "/dev/sdb")}
    stale = structs.replace(BOUND, seen=AWAY, number=9, shared=("serial:0",))
    unknown = structs.replace(stale, identity="", last="/dev/sdb", seen=SEEN)
    other = Bound("sdc", "/dev/y", "gpt:2", number=3)
    for disk in (standing("gpt:2"), replace(standing(), is_read=False)):
        found = with_pins([stale, other], pin, "this", {(16, 5): disk})
        assert found == [unknown, other]
        assert numbered(found, found, [stale, other]) == [stale, other]
    known = numbered([BOUND, other], [unknown, other], [stale, other])
    assert known == [structs.replace(BOUND, number=10), other], "above the line that it takes the place of"


@pytest.mark.parametrize(
    ("configured", "disk", "goes_on"),
    [
        ("gpt:1", standing("gpt:2"), False),
        ("gpt:3", standing("gpt:2"), False),
        ("gpt:2", standing("gpt:2"), True),
        ("gpt:1", replace(standing(), is_read=False), True),
    ],
)
def test_a_configured_identity_counts_against_a_pin_without_a_line_where_the_file_has_another_disks(
    configured: str, disk: Standing, goes_on: bool
) -> None:
    """An older agent was killed behind the file, on its way to what is configured; that disk was away since, and is back."""
    pin = {"sdb": PinnedTo((16, 5), "/dev/sdb")}
    stale = structs.replace(BOUND, seen=AWAY)
    remembered = with_pins([stale], pin, "this", {(16, 5): disk}, {"sdb": configured})
    wanted = WantedDisk("/dev/x", "sdb", configured)
    [known] = all_known([wanted], remembered, {"/dev/x": disk}, "this", {(16, 5)})
    assert (known.noted == (16, 5)) is goes_on
    assert known.identity == Identity.parse(configured)


@pytest.mark.parametrize("is_pinned_with_a_line", [True, False])
def test_a_line_without_a_number_of_a_disk_that_stands_no_more_is_not_later_than_what_is_captured(
    is_pinned_with_a_line: bool,
) -> None:
    """An older agent captured the disk anew, and had no room in the file for that; or the file was put back."""
    line = structs.replace(BOUND, number=7) if is_pinned_with_a_line else None
    pin = PinnedTo((16, 5), "/dev/sdb", line)
    stale = structs.replace(BOUND, seen=Seen("this", 16, 4))
    there = dict.fromkeys([(16, 5), (32, 4)], standing("gpt:1"))
    assert with_pins([stale], {"sdb": pin}, "this", there) == [line or BOUND]
    exchanged = structs.replace(stale, seen=Seen("this", 32, 4))
    assert with_pins([exchanged], {"sdb": pin}, "this", there)[0].seen == exchanged.seen


def test_a_line_that_changes_gets_a_number_above_all() -> None:
    one, other = structs.replace(BOUND, number=4), Bound("sdc", "/dev/y", "gpt:2", number=6)
    moved = structs.replace(one, last="/dev/sdz")
    assert [line.number for line in numbered([moved, other], [one, other])] == [7, 6]
    assert [line.number for line in numbered([structs.replace(one, number=0)], [])] == [1]


@pytest.mark.parametrize(
    "bytes_",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"id":"../x","device":"/dev/x","identity":"gpt:1"}',
        b'{"id":"sdb","device":"/dev/x","identity":"nothing"}',
    ],
)
def test_a_pinned_line_is_checked_as_that_of_a_file(bytes_: bytes) -> None:
    pin = Pinned(slot=0, dev=16, diskseq=5, sectors=8, id="sdb", note=as_pinned(BOUND))
    assert line_pinned(pin, "this") == BOUND
    assert line_pinned(replace(pin, note=bytes_), "this") is None
    for of_another in (replace(pin, id="sdc"), replace(pin, diskseq=6), replace(pin, dev=32)):
        assert line_pinned(of_another, "this") is None
    assert line_pinned(pin, "another boot") is None
