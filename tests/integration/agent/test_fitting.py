"""Fitting capture to its disks: kills, failures and removed pins at any moment, and what the next agent knows of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from agent import attachment
from agent.capture import answer, attach, layout, libbpf, pins
from agent.capture.answer import Answer
from agent.capture.calibrate import Calibration
from agent.capture.fitting import Change
from agent.capture.maps import Capture, detach
from agent.config import AgentConfig
from agent.continuity.patience import FIRST_S, Patience
from agent.stream.state import AgentState, Reason, Suspicion, Word
from shared import crashpoints
from shared.errors import (
    BpfError,
    DetachError,
)
from shared.recovery.position import Position
from tests.capture_parts import MIB, needs_capture, run, use_up_slots
from tests.epoch_ids import eid
from tests.protected_machine import Machine, agent_config, reattach, slots_with_pins

pytestmark = needs_capture

THERE = Suspicion(Position.of(7, 40), 123)
EVERYTHING = Suspicion(Position.of(0, 0), 1)


def captured_once(config: AgentConfig) -> Capture:
    """A capture that an agent left behind in an epoch, with all disks seen; closed, its pinned state can be read."""
    capture, _ = attachment.attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.were_all_there(THERE.after, THERE.since_ns)
    capture.close()
    return capture


def test_a_kill_while_disks_are_exchanged_leaves_what_the_next_attachment_puts_right(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    r = machine.rig
    machine.protect()
    reattach(r.device, r.backing[0])
    for place in ("leave", "enter"):
        with monkeypatch.context() as patch:
            patch.setattr(f"agent.capture.members.{place}", die)
            with pytest.raises(KilledError):
                machine.protect()
        assert machine.changes.pop() in (Change.RETURNED, Change.JOINED), "the epoch was not ended before"
    with monkeypatch.context() as patch:
        patch.setattr(attach, "track", die)  # the slot is made, but nothing is tracked
        with pytest.raises(KilledError):
            machine.protect()
    real = attach._make_array
    with monkeypatch.context() as patch:  # the slot is half made
        patch.setattr(attach, "_make_array", lambda *a: die() if a[3].name[:7] == "dirty-b" else real(*a))
        with pytest.raises(KilledError):
            machine.protect()
        assert slots_with_pins(r) > {pin.slot for pin in attach.read_pinned(r.pin_dir)}
    capture, left_out = machine.protect()
    assert (len(capture.disks), left_out) == (2, [])
    tracked = {pin.slot for pin in attach.read_pinned(r.pin_dir)}
    assert slots_with_pins(r) == tracked
    assert pins.exist(r.pin_dir)


@pytest.mark.parametrize(
    "removed",
    [["link-us_rq_issue"], ["todo-01"], ["tracked"], ["state", "link-us_rq_complete"]],
)
def test_what_is_pinned_and_not_whole_is_attached_afresh_in_a_new_epoch(
    machine: Machine, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    config = agent_config(machine)
    captured_once(config)
    for name in removed:
        (r.pin_dir / name).unlink()
    r.write(0, b"u" * 4096)
    again, watch = attachment.attach(config)
    state = AgentState(again.state)
    assert (state[Word.EPOCH], state.reason) == (0, Reason.CAPTURE_REMOVED)
    assert state.suspicion == (EVERYTHING if "state" in removed else THERE)
    assert (len(again.disks), watch.left_out) == (2, ())
    r.write(0, b"x" * 4096)
    assert again.counters(0).seen_sectors == 8
    again.close()
    said = capsys.readouterr().out
    assert "capture is not whole" in said
    assert ", ".join(removed[:1]) in said


def test_a_capture_that_vanished_under_the_agent_leaves_its_points_suspect(machine: Machine) -> None:
    config = agent_config(machine)
    capture = captured_once(config)
    detach(machine.rig.pin_dir)
    again, _ = attachment.attach(config, capture.state)
    found = AgentState(again.state)
    again.close()
    assert (found.reason, found.suspicion) == (Reason.CAPTURE_REMOVED, THERE)


def test_a_capture_with_the_short_memory_of_an_older_agent_gets_a_full_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(agent_config(machine), ring_mib=32)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "state_words", lambda ring_b: layout.LEAST_STATE_WORDS)
        capture, _ = attachment.attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.cut(9, b"d" * 16, 90)
    capture.close()

    def die(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(attachment, "move", die)
        with pytest.raises(InterruptedError):
            attachment.attach(config)
    assert len(attach.state_words(config.pin_dir)) == layout.LEAST_STATE_WORDS
    again, _ = attachment.attach(config)
    state = AgentState(again.state)
    again.close()
    assert len(again.state) == 96 + (32 << 20) // layout.RECORD_SIZE
    assert (again.fresh, state.epoch, state[Word.LAST_CUT]) == (False, eid(7), 9)
    assert state.is_ours(9, b"d" * 16, 90)


ATTACH_AND_DIE = """
import msgspec, sys
from agent import attachment
from agent.config import AgentConfig
attachment.attach(msgspec.json.decode(sys.argv[1], type=AgentConfig, dec_hook=lambda kind, value: kind(value)))
"""


def attach_and_die(config: AgentConfig, at: str) -> None:
    command = [sys.executable, "-c", ATTACH_AND_DIE, msgspec.json.encode(config, enc_hook=str).decode()]
    environment = os.environ | {"UNDERSTUDY_CRASH_AT": at}
    killed = subprocess.run(command, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL


def lose_a_part(machine: Machine, config: AgentConfig, *removed: str) -> AgentState:
    """Somebody removes pins of a capture whose epoch went on; the state as it was."""
    state = AgentState(captured_once(config).state)
    for name in removed:
        (machine.rig.pin_dir / name).unlink()
    machine.rig.write(0, b"u" * 4096)
    return state


def wanted_after(config: AgentConfig) -> tuple[int, Reason, Suspicion | None]:
    """The epoch that goes on, why the next is wanted, and which points are suspect, as the next agent has it."""
    capture, _ = attachment.attach(config)
    state = AgentState(capture.state)
    capture.close()
    return state[Word.EPOCH], state.reason, state.suspicion


@pytest.mark.parametrize(
    ("at", "removed", "suspicion"),
    [
        *((at, "link-us_rq_issue", THERE) for at in crashpoints.ATTACH_POINTS),
        # it is kept in one that is made for it: from there on all is the same
        ("attach.after-want", "state", EVERYTHING),
        ("attach.after-keep", "state", EVERYTHING),
    ],
)
def test_wherever_an_attachment_is_killed_the_next_agent_knows_which_points_are_suspect(
    machine: Machine, at: str, removed: str, suspicion: Suspicion
) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config, removed)
    attach_and_die(config, at)
    assert wanted_after(config) == (0, Reason.CAPTURE_REMOVED, suspicion)
    assert not pins.former(machine.rig.pin_dir).exists()


def test_an_attachment_that_fails_twice_leaves_why_the_next_epoch_begins_to_the_next_agent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config)
    for disk, file in zip(machine.rig.disks, machine.rig.backing, strict=True):
        reattach(str(disk.path), file)

    def fail(*_: object) -> Calibration:
        raise BpfError("Calibration failed", cause="out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(attach, "calibrate", fail)
        for _ in range(2):
            with pytest.raises(BpfError, match="out of memory"):
                attachment.attach(config)
    assert wanted_after(config) == (0, Reason.DISK_RETURNED, THERE)


def test_a_change_that_makes_no_point_suspect_makes_none_suspect_when_its_attachment_fails(
    machine: Machine,
) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config)
    for disk, file in zip(machine.rig.disks, machine.rig.backing, strict=True):
        with file.open("r+b") as grown:
            grown.truncate(8 * MIB)
        run("losetup", "--set-capacity", str(disk.path))
    attach_and_die(config, "attach.after-detach")
    assert wanted_after(config) == (0, Reason.DISK_RESIZED, None)
    assert AgentState(attach.state_words(config.pin_dir))[Word.SEEN_EPOCH] == 7


def test_a_link_that_another_tool_holds_open_costs_no_suspicion(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = agent_config(machine)
    monkeypatch.setattr(pins, "_GONE_WITHIN_S", 0.0)
    lose_a_part(machine, config, "link-us_rq_issue")
    held = libbpf.get(machine.rig.pin_dir / "link-us_rq_complete")
    try:
        with pytest.raises(DetachError, match="still attached"):
            attachment.attach(config)
    finally:
        os.close(held)
    assert wanted_after(config) == (0, Reason.CAPTURE_REMOVED, THERE)


def test_suspicion_outlives_a_failed_attachment_where_every_pin_was_removed_and_memory_alone_had_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = agent_config(machine)
    former = lose_a_part(machine, config)
    detach(machine.rig.pin_dir)

    def fail(*_: object) -> Calibration:
        raise BpfError("Calibration failed", cause="out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(attach, "calibrate", fail)
        with pytest.raises(BpfError, match="out of memory"):
            attachment.attach(config, former._words)
    assert wanted_after(config) == (0, Reason.CAPTURE_REMOVED, THERE)


@pytest.mark.parametrize("at", ["attach.after-detach", "attach.after-publish"])
def test_a_first_attachment_that_is_killed_makes_nothing_suspect(machine: Machine, at: str) -> None:
    config = agent_config(machine)
    attach_and_die(config, at)
    assert not pins.former(machine.rig.pin_dir).exists()
    assert wanted_after(config) == (0, Reason.INITIAL, None)


def test_a_detachment_removes_also_what_an_attachment_that_was_killed_left(machine: Machine) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config, "link-us_rq_issue")
    attach_and_die(config, "attach.after-detach")
    assert pins.former(machine.rig.pin_dir).exists()
    detach(machine.rig.pin_dir)
    assert not pins.former(machine.rig.pin_dir).exists()
    assert wanted_after(config) == (0, Reason.INITIAL, None)


KILL_IN_DETACH = """
import os, signal, sys
from pathlib import Path
from agent.capture import pins
count = int(sys.argv[2])
def counted(real):
    def call(self, *arguments):
        global count
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        count -= 1
        return real(self, *arguments)
    return call
