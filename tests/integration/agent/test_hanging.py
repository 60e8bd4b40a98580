"""A disk that hangs costs itself, and a deadline: at the look, behind it, and while the agent runs."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.capture import answer, audit, bindings
from agent.capture.answer import Answer, HangsError
from agent.capture.bindings import BindingsFile
from agent.capture.disks import UNKNOWN, find_disk, size_of
from agent.capture.fitting import Change
from agent.capture.look import LeftOut, Refusing
from agent.capture.maps import Capture, detach
from agent.capture.protection import protect
from agent.capture.watch import Watch
from agent.continuity import hanging
from agent.continuity.auditor import Continuity
from agent.stream.state import AgentState, Word
from agent.stream.unreadable import Unreadable
from shared.desired import WantedDisk
from shared.errors import TooMuchUnreadableError
from tests.capture_parts import MIB, Rig, needs_capture, rig, until, use_up_slots
from tests.epoch_ids import eid
from tests.protected_machine import finds, reattach
from tests.sick_disk import SickDisk, sick_disk

pytestmark = needs_capture

ELSEWHERE = "loop:7:1234567890 /gone"


class Machine:
    """A disk that is well, and one that may be told to hang."""

    def __init__(self, r: Rig, sick: SickDisk, undo: ExitStack) -> None:
        self.rig, self.sick, self.undo = r, sick, undo
        self.well = str(r.disks[0].path)
        self.wanted = [WantedDisk(self.well), WantedDisk(sick.device)]
        self.changes: list[Change] = []

    def protect(
        self, *given_up: str, refusing: Mapping[str, Refusing] = MappingProxyType({})
    ) -> tuple[list[str], list[LeftOut]]:
        def changed(words: np.ndarray, change: Change) -> None:
            self.changes.append(change)

        where = self.wanted, BindingsFile(self.rig.folder), self.rig.pin_dir
        capture, left_out, _ = protect(*where, 1 << 22, changed, given_up=given_up, refusing=refusing)
        self.undo.callback(capture.close)
        self.capture: Capture = capture
        return [str(disk.path) for disk in capture.disks], left_out

    def watch(self, left_out: Sequence[LeftOut]) -> Watch:
        """One that looks at once."""
        watch = Watch(self.wanted, BindingsFile(self.rig.folder), self.rig.pin_dir, left_out)
        watch._next = 0.0
        return watch

    def children_end(self) -> None:
        """Those that hung with the disk."""
        for child in answer._given_up.values():
            child.wait()


def despair(sick: SickDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines, which are long enough for all that answers on a busy host, are over at once for what stands still with the disk."""
    real = answer._Lines.hear

    def hear(lines: answer._Lines, deadline_s: float) -> str:
        end, seen = time.monotonic() + deadline_s, [0, 0, 0]
        while True:
            try:
                return real(lines, min(0.02, max(0.0, end - time.monotonic())))
            except HangsError:
                seen = [*seen[1:], sick.stops(lines._child)]
                if (seen[0] and len({*seen}) == 1) or time.monotonic() > end:
                    raise HangsError(f"it did not answer within {deadline_s:g} s") from None

    monkeypatch.setattr(answer._Lines, "hear", hear)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    with (
        rig(4 * MIB, attached=False) as r,
        sick_disk(r.folder / "sick", 4 * MIB) as sick,
        ExitStack() as undo,
    ):
        undo.callback(lambda: detach(r.pin_dir))
        undo.callback(sick.well)
        despair(sick, monkeypatch)
        yield Machine(r, sick, undo)


