"""A disks.json that says other disks than are captured, on real loop devices: put back after it was lost, or older than the pins since it
could not be written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.capture import bindings, identify
from agent.capture.maps import Capture, detach
from shared.desired import WantedDisk
from shared.host import durable
from tests.capture_parts import MIB, needs_capture, run, until
from tests.loopdisk import attached
from tests.protected_machine import Machine, identified_by_its_table, reattach, silent, table_of

pytestmark = needs_capture


def as_of_the_boot_before(machine: Machine) -> bytes:
    """The file, had it been written then."""
    [boot] = {line.seen.boot for line in machine.file.written if line.seen}
    return machine.file.path.read_bytes().replace(boot.encode(), b"the boot before")


def reboot(machine: Machine, capture: Capture, *files: Path) -> None:
    """These stand under the disks' names after it, and the file is lost."""
    capture.close()
    detach(machine.rig.pin_dir)
    for disk, file in zip(machine.rig.disks, files, strict=False):
        reattach(str(disk.path), file)
    machine.file.path.unlink()
    machine.restart()


def put_back(machine: Machine, content: bytes) -> None:
    machine.file.path.write_bytes(content)
    machine.restart()


def without_disks_of_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another test takes away just now does not say who it is."""
    everything, own = identify.all_disks, {disk.name for disk in machine.rig.disks}
    monkeypatch.setattr(
        identify, "all_disks", lambda **how: [disk for disk in everything(**how) if disk.name in own]
    )


def test_a_file_that_was_lost_at_a_reboot_and_is_put_back_gives_the_disks_their_ids_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reboot exchanged the kernel's names, by which the disks are configured."""
    r = machine.rig
    without_disks_of_others(machine, monkeypatch)
    one, other = (disk.name for disk in r.disks)
    first, _ = machine.protect()
    known = as_of_the_boot_before(machine)
    reboot(machine, first, r.backing[1], r.backing[0])
    exchanged, _ = machine.protect()
    assert machine.ids(exchanged) == {one: one, other: other}
    put_back(machine, known)
    for _ in range(2):
        found, left_out = machine.protect()
        assert (machine.ids(found), left_out) == ({one: other, other: one}, [])
        assert machine.file.put_back.trouble is None
        machine.restart()