for name in ("unlink", "rename", "rmdir"):
    setattr(Path, name, counted(getattr(Path, name)))
pins.detach(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("point", [0, 1, 4, 9, 14])
def test_a_detachment_that_is_killed_anywhere_leaves_a_whole_capture_or_none(
    machine: Machine, point: int
) -> None:
    r = machine.rig
    capture, _ = machine.protect()
    capture.close()
    killed = subprocess.run([sys.executable, "-c", KILL_IN_DETACH, str(r.pin_dir), str(point)], check=False)
    assert killed.returncode == -signal.SIGKILL
    again, _ = machine.protect()
    assert (again.fresh, machine.changes) == (point > 0, [])
    r.write(0, b"x" * 4096)
    assert again.counters(0).seen_sectors == 8
    assert not pins.staging(r.pin_dir).exists()


@pytest.mark.parametrize("both", [True, False])
def test_the_agent_wants_a_new_epoch_and_says_which_points_are_suspect(machine: Machine, both: bool) -> None:
    r = machine.rig
    config = agent_config(machine)
    capture = captured_once(config)
    AgentState(capture.state)[Word.SETTLED] = 1
    for disk, file in zip(r.disks[: 2 if both else 1], r.backing, strict=False):
        reattach(str(disk.path), file)
    again, watch = attachment.attach(config)
    state = AgentState(again.state)
    again.close()
    assert again.fresh is False
    assert (state[Word.EPOCH], state.reason, state.suspicion) == (0, Reason.DISK_RETURNED, THERE)
    assert state[Word.SETTLED] == 0
    assert watch.left_out == ()


def test_a_disk_that_was_given_up_before_a_restart_is_left_out_at_once_unless_it_answers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = agent_config(machine)
    now = time.monotonic()
    disk, device = machine.rig.disks[1].name, str(machine.rig.disks[1].path)

    def start() -> tuple[list[str], Patience]:
        capture, _ = attachment.attach(config)
        capture.close()
        return [disk.id for disk in capture.disks], Patience(AgentState(capture.state).patience_words)

    both, patience = start()
    patience.give_up([disk], now)
    captured, patience = start()
    assert (captured, patience.is_given_up(disk), patience.wait_s(disk, now)) == (both, False, 2 * FIRST_S)
    patience.give_up([disk], now)
    silent, ask = Answer(cause="it did not answer", hangs=True), answer.ask
    with monkeypatch.context() as patch:
        patch.setattr(answer, "ask", lambda them: ask(them) | {it: silent for it in them if it == device})
        captured, patience = start()
    assert (captured, patience.is_given_up(disk)) == ([machine.rig.disks[0].name], True)
    use_up_slots(machine.rig)
    captured, patience = start()  # everything is attached afresh
    assert (captured, patience.is_given_up(disk), patience.wait_s(disk, now)) == (both, False, 4 * FIRST_S)
