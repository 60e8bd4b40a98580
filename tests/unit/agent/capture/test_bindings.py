"""disks.json: what is read of it in this boot and another, by this agent and an older one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from agent.capture import bindings
from agent.capture.binding import Action, Identity, Known, Standing, decide
from agent.capture.bindings import (
    NAME,
    BindingsFile,
    Bound,
    NotedDisk,
    Seen,
    after,
    all_known,
    known,
    with_notes,
    with_pins,
)
from shared.desired import WantedDisk
from shared.errors import BindingDamagedError, StateFileError

SEEN = Seen("this", 16, 5)
BOUND = Bound("sdb", "/dev/x", "gpt:1", "/dev/sdb", SEEN)


def standing(*identities: str, is_named: bool = True) -> Standing:
    """What stands at /dev/sdb."""
    borne = tuple(Identity.parse(text) for text in (*identities, "name:sdb, 8 sectors"))
    return Standing(
        path="/dev/sdb", name="sdb", dev=16, diskseq=5, sectors=8, identities=borne, is_named=is_named
    )


def test_what_an_older_agent_wrote_is_read_and_what_is_written_is_read_back(tmp_path: Path) -> None:
    old = {"id": "sdb", "device": "/dev/x", "identity": "gpt:1", "last": "/dev/sdb"}
    (tmp_path / NAME).write_text(json.dumps({"v": 1, "disks": [old]}))
    assert bindings.read(tmp_path) == [structs.replace(BOUND, seen=None)]
    bindings.write(tmp_path, [BOUND])
    assert bindings.read(tmp_path) == [BOUND]
    (written,) = json.loads((tmp_path / NAME).read_text())["disks"]
    assert written == old | {"seen": {"boot": "this", "dev": 16, "diskseq": 5}}


@pytest.mark.parametrize(
    ("wanted", "bound", "noted"),
    [
        (WantedDisk("/dev/x"), BOUND, (16, 5)),
        (WantedDisk("/dev/y", "sdb"), BOUND, (16, 5)),
        (WantedDisk("/dev/x", "sdb", "gpt:1"), BOUND, (16, 5)),
        (WantedDisk("/dev/x", "sdb", "gpt:2"), BOUND, None),  # another disk is meant
        (WantedDisk("/dev/x"), structs.replace(BOUND, seen=Seen("before", 16, 5)), None),
        (WantedDisk("/dev/x"), structs.replace(BOUND, seen=Seen("this", 16, 0)), None),  # before Linux 5.15
    ],
)
def test_a_note_counts_in_its_boot_for_the_disk_that_is_meant(
    wanted: WantedDisk, bound: Bound, noted: tuple[int, int] | None
) -> None:
    disk = known(wanted, [bound], standing("gpt:1"), "this")
    assert disk is not None
    assert (disk.noted, disk.is_new, disk.is_configured) == (noted, False, wanted.identity is not None)


def test_what_an_older_agent_captured_is_noted_by_where_it_stood_unless_two_stood_there() -> None:
    old = structs.replace(BOUND, seen=None)
    other = Bound("sdc", "/dev/y", "gpt:2", "/dev/sdc")
    there = {"/dev/sdb": standing("gpt:1")}
    assert with_notes([old, other], there, "this") == [BOUND, other]
    former = structs.replace(other, last="/dev/sdb")
    assert with_notes([old, former], there, "this") == [old, former]
    mine = structs.replace(other, seen=Seen("this", 32, 6))
    assert with_notes([old, mine], there, "this") == [old, mine], (
        "this agent wrote it: it had no note to give"
    )


@pytest.mark.parametrize("kept", ["wwid:1", "serial:1", "loop:1:2 /f"])
@pytest.mark.parametrize("bears", ["gpt:1", "gpt:2", "wwid:2"])
def test_a_line_that_stayed_of_a_disk_that_stood_there_before_costs_the_captured_one_no_note(
    kept: str, bears: str
) -> None:
    old = structs.replace(BOUND, seen=None)
    stale = Bound("former", "/dev/sdb", kept, "/dev/sdb")
    for lines in ([stale, old], [old, stale]):
        noted = with_notes(lines, {"/dev/sdb": standing(bears)}, "this")
        assert {line.id: line.seen for line in noted} == {"sdb": SEEN, "former": None}


def test_a_line_of_what_the_captured_disk_bears_or_may_not_have_told_leaves_it_open_whose_it_is() -> None:
    old = structs.replace(BOUND, seen=None)
    stale = Bound("former", "/dev/sdb", "wwid:1", "/dev/sdb")
    for disk in (standing("wwid:1", "gpt:1"), standing("gpt:1", is_named=False)):
        assert with_notes([stale, old], {"/dev/sdb": disk}, "this") == [stale, old]
    # alone, a line is of what is captured there, whatever that has ceased to say
    alone = with_notes([stale], {"/dev/sdb": standing("gpt:1")}, "this")
    assert alone == [structs.replace(stale, seen=SEEN)]


def test_where_another_lines_disk_stands_by_now_an_older_agent_did_not_write_where_it_attached_either() -> (
    None
):
    stale = Bound("former", "/dev/sdb", "wwid:1", "/dev/sdb")
    other = Bound("other", "/dev/sdc", "gpt:2", "/dev/sdc")
    assert with_notes([stale, other], {"/dev/sdb": standing("gpt:2")}, "this") == [stale, other]
    both = with_notes([stale, other], {"/dev/sdb": standing("wwid:1", "gpt:2")}, "this")
    assert both == [structs.replace(stale, seen=SEEN), other]


def test_a_disk_that_bears_a_copy_of_another_captured_disks_table_keeps_its_note() -> None:
    lines = [Bound("sdb", "/dev/x", "gpt:1", "/dev/sdb"), Bound("sdc", "/dev/y", "gpt:2", "/dev/sdc")]
    other = replace(standing("gpt:2"), path="/dev/sdc", dev=32, diskseq=6)
    noted = with_notes(lines, {"/dev/sdb": standing("gpt:2"), "/dev/sdc": other}, "this")
    assert [line.seen for line in noted] == [SEEN, Seen("this", 32, 6)]
    exchanged = replace(other, identities=standing("gpt:1").identities)
    noted = with_notes(lines, {"/dev/sdb": standing("gpt:2"), "/dev/sdc": exchanged}, "this")
    assert noted == lines, "each bears what the other is bound by"


OLDER = [structs.replace(BOUND, seen=Seen("before", 32, 6))]


@pytest.mark.parametrize(
    ("happens", "cause"),
    [
        (lambda path: path.unlink(), "was removed"),
        (lambda path: bindings.write(path.parent, OLDER), "was changed"),
        (lambda path: path.write_bytes(b""), "could not be read"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_what_the_running_agent_knows_outlives_whatever_becomes_of_the_file_and_is_written_again(
    tmp_path: Path, happens: Callable[[Path], object], cause: str
) -> None:
    file = BindingsFile(tmp_path)
    assert file.read() is None
    file.write([BOUND])
    assert file.read() == [BOUND]
    assert not file.trouble
    happens(file.path)
    assert file.read() == [BOUND]
    assert file.trouble is not None
    assert cause in file.trouble.cause
    assert file.owe([BOUND], StateFileError("not noted", cause="no room")), "the file does not say it"
    assert file.trouble is not None
    assert file.trouble.cause == "no room"
    if file.path.is_dir():
        with pytest.raises(StateFileError):
            file.write_again()
        assert file.read() == [BOUND]
        file.path.rmdir()
    file.write_again()
    assert bindings.read(tmp_path) == [BOUND]
    assert not file.trouble


def test_a_file_that_cannot_be_had_at_the_start_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(StateFileError, match="could not be read"):
        BindingsFile(tmp_path).read()
    (tmp_path / NAME).rmdir()
    (tmp_path / NAME).write_bytes(b"{")
    with pytest.raises(BindingDamagedError):
        BindingsFile(tmp_path).read()


def test_when_the_agent_has_ended_no_thread_of_it_writes_the_file(tmp_path: Path) -> None:
    file, next_agents = BindingsFile(tmp_path), BindingsFile(tmp_path)
    file.write(OLDER)
    file.close()
    next_agents.write([BOUND])
    for late in (file.write_again, lambda: file.write(OLDER)):
        with pytest.raises(StateFileError, match="has ended"):
            late()
    assert bindings.read(tmp_path) == [BOUND]


def test_an_agent_ends_though_a_thread_of_it_hangs_with_the_files_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BindingsFile(tmp_path)
    monkeypatch.setattr(bindings, "CLOSE_S", 0.01)
    with file._lock:
        file.close()
    with pytest.raises(StateFileError, match="has ended"):
        file.write([BOUND])


def test_a_file_that_stands_as_it_was_written_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BindingsFile(tmp_path)
    file.write([BOUND])
    monkeypatch.setattr(bindings, "read", lambda *_: pytest.fail("its disk may hang"))
    assert file.read() == [BOUND]


def test_a_disk_that_is_noted_for_one_id_is_noted_for_no_other() -> None:
    new = Bound("new", "/dev/z", "gpt:1", "/dev/sdb", SEEN)
    other = Bound("sdc", "/dev/y", "gpt:2", "/dev/sdc", Seen("this", 32, 6))
    assert after([BOUND, other], [new]) == [structs.replace(BOUND, seen=None), other, new]


def test_what_could_not_be_written_is_what_is_known_until_it_or_something_newer_is_written(
    tmp_path: Path,
) -> None:
    file = BindingsFile(tmp_path)
    old, newer = structs.replace(BOUND, seen=None), structs.replace(BOUND, last="/dev/sdc")
    why = StateFileError("It could not be noted", cause="it is full")
    file.write([old])
    assert file.owe([old], why) is None, "the file says it"
    said = file.owe([BOUND], why)
    assert said is not None
    assert (said.code, said.cause, said) == ("US478", "it is full", file.trouble)
    assert (file.read(), file.written, bindings.read(tmp_path)) == ([BOUND], [old], [old])
    for newest in (BOUND, newer):
        file.owe([BOUND], why)
        if newest is newer:
            file.write([newer])
        file.write_again()
        assert file.trouble is None
        assert (file.read(), bindings.read(tmp_path)) == ([newest], [newest])


def test_a_second_line_for_one_id_is_a_new_disk_wherever_it_stands() -> None:
    lines = [WantedDisk("/dev/x"), WantedDisk("/dev/y", "sdb")]
    for wanted in (lines, lines[::-1]):
        found = {
            disk.path: disk for disk in all_known(wanted, [BOUND], {"/dev/x": standing("gpt:1")}, "this")
        }
        assert (found["/dev/y"].id, found["/dev/y"].is_new) == ("sdb", False)
        assert (found["/dev/x"].id, found["/dev/x"].is_new) == ("sdb-2", True)


def known_at(device: str, there: Standing, line: Bound, *, captured: bool = False) -> Known:
    """What is configured alone, by this path."""
    pinned = {(there.dev, there.diskseq)} if captured else set()
    [found] = all_known([WantedDisk(device)], [line], {device: there}, "this", pinned)
    return found


def test_the_same_disk_under_another_path_keeps_its_id() -> None:
    found = known_at("/dev/disk/by-id/x", standing("gpt:1"), BOUND)
    assert (found.id, found.path, found.is_new, found.noted) == ("sdb", "/dev/disk/by-id/x", False, (16, 5))
    assert str(found.identity) == "gpt:1"


def test_another_disk_that_has_its_device_number_by_now_is_a_new_one() -> None:
    for there in (
        replace(standing("gpt:1"), diskseq=6),  # unplugged, and a clone of it plugged in
        replace(standing("gpt:1"), diskseq=0),  # nobody knows
    ):
        found = known_at("/dev/disk/by-id/x", there, BOUND)
        assert (found.id, found.is_new) == ("sdb-2", True)
    before = structs.replace(BOUND, seen=Seen("before", 16, 5))
    assert known_at("/dev/disk/by-id/x", standing("gpt:1"), before).is_new, "diskseqs are counted anew"


def test_what_a_disk_bears_under_another_path_may_say_that_it_is_another() -> None:
    lun = structs.replace(BOUND, identity="wwid:1")
    for captured in (False, True):
        found = known_at("/dev/y", standing("wwid:2"), lun, captured=captured)
        assert found.is_new, "it was mapped anew behind the same device"
    assert known_at("/dev/y", standing("gpt:2"), BOUND).is_new, "nobody has watched who changed its table"
    assert known_at("/dev/y", standing("gpt:2"), BOUND, captured=True).id == "sdb"


def test_a_line_that_is_configured_still_is_taken_by_no_other_path() -> None:
    there = standing("gpt:1")
    paths = {"/dev/y": there, "/dev/x": there}
    for wanted in (["/dev/y", "/dev/x"], ["/dev/x", "/dev/y"]):
        found = {one.path: one for one in all_known([*map(WantedDisk, wanted)], [BOUND], paths, "this")}
        assert (found["/dev/x"].id, found["/dev/y"].id) == ("sdb", "sdb-2")
    asked = [WantedDisk("/dev/y"), WantedDisk("/dev/z", "sdb")]
    assert [one.id for one in all_known(asked, [BOUND], paths, "this")] == ["sdb-2", "sdb"]
    other = all_known([WantedDisk("/dev/y", identity="gpt:9")], [BOUND], paths, "this")
    assert other[0].id == "sdb-2", "another disk is meant"


def test_another_disk_that_is_meant_by_a_path_is_not_that_of_the_line_which_had_it() -> None:
    """An operator named the path where he saw it: the disk before was replaced, or has another name since."""
    former = Bound("sdb", "/dev/x", "wwid:A", "/dev/sdb", Seen("before", 16, 4))
    wanted = WantedDisk("/dev/x", identity="wwid:B")

    def found(lines: list[Bound], *borne: str) -> Known:
        paths = {"/dev/x": standing(*borne)} if borne else {}
        [one] = all_known([wanted], lines, paths, "this")
        return one

    for borne in (("wwid:B",), ("wwid:C",), ()):
        assert (found([former], *borne).id != "sdb", found([former], *borne).is_new) == (True, True)
    mine = Bound("sdb-2", "/dev/x", "wwid:B", "/dev/sdb", Seen("before", 16, 5))
    for lines in ([former, mine], [mine, former]):
        assert (found(lines, "wwid:B").id, found(lines).id) == ("sdb-2", "sdb-2")
        [alone] = all_known([WantedDisk("/dev/x", "sdb")], lines, {"/dev/x": standing("wwid:B")}, "this")
        assert str(alone.identity) == "wwid:A"
    by_table = structs.replace(former, identity="gpt:1")
    assert found([by_table], "wwid:B", "gpt:2").is_new, (
        "it bears what is asked for, and not what the line's bore"
    )
    # The same disk, of which something stronger is said: it bears both, or was noted, or nothing says that it is another.
    assert found([by_table], "wwid:B", "gpt:1").id == "sdb"
    assert found([structs.replace(by_table, seen=SEEN)], "wwid:B", "gpt:2").id == "sdb"
    assert found([by_table]).id == "sdb"
    assert found([by_table], "wwid:C").id == "sdb"


def test_a_disk_that_is_meant_by_what_lasts_keeps_its_id_whatever_it_is_called() -> None:
    line = Bound("sdb", "/dev/x", "wwid:A", "/dev/sdb", Seen("before", 16, 4))

    def found(*wanted: WantedDisk, lines: tuple[Bound, ...] = (line,)) -> list[str]:
        return [one.id for one in all_known(wanted, lines, {}, "this")]

    assert found(WantedDisk("/dev/y", identity="wwid:A")) == ["sdb"]
    assert found(WantedDisk("/dev/y", identity="wwid:B")) == ["y"]
    assert found(WantedDisk("/dev/y", identity="wwid:A"), WantedDisk("/dev/z", "sdb"))[0] != "sdb"
    by_table = structs.replace(line, identity="gpt:1")
    assert found(WantedDisk("/dev/y", identity="gpt:1"), lines=(by_table,)) == ["y"], "a clone bears it, too"
    twin = structs.replace(line, id="sdc")
    assert found(WantedDisk("/dev/y", identity="wwid:A"), lines=(line, twin)) == ["y"]
    other = Bound("sdc", "/dev/y", "wwid:B", "/dev/sdc", Seen("before", 32, 6))
    swapped = WantedDisk("/dev/y", identity="wwid:A"), WantedDisk("/dev/x", identity="wwid:B")
    assert found(*swapped, lines=(line, other)) == ["sdb", "sdc"]


def test_a_disk_under_a_path_that_is_new_keeps_its_id_behind_a_reboot_by_what_lasts() -> None:
    """Stopped, the host rebooted, and protected again by a link."""
    before = Bound("sdb", "/dev/sdb", "wwid:A", "/dev/sdb", Seen("before", 16, 4))
    there, link = standing("wwid:A", "gpt:1"), "/dev/disk/by-id/wwn-A"

    def found(*lines: Bound, beside: tuple[WantedDisk, ...] = ()) -> str:
        return all_known([WantedDisk(link), *beside], lines, {link: there}, "this")[0].id

    assert found(before) == "sdb"
    assert found(before, structs.replace(before, id="twin")) == "sdb-2", "nobody knows which"
    assert found(structs.replace(before, shared=("wwid:A",))) == "sdb-2", "another disk has borne it"
    assert found(structs.replace(before, identity="gpt:1")) == "sdb-2", "a clone bears it, too"
    assert found(before, beside=(WantedDisk("/dev/z", "sdb"),)) == "sdb-2", "it is said of another"


def test_a_path_means_what_stands_there_where_the_disk_that_was_called_so_is_said_by_its_id() -> None:
    """The names of two disks were changed by a boot; one was named by its path, and the other, which was called so, stays."""
    one = Bound("sda", "/dev/sda", "wwid:A", "/dev/sdb", Seen("this", 32, 6))
    other = Bound("sdb", "/dev/sdb", "wwid:B", "/dev/sda", SEEN)
    wanted = (WantedDisk("/dev/sda"), WantedDisk("/dev/sda", "sda"))
    for lines in ([one, other], [other, one]):
        found = all_known(wanted, lines, {"/dev/sda": standing("wwid:B")}, "this", {(16, 5), (32, 6)})
        assert [known.id for known in found] == ["sdb", "sda"]


def test_an_id_that_an_agent_gave_and_of_which_nothing_is_noted_any_more_is_no_disk_by_its_path() -> None:
    """The state_dir was lost, and a boot changed names since: what is called so may be a stranger."""
    there = standing("wwid:C")

    def action(wanted: WantedDisk, *lines: Bound) -> Action:
        [verdict] = decide(all_known([wanted], lines, {"/dev/sdb": there}, "this"), [there])
        return verdict.action

    assert action(NotedDisk("/dev/sdb", "sdb")) is Action.REFUSED
    assert action(WantedDisk("/dev/sdb", "sdb")) is Action.ATTACH, "who configures it gives it that id"
    assert action(NotedDisk("/dev/sdb", "sdb", "wwid:C")) is Action.ATTACH, "what it bears proves it"
    assert action(NotedDisk("/dev/sdb", "sdb"), structs.replace(BOUND, identity="wwid:C")) is Action.ATTACH


def test_what_the_file_does_not_say_of_captured_disks_the_pins_do() -> None:
    disk = standing("gpt:1")
    made = Bound("sdb", "/dev/sdb", "gpt:1", "/dev/sdb", SEEN)
    assert with_pins([], {"sdb": disk}, "this") == [made]
    elsewhere = structs.replace(BOUND, last="/dev/sdc", seen=Seen("this", 32, 4))
    assert with_pins([elsewhere], {"sdb": disk}, "this") == [BOUND], "where it stands now was not written"
    before = structs.replace(BOUND, seen=Seen("before", 16, 5))
    assert with_pins([before], {"sdb": disk}, "this") == [BOUND]
    renamed = structs.replace(BOUND, id="root")
    for lines in ([BOUND], [renamed], [elsewhere, renamed]):
        assert with_pins(lines, {"sdb": disk}, "this") == lines, "the file is newer"
    assert with_pins([], {"sdb": replace(disk, diskseq=0)}, "this") == [], "before Linux 5.15"