@pytest.mark.parametrize("how", ["it was saved before the other was protected", "the other does not answer"])
def test_where_a_file_that_is_put_back_does_not_settle_all_the_captured_disks_go_on_and_it_is_kept(
    machine: Machine, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    one, other = (disk.name for disk in r.disks)
    both, alone = machine.wanted, machine.wanted[:1]
    machine.wanted = alone if how.startswith("it was saved") else both
    machine.protect()
    known = as_of_the_boot_before(machine)
    machine.wanted = both
    first, _ = machine.protect()
    reboot(machine, first, r.backing[1], r.backing[0])
    exchanged, _ = machine.protect()
    machine.changes.clear()
    put_back(machine, known)
    if how.startswith("it was saved"):
        found, left_out = machine.protect()
    else:
        with silent(r.device):
            found, left_out = machine.protect()
    assert (machine.ids(found), left_out, machine.changes) == (machine.ids(exchanged), [], [])
    assert "US647" in capsys.readouterr().out
    kept = machine.file.put_back.path
    assert kept.read_bytes() == known
    machine.restart()
    again, left_out = machine.protect()
    assert (machine.ids(again), left_out, machine.changes) == (machine.ids(exchanged), [], [])
    assert machine.file.put_back.trouble is not None, "it is there yet"
    for capture in (exchanged, found, again):
        capture.close()
    detach(r.pin_dir)  # as the event says
    kept.rename(machine.file.path)
    machine.restart()
    right, _ = machine.protect()
    assert machine.file.put_back.trouble is None
    assert machine.ids(right)[one] == other


def test_where_a_file_that_is_put_back_cannot_be_kept_it_is_not_written_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    machine.wanted = machine.wanted[:1]
    first, _ = machine.protect()
    known = as_of_the_boot_before(machine)
    reboot(machine, first, r.backing[1], r.backing[0])
    exchanged, _ = machine.protect()
    put_back(machine, known)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with silent(r.device), monkeypatch.context() as patch:
        patch.setattr(durable, "create_file", full)
        found, left_out = machine.protect()
    assert (machine.ids(found), left_out) == (machine.ids(exchanged), [])
    assert machine.file.path.read_bytes() == known
    assert machine.file.trouble is not None
    assert "could not be kept" in machine.file.trouble.cause
    assert machine.file.put_back.trouble is not None
    machine.file.write_again()
    assert machine.file.put_back.path.read_bytes() == known


def test_a_file_of_before_a_disk_was_replaced_costs_what_is_captured_nothing(machine: Machine) -> None:
    r = machine.rig
    machine.wanted = machine.wanted[:1]
    first, _ = machine.protect()
    known = as_of_the_boot_before(machine)
    replacement = r.folder / "replacement"
    replacement.write_bytes(bytes(4 * MIB))
    reboot(machine, first, replacement)
    captured, _ = machine.protect()
    put_back(machine, known)
    for _ in range(2):
        found, left_out = machine.protect()
        assert (machine.ids(found), left_out, machine.changes) == (machine.ids(captured), [], [])
        assert machine.file.put_back.trouble is not None
        machine.restart()


def test_that_the_table_of_a_file_that_is_put_back_stands_on_another_disk_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    for disk in r.disks:
        identified_by_its_table(str(disk.path), monkeypatch)
    machine.wanted = machine.wanted[:1]
    first, _ = machine.protect()
    known = as_of_the_boot_before(machine)
    reboot(machine, first, r.backing[1], r.backing[0])
    stranger, _ = machine.protect()
    put_back(machine, known)
    found, left_out = machine.protect()
    assert (machine.ids(found), left_out, machine.changes) == (machine.ids(stranger), [], [])
    assert machine.file.put_back.trouble is not None
    assert machine.file.put_back.path.read_bytes() == known


@pytest.mark.parametrize("is_numbered", [True, False])
@pytest.mark.parametrize("happens", ["a clone stands", "it is silent"])
def test_a_disk_that_came_back_while_the_file_could_not_be_written_goes_on_by_its_pin(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, happens: str, is_numbered: bool
) -> None:
    """An older agent captured it, or one that was killed before it pinned the line."""
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    link = r.folder / "data"
    link.symlink_to(r.device)
    machine.wanted = [WantedDisk(str(link)), machine.wanted[1]]
    machine.protect()
    stale = machine.file.path.read_bytes()
    reattach(r.device, r.backing[0])
    first, _ = machine.protect()
    machine.file.path.write_bytes(stale if is_numbered else stale.replace(b'"number"', b'"unknown"'))
    (r.pin_dir / "notes").unlink()
    machine.restart()
    machine.changes.clear()
    clone = r.folder / "clone"
    clone.write_bytes(r.backing[0].read_bytes())

    def goes_on() -> None:
        again, left_out = machine.protect()
        assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])
        machine.restart()

    bound = r.disks[0].name, table_of(r.device)
    with attached(clone):
        if happens == "it is silent":
            with silent(r.device):
                goes_on()
            assert bound in [(line.id, line.identity) for line in bindings.read(machine.state_dir) or []]
        goes_on()
    goes_on()
    [line] = [line for line in bindings.read(machine.state_dir) or [] if line.id == bound[0]]
    assert line.identity == bound[1]
    assert line.seen == bindings.Seen(line.seen.boot if line.seen else "", *which(first, bound[0]))


def which(capture: Capture, id_: str) -> bindings.Which:
    [disk] = [disk for disk in capture.disks if disk.id == id_]
    return disk.major << 20 | disk.minor, disk.diskseq


def after_a_reboot(machine: Machine, capture: Capture) -> None:
    capture.close()
    detach(machine.rig.pin_dir)


def while_it_is_captured(machine: Machine, capture: Capture) -> None:
    pass


@pytest.mark.parametrize("when", [after_a_reboot, while_it_is_captured])
def test_an_empty_drive_under_a_disks_old_name_does_not_keep_it_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, when: Callable[[Machine, Capture], None]
) -> None:
    r = machine.rig
    identified_by_its_table(r.device, monkeypatch)
    first, _ = machine.protect()
    when(machine, first)
    run("losetup", "--detach", r.device)
    until(lambda: not Path(f"/sys/block/{r.disks[0].name}/loop").exists(), "still attached")
    with attached(r.backing[0]) as elsewhere:
        again, left_out = machine.protect()
        assert left_out == []
        assert machine.ids(again) == machine.ids(first) | {r.disks[0].name: Path(elsewhere).name}
        again.close()
        detach(r.pin_dir)
