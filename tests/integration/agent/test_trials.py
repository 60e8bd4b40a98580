"""Disks on which nothing can be proved: what they cost, and that they are tried again."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from agent import attachment
from agent.capture import attach, calibrate
from agent.capture.disks import Disk
from agent.capture.fitting import Change
from agent.continuity.patience import FIRST_S
from shared.errors import (
    BpfError,
)
from tests.capture_parts import needs_capture, use_up_slots
from tests.protected_machine import Machine, finds, reattach, slots_with_pins

pytestmark = needs_capture


def fail_reads_of(devices: list[str], patch: pytest.MonkeyPatch) -> None:
    real = calibrate._Page.read_into

    def read_into(page: calibrate._Page, disk: Disk, sector: int) -> None:
        if str(disk.path) in devices:
            raise OSError(5, "Input/output error")
        real(page, disk, sector)

    patch.setattr(calibrate._Page, "read_into", read_into)


def test_a_disk_whose_writes_cannot_be_seen_does_not_cost_the_others_nor_is_tried_again_and_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    machine.protect()
    reattach(r.device, r.backing[0])
    monkeypatch.setattr("agent.capture.members.prove", lambda *_, **__: "a read did not pass the hooks")
    capture, (left,) = machine.protect()
    assert (left.error.code, left.error.cause) == ("US411", "a read did not pass the hooks")
    assert [disk.id for disk in capture.disks] == [r.disks[1].name]
    monkeypatch.setattr("agent.capture.attach.prove", lambda *_, **__: "a read did not pass the hooks")
    assert not finds(machine.watch([left]))
    assert not finds(machine.watch([left]), trying=True)
    assert machine.changes == [Change.LEFT]
    machine.protect()
    assert machine.changes == [Change.LEFT], "it ends the epoch of the others at every start"
    assert slots_with_pins(r) == {1}


def test_where_slots_are_used_up_a_disk_is_tried_out_before_the_others_lose_their_epoch_to_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    both = machine.wanted
    machine.wanted = both[:1]
    machine.protect()
    use_up_slots(r)
    machine.wanted = both
    with monkeypatch.context() as patch:
        fail_reads_of([str(r.disks[1].path)], patch)
        capture, (left,) = machine.protect()
        assert (left.error.code, left.needs_trial, machine.changes) == ("US411", True, [])
    r.write(0, b"x" * 4096)
    assert capture.counters(0).captured_sectors == 8
    with monkeypatch.context() as patch:  # it passes, and fails behind that
        patch.setattr(attach, "try_out", lambda *_, **__: "")
        fail_reads_of([str(disk.path) for disk in r.disks], patch)
        capture, (left,) = machine.protect()
        assert ([disk.id for disk in capture.disks], capture.mode) == ([r.disks[0].name], "ordered")


@pytest.mark.parametrize("as_trial", [True, False])
def test_a_disk_that_is_found_well_and_fails_in_the_fitting_ends_the_session_less_and_less_often(
    machine: Machine, as_trial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    later_s, clock = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + later_s)
    machine.protect()
    reattach(r.device, r.backing[0])

    def fail(*_: object) -> int:
        raise BpfError("no memory") if as_trial else OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("agent.capture.members.prepare", fail)
    kept = attachment.Kept()
    if not as_trial:
        kept.found = frozenset({r.disks[0].name})
    for wait_s in (FIRST_S, 2 * FIRST_S):
        capture, (left,) = machine.protect()
        assert (left.id, left.needs_trial, capture.mode) == (r.disks[0].name, as_trial, "ordered")
        watch = machine.watch([left])
        kept.count_failures(watch)
        later_s += wait_s - 30
        assert not finds(watch, trying=True)
        later_s += 31
        assert finds(watch, trying=True)
        kept.found = watch.found
    assert machine.changes == [Change.LEFT]


def test_a_disk_for_which_the_kernel_has_no_memory_costs_neither_the_others_nor_their_epoch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    both = machine.wanted
    machine.wanted = both[:1]
    machine.protect()
    machine.wanted = both
    real = attach._make_array

    def no_memory(name: str, words: int, flags: int, path: Path) -> None:
        if path.name.startswith("todo-"):
            raise BpfError("Map todo could not be made", cause="Cannot allocate memory", number=12)
        real(name, words, flags, path)

    with monkeypatch.context() as patch:
        patch.setattr(attach, "_make_array", no_memory)
        capture, (left,) = machine.protect()
        assert (left.id, left.error.code, left.needs_trial) == (r.disks[1].name, "US404", True)
        assert "Cannot allocate memory" in left.error.cause
        assert [disk.id for disk in capture.disks] == [r.disks[0].name]
        assert (machine.changes, slots_with_pins(r)) == ([], {0})
    capture, none = machine.protect()
    assert (len(capture.disks), none, machine.changes) == (2, [], [Change.JOINED])
    r.write(0, b"x" * 4096, disk=1)
    assert capture.counters(1).captured_sectors == 8


@pytest.mark.parametrize("bad", [0, 1])
def test_a_disk_on_which_nothing_can_be_proved_does_not_cost_the_others_their_order(
    machine: Machine, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    with monkeypatch.context() as patch:
        fail_reads_of([str(r.disks[bad].path)], patch)
        capture, (left,) = machine.protect()
        assert (left.id, left.error.code) == (r.disks[bad].name, "US411")
        assert "Input/output error" in left.error.cause
        assert [disk.id for disk in capture.disks] == [r.disks[1 - bad].name]
        assert (capture.mode, capture.mode_cause) == ("ordered", "")
        assert not finds(machine.watch([left]), trying=True)
    assert not finds(machine.watch([left])), (
        "to fit capture anew ends the session, in vain if it is not tried first"
    )
    assert finds(machine.watch([left]), trying=True)
    assert machine.changes == []
    capture, none = machine.protect()
    assert (len(capture.disks), none, capture.mode) == (2, [], "ordered")


def test_a_capture_without_order_is_tried_again_and_calibrated_when_it_can_be(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    with monkeypatch.context() as patch:
        fail_reads_of([str(disk.path) for disk in r.disks], patch)
        capture, left_out = machine.protect()
        assert (capture.mode, left_out) == ("bitmap", [])
        assert "Input/output error" in capture.mode_cause
        capture, _ = machine.protect()
        assert capture.mode == "bitmap"
        r.write(0, b"x" * 4096)
        loss = capture.loss_count()
        assert loss == 1
        assert not finds(machine.watch([], without_order=True), trying=True)
    assert finds(machine.watch([], without_order=True), trying=True)
    capture, _ = machine.protect()
    assert (capture.mode, capture.mode_cause, machine.changes) == ("ordered", "", [])
    content = bytes(range(256)) * 16
    r.write(4096, content)
    assert capture.loss_count() == loss
    window = capture.ring.peek(10)
    assert [bytes(row) for row in window.data[window.valid]] == [content]
