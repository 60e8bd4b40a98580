"""Which disk is which, on real loop devices: disks that go, come back elsewhere, are replaced or ill, beside one that is well."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import structs

from agent.capture import answer, attach, bindings, disks, identify, layout, look, pins, protection, suitable
from agent.capture.answer import Answer, ask
from agent.capture.binding import Identity, Kind
from agent.capture.disks import Disk
from agent.capture.fitting import Change
from agent.capture.look import captured_twice, standing_now
from agent.capture.maps import detach
from agent.capture.watch import CLONES_S
from shared.desired import WantedDisk
from shared.errors import (
    BindingDamagedError,
    NoUsableDiskError,
    StateFileError,
)
from tests.capture_parts import MIB, needs_capture, run, until
from tests.failing_disks import full_disk
from tests.loopdisk import attached, remove_device
from tests.protected_machine import Machine, finds, identified_by_its_table, reattach, table_of

pytestmark = needs_capture


def test_the_same_disks_go_on_and_keep_their_ids(machine: Machine) -> None:
    first, none = machine.protect()
    names = [disk.name for disk in machine.rig.disks]
    assert (machine.ids(first), none, first.fresh) == ({name: name for name in names}, [], True)
    again, none = machine.protect()
    assert (machine.ids(again), none, again.fresh, machine.changes) == (machine.ids(first), [], False, [])
    assert [bound.identity.split(":")[0] for bound in bindings.read(machine.state_dir) or []] == ["loop"] * 2


def test_the_same_file_attached_again_is_attached_anew_and_the_other_goes_on(machine: Machine) -> None:
    r = machine.rig
    first, _ = machine.protect()
    r.write(0, b"x" * 4096, disk=1)
    reattach(r.device, r.backing[0])
    again, left_out = machine.protect()
    assert (left_out, again.fresh, machine.changes) == ([], False, [Change.RETURNED])
    assert machine.ids(again) == machine.ids(first)
    number = [disk.id for disk in again.disks].index(r.disks[1].name)
    assert again.counters(number).captured_sectors == 8, "the disk that stayed lost what was captured of it"
    r.write(0, b"y" * 4096, disk=0)
    r.write(4096, b"z" * 4096, disk=1)
    window = again.ring.peek(10)
    assert sorted(window.headers["disk"][window.valid].tolist()) == sorted([number, number, 1 - number])


def test_a_disk_that_stands_under_another_name_is_found_there(machine: Machine) -> None:
    r = machine.rig
    first, _ = machine.protect()
    run("losetup", "--detach", r.device)
    until(lambda: not Path(f"/sys/block/{r.disks[0].name}/loop").exists(), "still attached")
    # its old name is taken by a stranger, as after a reboot
    stranger = r.folder / "stranger"
    stranger.write_bytes(bytes(4 * MIB))
    reattach(r.device, stranger)
    with attached(r.backing[0]) as elsewhere:
        again, left_out = machine.protect()
        assert left_out == []
        assert machine.ids(again) == machine.ids(first) | {r.disks[0].name: Path(elsewhere).name}
        again.close()
        detach(r.pin_dir)  # or the device would stay in use


def test_another_file_under_the_known_path_is_refused_by_name_and_the_other_disk_goes_on(
    machine: Machine,
) -> None:
    r = machine.rig
    machine.protect()
    stranger = r.folder / "stranger"
    stranger.write_bytes(bytes(4 * MIB))
    reattach(r.device, stranger)
    again, (left,) = machine.protect()
    assert (left.id, left.error.code) == (r.disks[0].name, "US405")
    assert f"another disk stands under {r.device}" in left.error.cause
    assert str(r.backing[0]) in left.error.cause
    assert [disk.id for disk in again.disks] == [r.disks[1].name]
    assert machine.changes == [Change.LEFT]
    # and the right one is taken in again, by itself
    watch = machine.watch([left])
    assert not watch.is_one_back()
    reattach(r.device, r.backing[0])
    watch._next = 0.0
    until(lambda: watch.is_one_back(), "the disk that came back was not noticed")
    back, none = machine.protect()
    assert (none, machine.changes) == ([], [Change.LEFT, Change.JOINED])
    assert {disk.id for disk in back.disks} == {disk.name for disk in r.disks}


def test_a_missing_disk_leaves_the_other_protected_from_the_start(machine: Machine) -> None:
    r = machine.rig
    machine.wanted = [WantedDisk("/dev/no-such-disk"), *machine.wanted[1:]]
    capture, (left,) = machine.protect()
    assert (left.id, left.error.code) == ("no-such-disk", "US404")
    assert [disk.id for disk in capture.disks] == [r.disks[1].name]
    assert len(bindings.read(machine.state_dir) or []) == 1


def test_a_read_only_disk_leaves_the_other_protected(machine: Machine) -> None:
    r = machine.rig
    reattach(r.device, r.backing[0], "--read-only")
    capture, (left,) = machine.protect()
    assert left.error.cause == "it is read-only"
    assert [disk.id for disk in capture.disks] == [r.disks[1].name]


def test_a_disk_that_gives_errors_only_leaves_the_other_protected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    sick = Answer(cause="reads of it fail: Input/output error")
    real = ask

    def some(devices: list[str]) -> dict[str, Answer]:
        return real(devices) | {device: sick for device in devices if device == r.device}

    monkeypatch.setattr(answer, "ask", some)
    capture, (left,) = machine.protect()
    assert (left.id, left.error.cause) == (r.disks[0].name, sick.cause)
    assert [disk.id for disk in capture.disks] == [r.disks[1].name]


def test_a_disk_that_goes_away_while_capture_is_attached_costs_itself(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attach._baselines

    def pulled_out(wanted: Sequence[Disk]) -> tuple[dict[str, int], dict[str, str]]:
        run("losetup", "--detach", machine.rig.device)
        remove_device(machine.rig.device)
        return real(wanted)

    monkeypatch.setattr(attach, "_baselines", pulled_out)
    capture, (left,) = machine.protect()
    assert [disk.id for disk in capture.disks] == [machine.rig.disks[1].name]
    assert "it went away just now" in left.error.cause


def test_without_any_disk_nothing_is_attached_and_each_cause_is_named(machine: Machine) -> None:
    machine.wanted = [WantedDisk("/dev/no-such-a"), WantedDisk("/dev/no-such-b")]
    with pytest.raises(NoUsableDiskError, match=r"no-such-a: nothing stands.*no-such-b: nothing stands"):
        machine.protect()
    assert not machine.rig.pin_dir.exists()


def test_a_resized_disk_is_attached_anew_and_the_other_goes_on(machine: Machine) -> None:
    r = machine.rig
    machine.protect()
    with r.backing[0].open("r+b") as file:
        file.truncate(8 * MIB)
    run("losetup", "--set-capacity", r.device)
    again, left_out = machine.protect()
    assert (left_out, machine.changes, again.fresh) == ([], [Change.RESIZED], False)
    assert [disk.bytes for disk in again.disks] == [8 * MIB, 4 * MIB], "the order is not the configured one"
    machine.wanted.reverse()  # within an epoch, numbers stay
    later, _ = machine.protect()
    assert [disk.id for disk in later.disks] == [disk.id for disk in again.disks]


def test_a_disk_that_comes_to_lie_on_another_is_left_out_and_the_other_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, lower = (disk.name for disk in machine.rig.disks)
    real = disks._all_below
    with monkeypatch.context() as patch:  # as sysfs says it of layers, which this kernel may not have
        patch.setattr(
            disks, "_all_below", lambda name, sysfs: {lower} if name == upper else real(name, sysfs)
        )
        capture, (left,) = machine.protect()
        assert ([disk.name for disk in capture.disks], left.id) == ([lower], upper)
        assert f"{upper} lies on {lower}" in left.error.cause
        assert not finds(machine.watch([left]))
    assert finds(machine.watch([left]))
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out) == (2, [])
    machine.changes = []
    monkeypatch.setattr(
        disks, "_all_below", lambda name, sysfs: {lower} if name == upper else real(name, sysfs)
    )
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out, machine.changes) == (2, [], []), "both are captured as they stand"
    with machine.rig.backing[0].open("r+b") as file:
        file.truncate(8 * MIB)
    run("losetup", "--set-capacity", machine.rig.device)
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out, machine.changes) == (2, [], [Change.RESIZED]), (
        "it grew onto the other"
    )
    machine.changes = []
    reattach(str(machine.rig.disks[0].path), machine.rig.backing[0])  # it has to be taken in anew
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out, machine.changes) == (2, [], [Change.RETURNED])
    capture.close()
    detach(machine.rig.pin_dir)  # as a reboot does
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out) == (2, []), (
        "what of it lies elsewhere would be in no stream any more"
    )
    assert captured_twice(capture.disks).keys() == {upper}


def test_a_captured_disk_that_can_be_written_past_capture_is_left_out_and_one_that_is_read_only_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    machine.protect()
    r.write(0, b"x" * 4096, disk=1)
    run("blockdev", "--setro", r.device)
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out, machine.changes) == (2, [], [])
    # an older agent captured it, which did not ask
    monkeypatch.setattr(suitable, "given_pages", lambda name, *, sysfs: name == r.disks[0].name)
    capture, (left,) = machine.protect()
    assert (left.id, left.error.code) == (r.disks[0].name, "US415")
    assert "single pages (rw_page)" in left.error.cause
    assert ([disk.id for disk in capture.disks], machine.changes) == ([r.disks[1].name], [Change.LEFT])
    assert capture.counters(0).captured_sectors == 8, "the other disk lost what was captured of it"
    assert not finds(machine.watch([left])), "it would be taken in and left out by turns"


@pytest.mark.parametrize("while_", ["it is asked", "its names are read"])
def test_what_another_disk_says_that_takes_the_name_during_the_look_is_not_believed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, while_: str
) -> None:
    r = machine.rig
    name = "ask" if while_ == "it is asked" else "attributes"
    real = getattr(answer, name)

    def exchanged(asked: Sequence[str]) -> object:
        said = real(asked)
        reattach(r.device, r.backing[0])
        return said

    monkeypatch.setattr(answer, name, exchanged)
    capture, (left,) = machine.protect()
    assert ([disk.name for disk in capture.disks], left.id) == ([r.disks[1].name], r.disks[0].name)
    assert left.error.code == "US404"


def test_another_list_of_disks_is_taken_up_without_a_detach(machine: Machine) -> None:
    r = machine.rig
    both = machine.wanted
    machine.wanted = both[1:]
    one, _ = machine.protect()
    r.write(0, b"x" * 4096, disk=1)
    machine.wanted = both
    two, _ = machine.protect()
    assert {disk.id for disk in two.disks} == {disk.name for disk in r.disks}
    assert two.disks[1].id == one.disks[0].id
    assert two.counters(1).captured_sectors == 8
    machine.wanted = both[:1]
    other, none = machine.protect()
    assert ([disk.id for disk in other.disks], none) == ([r.disks[0].name], [])
    assert machine.changes == [Change.JOINED, Change.LEFT]
    assert len(bindings.read(machine.state_dir) or []) == 2, "the id of a disk that left may be given again"


def test_a_lost_binding_is_said_and_a_damaged_one_refused(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = machine.protect()
    file = machine.state_dir / bindings.NAME
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    again, _ = machine.protect()
    assert (machine.ids(again), file.read_bytes()) == (machine.ids(first), whole), (
        "the running agent knows it"
    )
    file.write_bytes(whole[:-9])
    machine.restart()
    with pytest.raises(BindingDamagedError, match=r"disks\.json could not be read"):
        machine.protect()
    file.unlink()
    machine.restart()
    again, _ = machine.protect()
    assert machine.ids(again) == machine.ids(first)
    assert "which disk is which is not known any more" in capsys.readouterr().out
    assert file.read_bytes() == whole


def test_a_disk_that_cannot_be_written_down_is_left_out_until_it_can_and_those_that_are_known_go_on(
    machine: Machine,
) -> None:
    both = machine.wanted
    with full_disk() as disk:
        machine.state_dir = disk.where
        machine.wanted = both[:1]
        first, _ = machine.protect()
        machine.wanted = both
        disk.fail()
        again, (left,) = machine.protect()
        assert [(d.id, again.fresh) for d in again.disks] == [(d.id, False) for d in first.disks]
        assert (left.id, left.error.code) == (machine.rig.disks[1].name, "US478")
        assert "No space left on device" in left.error.cause
        watch = machine.watch([left])
        watch._search(is_try=False)
        assert not watch._found, "the capture would be fitted anew, in vain, again and again"
        detach(machine.rig.pin_dir)
        others = machine.watch([left])
        others._search(is_try=False)
        assert others.found == {first.disks[0].id}, "one that is known is back, and is not looked for"
        disk.heal()
        watch._search(is_try=False)
        assert watch._found
        whole, none = machine.protect()
        assert (len(whole.disks), none) == (2, [])


def test_a_note_that_could_not_be_written_is_known_said_and_written_as_soon_as_it_can_be(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r, bare = machine.rig, identify.identities

    def without_loop(disk: Disk, told: Answer = answer.NOTHING) -> tuple[Identity, ...]:
        return tuple(found for found in bare(disk, told) if found.kind is not Kind.LOOP)

    def partition() -> None:
        table = ["sfdisk", "-q", "--no-reread", r.device]
        subprocess.run(table, input="label: gpt\n", text=True, check=True, stderr=subprocess.DEVNULL)

    monkeypatch.setattr(identify, "identities", without_loop)
    partition()
    with full_disk() as disk:
        machine.state_dir = disk.where
        first, _ = machine.protect()
        first.close()
        detach(r.pin_dir)
        monkeypatch.setattr(look, "this_boot", lambda: "the next boot")
        machine.restart()
        disk.fail()
        again, none = machine.protect()
        assert (machine.ids(again), none) == (machine.ids(first), [])
        assert machine.file.trouble is not None
        assert "No space left on device" in machine.file.trouble.cause
        partition()  # nothing but the note says which disk it is
        again, none = machine.protect()
        assert (machine.ids(again), none, machine.changes) == (machine.ids(first), [], [])
        watch = machine.watch([])
        assert not finds(watch)
        assert watch.file.trouble is not None
        disk.heal()
        watch._next = 0.0
        assert not finds(watch)
        assert watch.file.trouble is None
        machine.restart()
        again, none = machine.protect()
        assert (machine.ids(again), none, machine.changes) == (machine.ids(first), [], [])


def test_where_no_disk_can_be_written_down_nothing_is_attached(machine: Machine) -> None:
    with full_disk() as disk:
        machine.state_dir = disk.where
        disk.fail()
        with pytest.raises(StateFileError, match="could not be noted"):
            machine.protect()
        assert not pins.exist(machine.rig.pin_dir)


def test_a_look_that_fails_is_said_and_the_next_one_finds_the_disk(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = machine.wanted
    machine.wanted = [WantedDisk("/dev/no-such-disk"), *both[1:]]
    _, (left,) = machine.protect()
    machine.wanted = both
    watch = machine.watch([left])
    watch.silent = frozenset({"sdb"})
    with monkeypatch.context() as patch:
        patch.setattr(answer, "attributes", lambda names: 1 // 0)
        assert not finds(watch)
        assert watch.trouble is not None
        assert "ZeroDivisionError" in watch.trouble.cause
        assert not watch.silent, "what an earlier look found is taken for this one's"
    watch._next = 0.0
    assert finds(watch)
    assert watch.trouble is None


def test_ids_and_identities_of_the_configuration_bind(machine: Machine) -> None:
    r = machine.rig
    identity = str(standing_now(r.device).identities[0])
    assert identity.startswith("loop:")
    # the path is wrong: what counts is the identity
    machine.wanted = [WantedDisk("/dev/no-such-disk", "data", identity)]
    capture, _ = machine.protect()
    assert machine.ids(capture) == {"data": r.disks[0].name}


def test_a_partition_table_identifies_what_has_nothing_else(machine: Machine) -> None:
    r = machine.rig
    subprocess.run(
        ["sfdisk", "-q", r.device], input="label: gpt\n", text=True, check=True, stderr=subprocess.DEVNULL
    )
    kinds = [identity.kind for identity in standing_now(r.device).identities]
    assert kinds == [Kind.LOOP, Kind.GPT, Kind.NAME]


def test_a_captured_disk_that_does_not_answer_at_a_start_stays_captured_and_bound(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    machine.protect()
    before = bindings.read(machine.state_dir) or []
    assert before[0].identity.startswith("gpt:")
    sick = Answer(cause="it did not answer within 10 s", hangs=True)
    real = ask

    def some(devices: list[str]) -> dict[str, Answer]:
        return real(devices) | {device: sick for device in devices if device == r.device}

    monkeypatch.setattr(answer, "ask", some)
    again, left_out = machine.protect()
    assert (len(again.disks), left_out, machine.changes) == (2, [], [])
    assert bindings.read(machine.state_dir) == before
    assert "a captured disk cannot be read" in capsys.readouterr().out


def test_of_twins_the_captured_one_goes_on_and_after_a_reboot_none_is_guessed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    link, clone = r.folder / "by-id", r.folder / "clone"
    link.symlink_to(r.device)
    machine.wanted = [WantedDisk(str(link)), machine.wanted[1]]
    first, _ = machine.protect()
    clone.write_bytes(r.backing[0].read_bytes())
    with attached(clone) as twin:
        link.unlink()
        link.symlink_to(twin)  # as udev does: the disk that came last has it
        again, left_out = machine.protect()
        assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])
        [(id_, warning)] = machine.shared.items()
        assert (id_, warning.code) == (r.disks[0].name, "US603")
        machine.shared = {}
        watch = machine.watch([])  # of an agent that began before the clone came
        assert not finds(watch)
        assert watch.shared.keys() == {id_}
        again.close()
        detach(r.pin_dir)  # as a reboot does
        capture, (left,) = machine.protect()
        assert ([disk.name for disk in capture.disks], left.error.code) == ([r.disks[1].name], "US405")
        assert twin in left.error.cause
        assert r.device in left.error.cause
        machine.wanted = [WantedDisk(r.device, left.id), machine.wanted[1]]
        _, (left,) = machine.protect()
        assert left.error.code == "US405", "the kernel's name is another's after the next reboot"
    whole, none = machine.protect()
    assert (machine.ids(whole), none, machine.shared) == (machine.ids(first), [], {})
    machine.shared = {id_: warning}
    watch = machine.watch([])
    assert not finds(watch)
    assert watch.shared == {}, "its clone is away"


def test_a_clone_is_warned_of_and_an_older_file_put_back_gives_it_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    first, _ = machine.protect()
    known = machine.file.path.read_bytes()
    noted = machine.file.written[0].seen
    assert noted is not None
    clone = r.folder / "clone"
    clone.write_bytes(r.backing[0].read_bytes())
    with attached(clone):
        watch = machine.watch([])
        assert not finds(watch)
        assert watch.shared.keys() == {r.disks[0].name}
        assert watch._next_shared < time.monotonic() + CLONES_S / 2, "it may be detached soon"
        identified_by_its_table(r.device, monkeypatch)  # partitioned anew: only the note says who it is
        machine.file.path.write_bytes(known.replace(noted.boot.encode(), b"the boot before"))
        assert not finds(watch), "a captured disk would be exchanged for its clone"
        again, left_out = machine.protect()
        assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])
    assert noted in [bound.seen for bound in bindings.read(machine.state_dir) or []]


def test_a_machine_without_room_for_a_thread_is_looked_at_when_there_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    machine.protect()
    watch = machine.watch([])
    watch.silent = frozenset({"sda"})  # what the last look found
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_room)
        assert not watch.is_one_back()
    assert watch.silent is None, "a disk that nobody could ask would be given up"
    assert watch.trouble is not None
    assert "can't start new thread" in watch.trouble.cause
    assert not finds(watch)
    assert watch.trouble is None


def test_a_look_at_the_captured_disks_that_fails_is_said_until_one_succeeds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.protect()
    watch = machine.watch([])
    with monkeypatch.context() as patch:
        patch.setattr(answer, "attributes", lambda names: 1 // 0)
        for _ in range(2):
            assert not finds(watch)
            assert watch.trouble is not None
            watch.is_one_back()
            assert watch.trouble is not None
    assert not finds(watch)
    assert watch.trouble is None


def test_links_that_are_exchanged_and_a_line_more_for_a_captured_disk_change_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    links = [r.folder / "by-id-0", r.folder / "by-id-1"]
    for link, disk in zip(links, r.disks, strict=True):
        link.symlink_to(disk.path)
    machine.wanted = [WantedDisk(str(link)) for link in links]
    first, _ = machine.protect()
    for link, disk in zip(links, reversed(r.disks), strict=True):
        link.unlink()
        link.symlink_to(disk.path)
    machine.wanted.append(WantedDisk(r.device))
    before = bindings.read(machine.state_dir) or []
    assert all(bound.seen for bound in before)
    again, (left,) = machine.protect()
    assert (machine.ids(again), machine.changes) == (machine.ids(first), [])
    assert (left.id, left.error.code) == (f"{r.disks[0].name}-2", "US405")
    assert left.error.cause == f"{r.device} is the protected disk {r.disks[0].name} already"
    assert left.error.action.startswith("Take one of the two out")
    assert bindings.read(machine.state_dir) == before
    # an older agent wrote no note
    bindings.write(machine.state_dir, [structs.replace(bound, seen=None) for bound in before])
    again, _ = machine.protect()
    assert (machine.ids(again), machine.changes) == (machine.ids(first), [])
    assert bindings.read(machine.state_dir) == before
    assert "others bear, too" not in capsys.readouterr().out


def test_of_too_many_disks_those_that_are_captured_go_on_and_each_of_the_others_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine.wanted
    monkeypatch.setattr(layout, "MAX_DISKS", 1)
    machine.wanted = [second]
    machine.protect()
    machine.wanted = [first, second]
    capture, (left,) = machine.protect()
    assert ([disk.id for disk in capture.disks], machine.changes) == ([machine.rig.disks[1].name], [])
    assert (left.id, left.error.code) == (machine.rig.disks[0].name, "US404")
    assert (left.error.cause, left.error.action[:11]) == (
        "a machine may have 1 disks, and others have these places",
        "Take a disk",
    )
    watch = machine.watch([left])
    watch._search(is_try=False)
    assert not watch._found, "the session would end each time it is looked for"
    run("losetup", "--detach", second.device)  # away for a moment, and its place is not another's
    until(lambda: not Path(f"/sys/block/{Path(second.device).name}/loop").exists(), "still attached")
    watch._search(is_try=False)
    assert not watch._found


def test_who_is_killed_behind_the_note_goes_by_it_at_every_later_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id is another disk from now on: that is noted, and capture has not been touched."""
    a, b = machine.rig.disks
    for disk in (a, b):
        identified_by_its_table(str(disk.path), monkeypatch)
    machine.wanted = [WantedDisk(str(a.path), "data", table_of(str(a.path)))]
    machine.protect()
    machine.wanted = [WantedDisk(str(b.path), "data", table_of(str(b.path)))]
    with monkeypatch.context() as killed:
        killed.setattr(protection, "bring_about", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            machine.protect()
    for _ in range(2):
        machine.restart()
        capture, left_out = machine.protect()
        assert (machine.ids(capture), left_out) == ({"data": b.name}, [])


@pytest.mark.parametrize("pinned_by", ["this agent", "an older one"])
def test_where_the_file_is_lost_a_captured_disk_that_does_not_answer_is_bound_by_no_less_than_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, pinned_by: str
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    machine.protect()

    def bound() -> dict[str, str]:
        return {line.id: line.identity for line in bindings.read(machine.state_dir) or []}

    before = bound()
    assert before[r.disks[0].name].startswith("gpt:")
    if pinned_by == "an older one":
        (r.pin_dir / "notes").unlink()
    machine.file.path.unlink()
    machine.restart()
    real = ask
    with monkeypatch.context() as silent:
        sick = Answer(cause="it did not answer within 10 s", hangs=True)
        silent.setattr(
            answer, "ask", lambda paths: real(paths) | {path: sick for path in paths if path == r.device}
        )
        capture, left_out = machine.protect()
        assert (len(capture.disks), left_out, machine.changes) == (2, [], [])
    assert bound().get(r.disks[0].name) in (None, before[r.disks[0].name]), "a kernel's name is no evidence"
    machine.restart()
    machine.protect()
    assert (bound(), machine.changes) == (before, [])


@pytest.mark.parametrize("pinned_by", ["this agent", "an older one"])
@pytest.mark.parametrize("happens", ["a clone", "another table"])
def test_where_the_file_is_lost_a_captured_disk_goes_on_whatever_its_configured_identity_says_by_now(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, happens: str, pinned_by: str
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    machine.wanted[0] = WantedDisk(r.device, "data", table_of(r.device))
    first, _ = machine.protect()
    clone = r.folder / "clone"
    clone.write_bytes(r.backing[0].read_bytes())
    if pinned_by == "an older one":
        (r.pin_dir / "notes").unlink()
    with attached(clone):
        if happens == "another table":
            identified_by_its_table(r.device, monkeypatch)
        for lose in (False, True, False):
            if lose:
                machine.file.path.unlink()
            machine.restart()
            again, left_out = machine.protect()
            assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])


def test_where_the_file_is_lost_and_cannot_be_written_captured_disks_go_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(state_dir: Path, lines: Sequence[bindings.Bound]) -> None:
        raise StateFileError("not written", cause="no room")

    first, _ = machine.protect()
    machine.file.path.unlink()
    for _ in range(2):
        machine.restart()
        with monkeypatch.context() as full:
            full.setattr(bindings, "write", write)
            again, left_out = machine.protect()
        assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])
        assert machine.file.trouble is not None
    machine.file.write_again()
    assert [line.id for line in bindings.read(machine.state_dir) or []] == [*machine.ids(first)]
