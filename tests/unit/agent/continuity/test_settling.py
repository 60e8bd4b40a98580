"""Which open writes are over, by what the kernel and capture count on their disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.capture.audit import ATTEMPTS, Baseline, Sample, Stat
from agent.capture.layout import OPEN_WRITE
from agent.continuity import settling
from agent.continuity.settling import STALE_S, Settling
from agent.stream import clock

NOW_NS = 10**12
OLD_NS = NOW_NS - int(STALE_S * 1e9)


class Disks:
    """Two disks, of 16 sectors seen and 8 completed each; on each a write is open since `since_ns`."""

    def __init__(self, sysfs: Path, since_ns: int) -> None:
        self.open = np.zeros(2, OPEN_WRITE)
        self.open["disk"], self.open["since_ns"], self.open["sectors"] = [0, 1], since_ns, 8
        self.samples = {slot: Sample(Stat(16, counting=True), 16, 8, still=True) for slot in (0, 1)}
        self.read_again: list[int] = []
        words = np.zeros(6, np.uint64)
        words[:] = Baseline(0, 0).words()
        for name in ("sda", "sdb"):
            self.say_in_flight(sysfs, name, 0)
        capture: Any = SimpleNamespace(
            disks=[SimpleNamespace(name=name, diskseq=0) for name in ("sda", "sdb")],
            fresh=False,
            open_writes=lambda: self.open,
            sector_counts=lambda slot: (16, 8),
            audit_words=lambda slot: words,
            forget_open=self.forget,
        )
        rounds: Any = SimpleNamespace(read_again=lambda writes: self.read_again.extend(writes["disk"]))
        self.settling = Settling(capture, rounds)

    def say_in_flight(self, sysfs: Path, name: str, writes: int) -> None:
        (sysfs / "block" / name).mkdir(parents=True, exist_ok=True)
        (sysfs / "block" / name / "inflight").write_text(f"       0 {writes:8}\n")

    def forget(self, until_ns: int, disks: Iterable[int]) -> np.ndarray:
        assert until_ns == OLD_NS
        return self.open[np.isin(self.open["disk"], [*disks])]

    def forgotten(self, *exact: int) -> list[int]:
        self.settling.forget_stale(exact, self.samples.__getitem__)
        return self.read_again


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "SYSFS", tmp_path)
    monkeypatch.setattr(clock, "boot_ns", lambda: NOW_NS)


@pytest.mark.parametrize("at", [0, 1, ATTEMPTS - 1, ATTEMPTS])
def test_a_busy_disk_is_looked_at_as_often_as_the_audit_looks_for_a_moment_that_proves_it(
    tmp_path: Path, at: int
) -> None:
    disks = Disks(tmp_path, OLD_NS)
    busy = Sample(Stat(8, counting=True), 16, 8, still=True)
    moments = iter([*[busy] * at, disks.samples[0], *[busy] * ATTEMPTS])
    disks.settling.forget_stale({0}, lambda slot: next(moments))
    assert disks.read_again == [0] * (at < ATTEMPTS)


def test_however_many_disks_hang_they_are_looked_at_no_more_often_than_one(tmp_path: Path) -> None:
    disks, looks = Disks(tmp_path, OLD_NS), list[int]()

    def sample(slot: int) -> Sample:
        looks.append(slot)
        return Sample(Stat(8, counting=True), 16, 8, still=True)

    disks.settling.forget_stale({0, 1}, sample)
    assert [looks.count(slot) for slot in (0, 1)] == [ATTEMPTS // 2] * 2


def test_of_two_moments_none_proves_what_one_of_them_must(tmp_path: Path) -> None:
    disks = Disks(tmp_path, OLD_NS)
    moving = Sample(Stat(16, counting=True), 16, 8, still=False)
    in_flight = Sample(Stat(8, counting=True), 16, 8, still=True)
    moments = iter([moving, in_flight] * ATTEMPTS)
    disks.settling.forget_stale({0}, lambda slot: next(moments))
    assert disks.read_again == []


@pytest.mark.parametrize("exact", [[], [0], [1], [0, 1]])
def test_a_write_that_completed_unseen_is_forgotten_where_the_audit_is_exact(
    tmp_path: Path, exact: list[int]
) -> None:
    assert Disks(tmp_path, OLD_NS).forgotten(*exact) == exact


def test_a_write_that_is_not_old_is_left(tmp_path: Path) -> None:
    assert Disks(tmp_path, OLD_NS + 1).forgotten(0, 1) == []


def test_a_write_that_was_counted_when_it_began_and_is_in_flight_still_is_left(tmp_path: Path) -> None:
    disks = Disks(tmp_path, OLD_NS)
    disks.say_in_flight(tmp_path, "sda", 1)
    assert disks.forgotten(0, 1) == [1]


@pytest.mark.parametrize(
    "sample",
    [
        Sample(Stat(16, counting=True), 16, 8, still=False),
        Sample(Stat(8, counting=True), 16, 8, still=True),  # it is in flight
        Sample(
            Stat(16, counting=True), 16, 0, still=True
        ),  # others completed when what is in flight was asked
    ],
)
def test_what_is_not_proved_on_one_disk_is_left_on_it_and_forgotten_on_the_other(
    tmp_path: Path, sample: Sample
) -> None:
    disks = Disks(tmp_path, OLD_NS)
    disks.samples[0] = sample
    assert disks.forgotten(0, 1) == [1]
