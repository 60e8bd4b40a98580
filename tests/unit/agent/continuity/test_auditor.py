"""What follows from what the audit and the capture's counts say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.capture import audit
from agent.capture.audit import Baseline, Outcome, Verdict
from agent.capture.disks import Queue
from agent.capture.layout import OPEN_WRITE
from agent.capture.maps import Incidents
from agent.continuity import counting, presence, settling
from agent.continuity.auditor import Continuity
from agent.continuity.patience import FIRST_S, Patience
from agent.continuity.unaudited import UNAUDITED_S
from agent.stream.state import AgentState, Reason, Word
from agent.stream.unreadable import Unreadable
from shared.errors import DeviceError
from tests.epoch_ids import eid

NO_INCIDENTS = Incidents(0, 0, 0, 0, 0, 0, 0, 0, 0)
SECTORS = 1000


class Watched:
    """Disks that are left out, of which a test says when they are back."""

    back = False
    looked = False
    silent: frozenset[str] = frozenset()

    def is_one_back(self, *, looking: bool) -> bool:
        self.looked = looking
        return self.back


class Machine:
    """A machine with one disk, whose counts and verdicts a test sets."""

    def __init__(self) -> None:
        self.incidents = NO_INCIDENTS
        self.verdict = Verdict(Outcome.EXACT)
        self.size = SECTORS
        self.left_out: list[int] = []
        self.removed: list[str] = []
        self.words = np.zeros(6, np.uint64)
        self.words[:] = Baseline(0, 0).words()
        self.state = AgentState(np.zeros(4096, np.uint64))
        self.state.begin_epoch(eid(1))
        capture: Any = SimpleNamespace(
            disks=[
                SimpleNamespace(
                    name="sda",
                    id="sda",
                    path=Path("/dev/sda"),
                    sectors=SECTORS,
                    iostats=True,
                    hidden_by="",
                    diskseq=0,
                )
            ],
            incidents=lambda: self.incidents,
            audit_words=lambda slot: self.words,
            open_writes=lambda: np.zeros(0, OPEN_WRITE),
            fresh=True,
            mode="ordered",
            attached_boot_ns=1,
            removed=lambda: self.removed,
        )
        self.capture = capture
        self.unread: dict[int, DeviceError] = {}
        rounds: Any = SimpleNamespace(
            leave_out=lambda slots: setattr(self, "left_out", [*slots]), unread=lambda: self.unread
        )
        watch: Any = Watched()
        self.watch = watch
        self.rounds = rounds
        self.begin()

    def begin(self) -> None:
        unreadable = Unreadable(len(self.capture.disks))
        self.continuity = Continuity(self.capture, self.state, self.rounds, self.watch, lambda: unreadable)

    def happen(self, **counts: int) -> None:
        self.incidents = Incidents(**{name: counts.get(name, 0) for name in Incidents.__slots__})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(presence, "size_of", lambda disk: made.size)
    monkeypatch.setattr(Continuity, "_audit", lambda self, slot: made.verdict)
    yield made


def test_points_are_suspect_from_the_last_look_before_a_passthrough_write(machine: Machine) -> None:
    machine.state.cut(4, b"d" * 16, 40)
    machine.continuity.check()
    machine.state.cut(5, b"e" * 16, 50)
    happened_ns = time.time_ns()
    machine.happen(passthrough=1)
    machine.continuity.check()  # the sectors add up: a passthrough write is not among them
    assert machine.state[Word.EPOCH] == 0
    assert machine.state.reason == Reason.PASSTHROUGH_WRITE
    assert machine.state.suspicion is not None
    assert machine.state.suspicion.after == (1, 4)
    assert 0 < machine.state.suspicion.since_ns <= happened_ns


def test_before_the_first_clean_look_every_point_is_suspect(machine: Machine) -> None:
    machine.state.cut(4, b"d" * 16, 40)
    machine.happen(passthrough=1)
    machine.continuity.check()
    assert machine.state.suspicion is not None
    assert machine.state.suspicion.after == (0, 0)


def test_what_a_disk_that_was_away_makes_suspect_is_behind_what_was_cut_when_it_was_last_seen(
    machine: Machine,
) -> None:
    machine.state.cut(4, b"d" * 16, 40)
    machine.continuity.check()
    machine.state.cut(5, b"e" * 16, 50)
    machine.size = 0
    machine.continuity.check()
    assert machine.state.since_all_there.after == (1, 4)


@pytest.mark.parametrize("what", ["shortfall", "passthrough"])
def test_a_kill_before_the_epoch_is_wanted_leaves_the_loss_to_be_found_again(
    machine: Machine, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "shortfall":
        machine.verdict = Verdict(Outcome.SHORTFALL, 8, "a write was not seen")
    else:
        machine.happen(passthrough=1)

    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(machine.state, "want_epoch", kill)
    with pytest.raises(KilledError):
        machine.continuity.check()
    assert machine.state[Word.PASSTHROUGH_SEEN] == 0
    assert Baseline.from_words(machine.words).offset_sectors == 0


def test_a_shortfall_is_found_once(machine: Machine) -> None:
    machine.verdict = Verdict(Outcome.SHORTFALL, 8, "a write was not seen")
    machine.continuity.check()
    assert machine.state.reason == Reason.AUDIT_SHORTFALL
    assert Baseline.from_words(machine.words).offset_sectors == 8


def test_programs_that_somebody_detached_are_named_and_capture_begins_anew(machine: Machine) -> None:
    machine.continuity.check()
    happened_ns = time.time_ns()
    machine.removed = ["us_rq_issue"]
    machine.continuity.check()
    assert (machine.state[Word.EPOCH], machine.state.reason) == (0, Reason.CAPTURE_REMOVED)
    assert 0 < machine.state[Word.SUSPECT_SINCE_NS] <= happened_ns
    assert machine.continuity.resized.is_set()
    machine.continuity.check()
    (problem,) = machine.continuity.problems
    assert (problem.code, problem.cause) == ("US570", "pins of its programs were removed: us_rq_issue")


def test_what_happens_every_second_is_shown_once(machine: Machine) -> None:
    for count in range(500):
        machine.happen(unknown_range=count + 1)
        machine.continuity.check()
    assert len(machine.continuity.problems) == 1


def test_a_disk_that_is_gone_is_shown_and_nothing_is_read_or_begun(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_counters(self: Continuity, slot: int) -> Verdict:
        raise FileNotFoundError(2, "No such file or directory", "/sys/block/sda/stat")

    monkeypatch.setattr(Continuity, "_audit", no_counters)
    machine.size = 0
    machine.happen(unknown_range=3)  # writes to another disk in its place
    machine.continuity.check()
    (problem,) = machine.continuity.problems
    assert (problem.code, problem.severity, problem.object) == ("US220", "critical", "sda")
    assert machine.left_out == [0]
    assert machine.state[Word.EPOCH] == 1
    machine.size = SECTORS
    monkeypatch.setattr(Continuity, "_audit", lambda self, slot: machine.verdict)
    machine.continuity.check()
    assert machine.state[Word.EPOCH] == 0


def test_a_disk_of_another_size_wants_capture_to_begin_anew(machine: Machine) -> None:
    machine.continuity.check()
    assert not machine.continuity.resized.is_set()
    machine.size = 2 * SECTORS
    machine.continuity.check()
    assert machine.continuity.resized.is_set()


class TwoDisks:
    """Disks that were being written when capture was attached; `inflight[name]` is what the kernel says of each."""

    def __init__(self, sysfs: Path) -> None:
        self.settled = False
        self.sysfs = sysfs
        self.inflight = {"sda": 1, "sdb": 1}
        disks = [
            SimpleNamespace(
                name=name,
                id=name,
                path=Path("/dev") / name,
                sectors=SECTORS,
                iostats=True,
                hidden_by="",
                diskseq=0,
            )
            for name in self.inflight
        ]
        capture: Any = SimpleNamespace(
            disks=disks, sector_counts=lambda slot: (8, 8), fresh=True, mode="ordered", attached_boot_ns=1
        )
        rounds: Any = SimpleNamespace(settle=lambda: setattr(self, "settled", True))
        watch: Any = Watched()
        self.continuity = Continuity(
            capture, AgentState(np.zeros(4096, np.uint64)), rounds, watch, lambda: Unreadable(len(disks))
        )

    def look(self) -> None:
        for name, count in self.inflight.items():
            folder = self.sysfs / "block" / name
            (folder / "queue").mkdir(parents=True, exist_ok=True)
            (folder / "inflight").write_text(f"0 {count}\n")
        self.continuity._settling.look()


@pytest.fixture
def two_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoDisks:
    monkeypatch.setattr(settling, "SYSFS", tmp_path)
    return TwoDisks(tmp_path)


def test_each_disk_needs_a_quiet_moment_of_its_own(
    two_disks: TwoDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLE_S", float("inf"))
    two_disks.look()
    two_disks.inflight = {"sda": 0, "sdb": 1}
    two_disks.look()
    assert not two_disks.settled
    two_disks.inflight = {"sda": 1, "sdb": 0}
    two_disks.look()
    assert two_disks.settled


def test_a_disk_that_is_never_quiet_is_waited_for_with_patience_only(
    two_disks: TwoDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLE_S", float("inf"))
    two_disks.look()
    assert not two_disks.settled
    monkeypatch.setattr(settling, "SETTLE_S", 0.0)
    two_disks.look()
    assert two_disks.settled
    assert [*two_disks.sysfs.glob("block/*/queue/*")] == []


def test_counting_that_is_switched_off_is_shown_and_left_to_a_person(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = False
    monkeypatch.setattr(
        counting, "read_queue", lambda folder: Queue(512, counts=counts, dax=False, zoned=False)
    )

    def look() -> list[str]:
        machine.continuity._counting.ask(0)
        machine.continuity.check()
        return [problem.code for problem in machine.continuity.problems]

    assert look() == ["US406"]
    counts = True
    assert look() == []


def test_a_device_that_hides_the_writes_to_a_disk_ends_the_epoch_and_has_capture_fitted_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.state.cut(4, b"d" * 16, 40)
    machine.continuity.check()
    monkeypatch.setattr(counting, "hider", lambda folder: "md1")
    machine.continuity._counting.ask(0)
    for _ in range(2):  # the run ends some time after `resized` was set
        machine.continuity.check()
        assert machine.continuity.resized.is_set()
    assert (machine.state[Word.EPOCH], machine.state.reason) == (0, Reason.AUDIT_SHORTFALL)
    assert machine.state.suspicion is not None
    assert machine.state.suspicion.after == (1, 4)
    (problem,) = machine.continuity.problems
    assert (problem.code, "md1" in problem.cause) == ("US416", True)


def test_a_disk_that_is_never_idle_is_a_warning_after_a_time_and_ends_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    machine.verdict = Verdict(Outcome.IN_FLIGHT, 8)
    machine.continuity.check()
    assert machine.continuity.problems == []
    now += UNAUDITED_S
    machine.continuity.check()
    (problem,) = machine.continuity.problems
    assert (problem.code, problem.severity, problem.object) == ("US597", "warning", "sda")
    assert machine.state[Word.EPOCH] == 1


def test_counting_that_cannot_be_asked_about_is_a_warning(machine: Machine) -> None:
    machine.continuity._counting.note([RuntimeError("can't start new thread")])
    machine.continuity.check()
    (problem,) = machine.continuity.problems
    assert (problem.code, problem.severity) == ("US406", "warning")
    assert "can't start new thread" in problem.cause


def test_a_clock_that_was_set_back_makes_points_suspect_from_the_earliest_time_that_they_can_carry(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour_ns = 3600 * 10**9
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + hour_ns)
    machine.continuity.check()
    monkeypatch.setattr(time, "time_ns", real_ns)
    point_ns = time.time_ns()
    machine.happen(passthrough=1)
    machine.continuity.check()
    assert 0 < machine.state[Word.SUSPECT_SINCE_NS] <= point_ns


def test_a_disk_that_is_gone_leaves_an_ordered_stream_alone_and_is_left_by_another(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    other = SimpleNamespace(
        name="sdb", id="sdb", path=Path("/dev/sdb"), sectors=SECTORS, iostats=True, hidden_by="", diskseq=0
    )
    machine.capture.disks = [*machine.capture.disks, other]
    machine.begin()
    monkeypatch.setattr(presence, "size_of", lambda disk: 0 if disk.name == "sda" else SECTORS)
    machine.state.set_ordered(0, 0)
    machine.continuity.check()
    assert machine.left_out == [0], "what stands in its place is read"
    now += 2 * presence.GONE_S
    machine.continuity.check()
    assert not machine.continuity.resized.is_set()
    machine.state.set_unordered()  # what the disk held has to be read, and cannot be
    machine.continuity.check()
    assert machine.continuity.resized.is_set()


def test_a_disk_that_is_given_up_has_capture_fitted_anew_without_it_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    other = SimpleNamespace(
        name="sdb", id="sdb", path=Path("/dev/sdb"), sectors=SECTORS, iostats=True, hidden_by="", diskseq=0
    )
    machine.capture.disks = [*machine.capture.disks, other]
    machine.begin()
    machine.unread, machine.watch.silent = {1: DeviceError("it gives errors only")}, frozenset({"sdb"})
    machine.continuity.check()
    assert machine.watch.looked, "nobody asks whether it answers"
    assert not machine.continuity.resized.is_set()
    for _ in range(2):  # the run ends some time after `resized` was set
        now += 2 * FIRST_S
        machine.continuity.check()
        assert machine.continuity.resized.is_set()
    patience = Patience(machine.state.patience_words)
    assert (patience.is_given_up("sdb"), patience.is_given_up("sda")) == (True, False)
    assert patience.wait_s("sdb", now) == 2 * FIRST_S


def test_the_only_disk_of_a_machine_is_waited_for(machine: Machine) -> None:
    machine.size = 0
    machine.continuity._presence._whole_at = -1e9
    machine.continuity.check()
    assert not machine.continuity.resized.is_set()


@pytest.mark.parametrize("gone", [True, False])
def test_a_disk_that_is_back_is_taken_in(machine: Machine, gone: bool) -> None:
    watch = machine.watch
    machine.size = 0 if gone else SECTORS
    machine.continuity.check()
    assert watch.looked is gone
    assert not machine.continuity.resized.is_set()
    watch.back = True
    machine.continuity.check()
    assert machine.continuity.resized.is_set()


def test_a_size_that_cannot_be_read_says_nothing_of_the_disk(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many_files(disk: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(presence, "size_of", too_many_files)
    machine.continuity.check()
    assert machine.continuity.problems == []
    assert machine.state[Word.WENT] == 0


def test_a_driver_that_does_not_count_is_shown(machine: Machine) -> None:
    machine.verdict = Verdict(Outcome.UNVERIFIABLE, cause=audit.DRIVER)
    machine.continuity.check()
    (problem,) = machine.continuity.problems
    assert (problem.code, problem.cause) == ("US406", audit.DRIVER)


def test_since_when_a_disk_is_away_is_known_after_a_kill(machine: Machine) -> None:
    machine.continuity.check()
    there = machine.state[Word.ALL_THERE_NS]
    assert there > 0
    happened_ns = time.time_ns()
    machine.size = 0
    machine.continuity.check()
    assert 0 < machine.state[Word.ALL_THERE_NS] <= min(there, happened_ns)


def test_a_disk_is_away_since_the_earliest_time_that_a_clock_set_back_gives_to_points(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.continuity.check()
    machine.size = 0
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() - 3600 * 10**9)
    point_ns = time.time_ns()
    machine.continuity.check()
    monkeypatch.setattr(time, "time_ns", real_ns)
    machine.continuity.check()
    assert 0 < machine.state[Word.ALL_THERE_NS] <= point_ns
