"""Which disk is which, on real loop devices: disks that go, come back elsewhere, are replaced or ill, beside one that is well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from agent import service
from agent.capture import answer, attach, bindings, calibrate, identify, layout, libbpf, pins
from agent.capture.answer import Answer, ask
from agent.capture.binding import Identity, Kind
from agent.capture.bindings import Wanted
from agent.capture.calibrate import Calibration
from agent.capture.disks import Disk, find_disk
from agent.capture.fitting import Change
from agent.capture.look import LeftOut, standing_now
from agent.capture.maps import Capture, detach
from agent.capture.protection import protect
from agent.capture.watch import Watch
from agent.config import AgentConfig
from agent.stream.state import AgentState, Reason, Suspicion, Word
from shared import crashpoints
from shared.errors import (
    BindingDamagedError,
    BpfError,
    DetachError,
    NoUsableDiskError,
    StateFileError,
    UsageError,
)
from shared.recovery.position import Position
from shared.tls import TlsFiles
from tests.capture_parts import MIB, Rig, needs_capture, rig, run, until
from tests.epoch_ids import eid
from tests.failing_disks import full_disk
from tests.loopdisk import attached, own_device

pytestmark = needs_capture


class Machine:
    """Two files under two loop devices, protected by path alone."""

    def __init__(self, r: Rig, undo: ExitStack) -> None:
        self.rig = r
        self.undo = undo
        self.state_dir = r.folder / "state"
        self.state_dir.mkdir()
        self.wanted = [Wanted(str(disk.path)) for disk in r.disks]
        self.changes: list[Change] = []

    def protect(self) -> tuple[Capture, list[LeftOut]]:
        capture, left_out = protect(self.wanted, self.state_dir, self.rig.pin_dir, 1 << 22, self._changed)
        self.undo.callback(capture.close)
        return capture, left_out

    def _changed(self, words: npt.NDArray[np.uint64], change: Change) -> None:
        if change is Change.FRESH:
            return
        words[1] = 0  # the epoch
        self.changes.append(change)

    def ids(self, capture: Capture) -> dict[str, str]:
        return {disk.id: disk.name for disk in capture.disks}

    def watch(self, left_out: list[LeftOut], *, without_order: bool = False) -> Watch:
        made = Watch(self.wanted, self.state_dir, self.rig.pin_dir, left_out, without_order=without_order)
        made._next = 0.0
        return made


@pytest.fixture
def machine() -> Iterator[Machine]:
    with rig(4 * MIB, count=0, attached=False) as r, ExitStack() as undo:
        for number in range(2):
            file = r.folder / f"disk-{number}"
            file.write_bytes(bytes(4 * MIB))
            device = undo.enter_context(own_device())
            run("losetup", device, str(file))
            r.backing = [*r.backing, file]
            r.disks = [*r.disks, find_disk(Path(device))]
        undo.callback(lambda: detach(r.pin_dir))
        yield Machine(r, undo)


def agent_config(machine: Machine) -> AgentConfig:
    files = TlsFiles(cert=Path("c"), key=Path("k"), ca=Path("a"))
    return AgentConfig(
        machine="m", disks=[disk.device for disk in machine.wanted], process_server="ps:9443", control_url="https://cs",
        tls=files, state_dir=machine.state_dir, pin_dir=machine.rig.pin_dir, ring_mib=1,
    )  # fmt: skip


def reattach(device: str, file: Path, *options: str) -> None:
    """Another file, or the same one again, under this very device."""
    subprocess.run(["losetup", "--detach", device], check=False, stderr=subprocess.DEVNULL)
    until(lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists(), f"{device} stays in use")
    run("losetup", *options, device, str(file))


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
    machine.wanted = [Wanted("/dev/no-such-disk"), *machine.wanted[1:]]
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


@pytest.mark.parametrize("hangs", [True, False])
def test_a_disk_that_does_not_answer_leaves_the_other_protected(
    machine: Machine, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = machine.rig
    sick = Answer(cause="reads of it fail: Input/output error", hangs=hangs)
    real = ask

    def some(devices: list[str]) -> dict[str, Answer]:
        return real(devices) | {device: sick for device in devices if device == r.device}

    monkeypatch.setattr(answer, "ask", some)
    capture, (left,) = machine.protect()
    assert (left.id, left.error.cause) == (r.disks[0].name, sick.cause)
    assert [disk.id for disk in capture.disks] == [r.disks[1].name]


def test_without_any_disk_nothing_is_attached_and_each_cause_is_named(machine: Machine) -> None:
    machine.wanted = [Wanted("/dev/no-such-a"), Wanted("/dev/no-such-b")]
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
    with pytest.raises(BindingDamagedError, match=r"disks\.json could not be read"):
        machine.protect()
    file.unlink()
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
        disk.heal()
        watch._search(is_try=False)
        assert watch._found
        whole, none = machine.protect()
        assert (len(whole.disks), none) == (2, [])


def test_where_no_disk_can_be_written_down_nothing_is_attached(machine: Machine) -> None:
    with full_disk() as disk:
        machine.state_dir = disk.where
        disk.fail()
        with pytest.raises(StateFileError, match="could not be noted"):
            machine.protect()
        assert not pins.exist(machine.rig.pin_dir)


def test_ids_and_identities_of_the_configuration_bind(machine: Machine) -> None:
    r = machine.rig
    identity = str(standing_now(r.device).identities[0])
    assert identity.startswith("loop:")
    # the path is wrong: what counts is the identity
    machine.wanted = [Wanted("/dev/no-such-disk", "data", identity)]
    capture, _ = machine.protect()
    assert machine.ids(capture) == {"data": r.disks[0].name}


def test_a_partition_table_identifies_what_has_nothing_else(machine: Machine) -> None:
    r = machine.rig
    subprocess.run(
        ["sfdisk", "-q", r.device], input="label: gpt\n", text=True, check=True, stderr=subprocess.DEVNULL
    )
    kinds = [identity.kind for identity in standing_now(r.device).identities]
    assert kinds == [Kind.LOOP, Kind.GPT, Kind.NAME]


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


def finds(watch: Watch, *, trying: bool = False) -> bool:
    """Whether one look finds that capture can be fitted better."""
    watch._next_try = 0.0 if trying else float("inf")
    watch.is_one_back()
    assert watch._thread is not None
    watch._thread.join()
    return watch.is_one_back()


def slots_with_pins(r: Rig) -> set[int]:
    return {int(path.name[-2:]) for path in r.pin_dir.iterdir() if path.name[-2:].isdigit()}


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


def fail_reads_of(devices: list[str], patch: pytest.MonkeyPatch) -> None:
    real = calibrate._Page.read_into

    def read_into(page: calibrate._Page, device: Path, sector: int) -> None:
        if str(device) in devices:
            raise OSError(5, "Input/output error")
        real(page, device, sector)

    patch.setattr(calibrate._Page, "read_into", read_into)


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


@pytest.mark.parametrize("hangs", [True, False])
def test_a_captured_disk_that_does_not_answer_at_a_start_stays_captured_and_bound(
    machine: Machine, hangs: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    table = "label: gpt\n"
    subprocess.run(["sfdisk", "-q", r.device], input=table, text=True, check=True, stderr=subprocess.DEVNULL)
    bare = identify.identities

    def without_loop(disk: Disk, told: Answer = answer.NOTHING) -> tuple[Identity, ...]:
        return tuple(found for found in bare(disk, told) if found.kind is not Kind.LOOP)

    monkeypatch.setattr(identify, "identities", without_loop)
    machine.protect()
    before = bindings.read(machine.state_dir) or []
    assert before[0].identity.startswith("gpt:")
    sick = Answer(cause="it did not answer within 10 s", hangs=hangs)
    real = ask

    def some(devices: list[str]) -> dict[str, Answer]:
        return real(devices) | {device: sick for device in devices if device == r.device}

    monkeypatch.setattr(answer, "ask", some)
    again, left_out = machine.protect()
    assert (len(again.disks), left_out, machine.changes) == (2, [], [])
    assert bindings.read(machine.state_dir) == before
    assert "a captured disk cannot be read" in capsys.readouterr().out


def test_too_many_disks_are_refused_before_anything_of_those_that_are_captured_is_touched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = machine.wanted
    machine.wanted = both[:1]
    machine.protect()
    machine.wanted = [*both, *(Wanted(f"/dev/no-such-{number}") for number in range(63))]
    with pytest.raises(UsageError, match="65 disks cannot be protected"):
        machine.protect()
    assert len(attach.read_pinned(machine.rig.pin_dir)) == 1
    assert machine.changes == []


@pytest.mark.parametrize(
    "removed",
    [["link-us_rq_issue"], ["todo-01"], ["dirty-a-00"], ["tracked"], ["state", "link-us_rq_complete"]],
)
def test_what_is_pinned_and_not_whole_is_attached_afresh_in_a_new_epoch(
    machine: Machine, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    r = machine.rig
    config = agent_config(machine)
    capture, _ = service._attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.were_all_there(THERE.after, THERE.since_ns)
    capture.close()
    for name in removed:
        (r.pin_dir / name).unlink()
    r.write(0, b"u" * 4096)
    again, watch = service._attach(config)
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
    capture, _ = service._attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.were_all_there(THERE.after, THERE.since_ns)
    capture.close()
    detach(machine.rig.pin_dir)
    again, _ = service._attach(config, capture.state)
    found = AgentState(again.state)
    again.close()
    assert (found.reason, found.suspicion) == (Reason.CAPTURE_REMOVED, THERE)


def test_a_capture_with_the_short_memory_of_an_older_agent_gets_a_full_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(agent_config(machine), ring_mib=32)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "state_words", lambda ring_b: layout.LEAST_STATE_WORDS)
        capture, _ = service._attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.cut(9, b"d" * 16, 90)
    capture.close()

    def die(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(service, "move", die)
        with pytest.raises(InterruptedError):
            service._attach(config)
    assert len(attach.state_words(config.pin_dir)) == layout.LEAST_STATE_WORDS
    again, _ = service._attach(config)
    state = AgentState(again.state)
    again.close()
    assert len(again.state) == 64 + (32 << 20) // layout.RECORD_SIZE
    assert (again.fresh, state.epoch, state[Word.LAST_CUT]) == (False, eid(7), 9)
    assert state.is_ours(9, b"d" * 16, 90)


THERE = Suspicion(Position.of(7, 40), 123)
EVERYTHING = Suspicion(Position.of(0, 0), 1)
ATTACH_AND_DIE = """
import msgspec, sys
from agent import service
from agent.config import AgentConfig
service._attach(msgspec.json.decode(sys.argv[1], type=AgentConfig, dec_hook=lambda kind, value: kind(value)))
"""


def attach_and_die(config: AgentConfig, at: str) -> None:
    command = [sys.executable, "-c", ATTACH_AND_DIE, msgspec.json.encode(config, enc_hook=str).decode()]
    environment = os.environ | {"UNDERSTUDY_CRASH_AT": at}
    killed = subprocess.run(command, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL


def lose_a_part(machine: Machine, config: AgentConfig, *removed: str) -> AgentState:
    """Somebody removes pins of a capture whose epoch went on; the state as it was."""
    capture, _ = service._attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.were_all_there(THERE.after, THERE.since_ns)
    capture.close()
    for name in removed:
        (machine.rig.pin_dir / name).unlink()
    machine.rig.write(0, b"u" * 4096)
    return state


def wanted_after(config: AgentConfig) -> tuple[int, Reason, Suspicion | None]:
    """The epoch that goes on, why the next is wanted, and which points are suspect, as the next agent has it."""
    capture, _ = service._attach(config)
    state = AgentState(capture.state)
    capture.close()
    return state[Word.EPOCH], state.reason, state.suspicion


@pytest.mark.parametrize("at", crashpoints.ATTACH_POINTS)
@pytest.mark.parametrize(("removed", "suspicion"), [("link-us_rq_issue", THERE), ("state", EVERYTHING)])
def test_wherever_an_attachment_is_killed_the_next_agent_knows_which_points_are_suspect(
    machine: Machine, at: str, removed: str, suspicion: Suspicion
) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config, removed)
    attach_and_die(config, at)
    assert wanted_after(config) == (0, Reason.CAPTURE_REMOVED, suspicion)
    assert not pins.former(machine.rig.pin_dir).exists()


@pytest.mark.parametrize("times", [1, 2])
def test_an_attachment_that_fails_leaves_why_the_next_epoch_begins_to_the_next_agent(
    machine: Machine, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = agent_config(machine)
    lose_a_part(machine, config)
    for disk, file in zip(machine.rig.disks, machine.rig.backing, strict=True):
        reattach(str(disk.path), file)

    def fail(*_: object) -> Calibration:
        raise BpfError("Calibration failed", cause="out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(attach, "calibrate", fail)
        for _ in range(times):
            with pytest.raises(BpfError, match="out of memory"):
                service._attach(config)
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
            service._attach(config)
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
            service._attach(config, former._words)
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
    capture, _ = service._attach(config)
    state = AgentState(capture.state)
    state.begin_epoch(eid(7))
    state.were_all_there(THERE.after, THERE.since_ns)
    state[Word.SETTLED] = 1
    capture.close()
    for disk, file in zip(r.disks[: 2 if both else 1], r.backing, strict=False):
        reattach(str(disk.path), file)
    again, watch = service._attach(config)
    state = AgentState(again.state)
    again.close()
    assert again.fresh is False
    assert (state[Word.EPOCH], state.reason, state.suspicion) == (0, Reason.DISK_RETURNED, THERE)
    assert state[Word.SETTLED] == 0
    assert watch.left_out == ()


# -- does it answer? ---------------------------------------------------------------------------------------


def test_a_disk_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = tmp_path / "never.py"
    never.write_text("import signal; signal.pause()")
    monkeypatch.setattr(answer, "PROGRAM", str(never))
    monkeypatch.setattr(answer, "_given_up", {})
    told = ask(["/dev/null"], deadline_s=0.2)["/dev/null"]
    assert told.hangs
    assert "did not answer within" in told.cause
    (child,) = answer._given_up.values()
    until(lambda: child.poll() is not None, "the child stays though its disk lets it go")


def test_a_disk_that_hangs_is_asked_by_one_child_and_asked_again_when_that_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "_given_up", {})
    begun = tmp_path / "begun"
    never = tmp_path / "never.py"
    never.write_text(f"import signal; open({str(begun)!r}, 'a').write('x'); signal.pause()")
    real = answer.PROGRAM
    monkeypatch.setattr(answer, "PROGRAM", str(never))
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda child: None)  # as of one that hangs in the kernel
    for _ in range(3):
        told = ask(["/dev/null"], deadline_s=1.0)["/dev/null"]
        assert told.hangs
    assert begun.read_text() == "x"
    (child,) = answer._given_up.values()
    kill(child)
    child.wait()
    monkeypatch.setattr(answer, "PROGRAM", real)
    assert not ask(["/dev/null"])["/dev/null"].hangs


def test_a_device_that_cannot_be_read_says_why() -> None:
    told = ask(["/dev/no-such-disk"])["/dev/no-such-disk"]
    assert (told.hangs, told.head) == (False, b"")
    assert "No such file or directory" in told.cause
