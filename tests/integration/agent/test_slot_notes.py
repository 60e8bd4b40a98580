"""What is pinned beside a capture, when its bytes are not what an agent writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.capture import attach, layout, libbpf
from agent.capture.attach import key_bytes
from agent.capture.bindings import read
from shared.errors import PinnedElsewhereError
from tests.capture_parts import needs_capture
from tests.protected_machine import Machine

pytestmark = needs_capture


def put(pin: Path, slot: int, value: bytes, value_b: int) -> None:
    fd = libbpf.get(pin)
    try:
        libbpf.update(fd, key_bytes(slot), value.ljust(value_b, b"\0"))
    finally:
        os.close(fd)


@pytest.mark.parametrize("text", [b"\xff\xfe\x80", b"../../etc/x y", b".hidden", b"a/b", b"a\0b"])
def test_what_is_no_id_is_told_once_ignored_and_written_anew(
    machine: Machine, text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    first, _ = machine.protect()
    before = read(machine.state_dir)
    for lost in (False, True):
        put(r.pin_dir / "ids", 0, text, layout.ID_B)
        assert attach.read_pinned(r.pin_dir)[0].id == ""
        if lost:
            machine.file.path.unlink()
        machine.restart()
        capsys.readouterr()
        for said in ("US645", ""):
            again, left_out = machine.protect()
            assert (machine.ids(again), left_out, machine.changes) == (machine.ids(first), [], [])
            assert ("US645" in capsys.readouterr().out) == bool(said)
        assert {line.id for line in read(machine.state_dir) or []} == {line.id for line in before or []}
        assert [pin.id for pin in attach.read_pinned(r.pin_dir)] == [*machine.ids(first)]


def test_an_id_that_two_slots_have_is_of_neither(machine: Machine) -> None:
    machine.protect()
    put(machine.rig.pin_dir / "ids", 1, machine.rig.disks[0].name.encode(), layout.ID_B)
    assert [(pin.id, pin.is_damaged) for pin in attach.read_pinned(machine.rig.pin_dir)] == [("", True)] * 2


def test_a_line_that_is_none_costs_nothing_but_itself(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = machine.protect()
    for bytes_ in (b"{", b"\xff", b'{"id":"..","device":"","identity":""}'):
        put(machine.rig.pin_dir / "notes", 0, bytes_, layout.NOTE_B)
        machine.file.path.unlink()
        machine.restart()
        capsys.readouterr()
        again, _ = machine.protect()
        assert (machine.ids(again), machine.changes) == (machine.ids(first), [])
        assert "US645" in capsys.readouterr().out


def test_an_older_agent_that_gave_a_disk_another_id_and_knows_no_lines_has_damaged_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = machine.protect()
    put(machine.rig.pin_dir / "ids", 0, b"another", layout.ID_B)
    machine.restart()
    capsys.readouterr()
    again, _ = machine.protect()
    assert (machine.ids(again), machine.changes) == (machine.ids(first), [])
    assert "US645" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ids", "notes", "server", "unreadable"])
@pytest.mark.parametrize("value_b", [4, 64, 8192])
def test_what_another_version_pinned_with_another_shape_is_made_anew(
    machine: Machine, name: str, value_b: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = machine.protect()
    pin = machine.rig.pin_dir / name
    pin.unlink()
    fd = libbpf.create_array(name, value_b, layout.MAX_DISKS, 0)
    libbpf.pin(fd, pin)
    os.close(fd)
    machine.restart()
    for said in (True, False):
        again, _ = machine.protect()
        assert (machine.ids(again), machine.changes) == (machine.ids(first), [])
        assert ("US645" in capsys.readouterr().out) == said


@pytest.mark.parametrize("name", ["tracked", "open", "dirty", "counters", "ring", "state", "control"])
def test_a_map_of_another_shape_is_never_looked_into(machine: Machine, name: str) -> None:
    machine.protect()
    pin = machine.rig.pin_dir / name
    pin.unlink()
    fd = libbpf.create_array("other", 4096, 7, 0)
    libbpf.pin(fd, pin)
    os.close(fd)
    with pytest.raises(PinnedElsewhereError, match="another version"):
        attach.read_pinned(machine.rig.pin_dir)