def hang_when_asked(sick: SickDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the question, and nothing behind it."""
    real = answer.ask

    def ask(devices: list[str]) -> dict[str, Answer]:
        answers = real(devices)
        if sick.device in devices:
            sick.hang()
        return answers

    monkeypatch.setattr(answer, "ask", ask)


def test_a_disk_that_hangs_behind_the_question_is_left_out_of_a_first_attachment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang_when_asked(machine.sick, monkeypatch)
    captured, (left,) = machine.protect()
    assert captured == [machine.well]
    assert "hangs: it did not answer" in left.error.cause
    assert machine.capture.mode == "ordered"


def test_a_disk_that_hangs_behind_the_question_does_not_join_and_costs_the_others_no_epoch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, machine.wanted = machine.wanted, machine.wanted[:1]
    machine.protect()
    machine.wanted, machine.changes = both, []
    hang_when_asked(machine.sick, monkeypatch)
    captured, (left,) = machine.protect()
    assert (captured, machine.changes) == ([machine.well], [])
    assert "hangs: it did not answer" in left.error.cause


def test_a_captured_disk_that_hangs_at_a_start_stays_captured_though_even_sysfs_hangs(
    machine: Machine,
) -> None:
    machine.protect()
    machine.changes = []
    machine.sick.hang()
    machine.sick.occupy()
    captured, left_out = machine.protect()
    assert (captured, left_out, machine.changes) == ([machine.well, machine.sick.device], [], [])


def test_a_disk_that_hangs_and_was_never_captured_is_left_out_as_one_that_hangs(machine: Machine) -> None:
    machine.sick.hang()
    captured, (left,) = machine.protect()
    assert captured == [machine.well]
    assert (left.error.code, left.error.cause) == ("US404", "it did not answer within 10 s")


def test_one_that_hangs_takes_no_time_from_others_that_are_asked_with_it(machine: Machine) -> None:
    machine.sick.hang()
    told = answer.ask([machine.sick.device, machine.well])
    assert (told[machine.sick.device].hangs, told[machine.well].cause) == (True, "")


def test_a_disk_of_the_host_that_hangs_and_is_not_protected_holds_up_nobody(machine: Machine) -> None:
    machine.wanted = [WantedDisk(machine.well), WantedDisk("/dev/loop-of-another-number", identity=ELSEWHERE)]
    machine.sick.hang()  # it is asked, for it may be the one that is not under its path
    captured, (left,) = machine.protect()
    assert captured == [machine.well]
    assert "no disk of this machine bears its identity" in left.error.cause


def test_a_bound_disk_that_hangs_is_not_taken_for_another_and_is_itself_when_it_answers(
    machine: Machine,
) -> None:
    machine.protect()
    bound = bindings.read(machine.rig.folder)
    machine.capture.close()
    detach(machine.rig.pin_dir)
    machine.sick.hang()
    _, (left,) = machine.protect()
    assert (left.error.code, left.error.cause) == ("US404", "it did not answer within 10 s")
    machine.sick.well()
    machine.children_end()
    watch = machine.watch([left])
    until(watch.is_one_back, "the disk that answers again was not noticed")
    captured, left_out = machine.protect()
    assert (captured, left_out) == ([machine.well, machine.sick.device], [])
    assert bindings.read(machine.rig.folder) == bound


def test_what_is_looked_at_each_second_waits_for_no_disk(machine: Machine) -> None:
    machine.protect()
    disk = find_disk(Path(machine.sick.device))
    machine.sick.hang()
    machine.sick.occupy()
    assert size_of(disk) == disk.sectors
    assert audit.read_stat(disk).counting
    names = [Path(device).name for device in (machine.sick.device, machine.well)]
    found = answer.attributes(names)
    assert found[names[0]] is UNKNOWN
    assert found[names[1]].queue.counts
    machine.sick.well()
    machine.children_end()
    assert answer.attributes(names)[names[0]].queue.counts


def test_a_captured_disk_that_hangs_is_named_with_a_way_out_and_costs_no_epoch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hanging, "HANGS_S", 0.0)
    machine.protect()
    state = AgentState(machine.capture.state)
    state.begin_epoch(eid(7))
    state[Word.SETTLED] = 1
    rounds: Any = SimpleNamespace(leave_out=lambda disks: None, unread=dict)
    watch: Any = SimpleNamespace(is_one_back=lambda *, looking: False, silent=frozenset())
    continuity = Continuity(machine.capture, state, rounds, watch, lambda: Unreadable(2))
    continuity.check()
    assert (continuity.problems, continuity.state_of(1)) == ([], "")
    machine.sick.hang()
    machine.sick.occupy()
    continuity.check()
    (problem,) = continuity.problems
    assert (problem.code, problem.severity, problem.object) == (
        "US592",
        "critical",
        machine.capture.disks[1].id,
    )
    assert "the others go on without it" in problem.action
    assert (continuity.state_of(0), continuity.state_of(1)) == ("", "hangs")
    assert (state[Word.EPOCH], continuity.resized.is_set()) == (7, False)
    machine.sick.well()

    def is_over() -> bool:  # other programs' requests (udev's, say) may still wait for the device
        continuity.check()
        return continuity.problems == []

    until(is_over, "the disk that answers again is not called one that hangs")


def test_a_captured_disk_that_is_given_up_leaves_the_others_unless_it_answers_by_then(
    machine: Machine,
) -> None:
    machine.protect()
    sick_id, machine.changes = machine.capture.disks[1].id, []
    captured, left_out = machine.protect(sick_id)
    assert (captured, left_out, machine.changes) == ([machine.well, machine.sick.device], [], [])
    watch = machine.watch([])

    def is_silent() -> bool:
        watch._next = 0.0
        assert not watch.is_one_back(looking=True)
        return sick_id in (watch.silent or ())

    machine.sick.fail()
    until(is_silent, "nobody notices that all reads fail")
    machine.sick.well()
    until(lambda: not is_silent(), "nobody notices that it answers")
    machine.sick.hang()
    until(is_silent, "nobody notices that it hangs")
    captured, (left,) = machine.protect(sick_id)
    assert (captured, left.id, left.error.code) == ([machine.well], sick_id, "US404")
    assert machine.changes == [Change.LEFT]


def failing(error: OSError) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise error

    return call


class _HangsAt:
    """A reader of a disk that gives all but one sector, on which it hangs for longer than anybody waits."""

    def __init__(self, bad: int) -> None:
        self._bad = bad

    def __call__(self, *_: object) -> _HangsAt:
        return self

    def read(self, sector: int) -> None:
        if sector == self._bad:
            raise answer.HangsError("it did not answer")

    def close(self) -> None:
        pass


def test_a_disk_that_refuses_too_much_is_left_out_although_it_answers_until_it_gives_what_it_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.protect()
    sick_id, machine.changes = machine.capture.disks[1].id, []
    machine.sick.lose_leg()
    disk, error = find_disk(Path(machine.sick.device)), TooMuchUnreadableError("It is not protected")
    refused = [at for at in range(0, disk.sectors, 128) if answer.why_unread(disk, [at + 9])]
    assert 0 < len(refused) < disk.sectors // 128, "every other 64 KiB is refused, say"
    assert not answer.why_unread(disk, [0, refused[0], 1]), "some that stay bad do not keep it out"
    for sample in (refused, [refused[0]], [0, refused[-1] + 1]):
        refusing = {sick_id: Refusing(error, tuple(sample))}
        captured, (left,) = machine.protect(sick_id, refusing=refusing)
        assert (captured, left.id, left.error) == ([machine.well], sick_id, error)
        watch = machine.watch([left])
        watch.refusing = refusing
        assert not finds(watch)
    assert machine.changes == [Change.LEFT]
    machine.sick.well()
    watch = machine.watch([left])
    watch.refusing = refusing
    assert not finds(watch), "it was asked a moment ago"
    refusing[sick_id].next = 0.0
    watch._next = 0.0
    assert finds(watch)
    assert watch.found == {sick_id}
    with monkeypatch.context() as full:
        full.setattr("os.memfd_create", failing(OSError(errno.EMFILE, "Too many open files")))
        assert "Too many" in answer.why_unread(disk, [0])
    with monkeypatch.context() as full:
        full.setattr(answer, "DEADLINE_S", -1.0)
        assert answer.why_unread(disk, [0, 1])
    with monkeypatch.context() as slow:
        slow.setattr(answer, "PageReader", _HangsAt(refused[0]))
        sample = [0, 1, 2, refused[0]]
        while answer.why_unread(disk, sample):
            pass  # the one that holds up the drive was asked early
    machine.sick.hang()
    machine.sick.occupy()
    assert answer.why_unread(disk, refused)


def test_a_captured_disk_that_hangs_keeps_its_place_and_its_order_when_slots_are_used_up(
    machine: Machine,
) -> None:
    machine.protect()
    use_up_slots(machine.rig)
    machine.changes = []
    machine.sick.hang()
    reattach(machine.well, machine.rig.backing[0])
    captured, left_out = machine.protect()
    assert (captured, left_out) == ([machine.well, machine.sick.device], [])
    assert {*machine.changes} == {Change.RETURNED}
    assert machine.capture.mode == "ordered"
    machine.sick.well()
    machine.rig.disks = [*machine.rig.disks, find_disk(Path(machine.sick.device))]
    machine.rig.write(0, b"x" * 4096, disk=1)
    assert machine.capture.counters(1).captured_sectors == 8
