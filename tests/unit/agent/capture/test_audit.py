"""The audit's arithmetic: what each sample proves, and how the baseline is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture import audit
from agent.capture.audit import SAME, Baseline, Outcome, Sample, Stat, compare, settle
from tests.disk_parts import make_disk

BASE = Baseline(1000, 0)


def sample(
    stat: int, seen: int, completed: int | None = None, *, still: bool = True, counting: bool = True
) -> Sample:
    return Sample(Stat(1000 + stat, counting), seen, seen if completed is None else completed, still)


def test_equal_counts_are_exact() -> None:
    assert compare(sample(64, 64), BASE).outcome is Outcome.EXACT


def test_more_counted_than_seen_is_a_shortfall_even_while_writes_are_in_flight() -> None:
    verdict = compare(sample(72, 64, 32, still=False), BASE)
    assert (verdict.outcome, verdict.sectors) == (Outcome.SHORTFALL, 8)


def test_a_still_moment_is_exact_for_what_has_completed() -> None:
    assert compare(sample(40, 64, 40), BASE).outcome is Outcome.EXACT


def test_counts_of_different_moments_prove_nothing() -> None:
    verdict = compare(sample(40, 64, 40, still=False), BASE)
    assert (verdict.outcome, verdict.sectors) == (Outcome.IN_FLIGHT, 24)


def test_a_missed_submission_is_not_exact_however_much_is_in_flight() -> None:
    assert compare(sample(48, 64, 40), BASE).outcome is Outcome.IN_FLIGHT


def test_without_the_kernels_counting_nothing_is_verified() -> None:
    verdict = compare(sample(0, 64, counting=False), BASE)
    assert verdict.outcome is Outcome.UNVERIFIABLE
    assert "iostats" in verdict.cause


def test_without_a_baseline_nothing_is_verified() -> None:
    assert compare(sample(64, 64), Baseline(1000)).outcome is Outcome.UNVERIFIABLE


def test_the_baseline_needs_several_still_samples_that_agree() -> None:
    baseline = Baseline(1000)
    for i in range(SAME - 1):
        baseline = settle(sample(72 + i, 64 + i), baseline)
        baseline = settle(sample(999, 64, still=False), baseline)
        assert baseline.offset_sectors is None
    assert settle(sample(64, 64), baseline).offset_sectors is None
    assert settle(sample(80, 72), baseline).offset_sectors == 8


def test_a_baseline_is_corrected_downwards_only() -> None:
    baseline = Baseline(1000, 16)
    for _ in range(SAME):
        baseline = settle(sample(88, 64), baseline)
    assert baseline.offset_sectors == 16
    for _ in range(SAME):
        baseline = settle(sample(72, 64), baseline)
    assert baseline.offset_sectors == 8


def test_a_pause_in_the_kernels_counting_makes_the_baseline_unknown_again() -> None:
    baseline = settle(sample(64, 64, counting=False), Baseline(1000, 8, 8, SAME))
    assert baseline == Baseline(1000, gap=True)
    for _ in range(SAME):
        baseline = settle(sample(64, 128), baseline)  # 64 sectors were written uncounted
    assert baseline.offset_sectors == -64
    assert compare(sample(64, 128), baseline).outcome is Outcome.EXACT


@given(st.integers(0, 2**62), st.none() | st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_a_baseline_survives_pinned_memory(stat: int, offset: int | None, candidate: int) -> None:
    baseline = Baseline(stat, offset, candidate, 2, gap=True, last_sectors=stat)
    assert Baseline.from_words(np.array(baseline.words(), np.uint64)) == baseline


def test_a_gap_that_an_older_agent_noted_is_kept() -> None:
    assert Baseline.from_words(np.array([1000, 8, 1, 8, 3, 1], np.uint64)).gap
    assert not Baseline.from_words(np.array([1000, 8, 1, 8, 3, 0], np.uint64)).gap


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_disk_whose_count_begins_anew_is_audited_again(
    stat: int, completed: int, later: int, meanwhile: int
) -> None:
    """`meanwhile` completes between the two reads from which the new baseline is made."""
    old = Baseline(0, 0, last_sectors=100)
    assert audit.went_back(Stat(stat, True), old)
    baseline = audit.begun_anew(Stat(stat, True), completed + meanwhile)
    assert not audit.went_back(Stat(stat, True), baseline)
    now = Stat(stat + meanwhile + later, True)
    total = completed + meanwhile + later
    for _ in range(SAME):
        baseline = settle(Sample(now, total, total, True), baseline)
    assert compare(Sample(now, total, total, True), baseline).outcome is Outcome.EXACT
    assert compare(Sample(now, total + 8, total + 8, True), baseline).outcome is Outcome.UNVERIFIABLE
    past = Stat(now.sectors + 8, True)
    assert compare(Sample(past, total, total, True), baseline).outcome is Outcome.SHORTFALL


def test_a_driver_that_does_not_count_makes_its_disk_unverifiable_not_exact() -> None:
    baseline = Baseline(1000)
    for _ in range(SAME):
        baseline = settle(sample(0, 0), baseline)
    assert compare(sample(0, 0), baseline).outcome is Outcome.EXACT
    for _ in range(2 * SAME):
        baseline = settle(sample(0, 640), baseline)
        verdict = compare(sample(0, 640), baseline)
        assert (verdict.outcome, baseline.offset_sectors) == (Outcome.UNVERIFIABLE, 0)
        assert "driver" in verdict.cause


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), max_size=40), st.integers(0, 64))
def test_shortfall_is_claimed_only_if_something_went_past_and_exact_only_if_nothing_did(
    steps: list[tuple[bool, int]], missed: int
) -> None:
    """Writes are submitted and complete in any order; one of `missed` sectors may go past capture."""
    seen = completed = 0
    flying: list[int] = []
    for submit, sectors in steps:
        if submit:
            seen += sectors
            flying.append(sectors)
        elif flying:
            completed += flying.pop(0)
    verdict = compare(sample(completed + missed, seen, completed), BASE)
    if missed == 0:
        assert verdict.outcome is Outcome.EXACT
    elif verdict.outcome is Outcome.SHORTFALL:
        assert verdict.sectors <= missed
    else:
        # hidden behind writes in flight of at least its size; exactly its size looks like an idle disk
        assert sum(flying) >= missed
        assert verdict.outcome is (Outcome.EXACT if sum(flying) == missed else Outcome.IN_FLIGHT)


def test_written_and_discarded_sectors_are_counted(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"stat": "1 2 3 4 5 6 700 8 9 10 11 12 13 1400 15 16 17"})
    assert audit.read_stat(disk, sysfs=tmp_path) == Stat(2100, True)


def test_old_kernels_without_discard_counts_are_read(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"stat": "1 2 3 4 5 6 700 8 9 10 11", "queue/iostats": "0"})
    assert audit.read_stat(disk, counting=False, sysfs=tmp_path) == Stat(700, False)


def test_counts_that_another_disk_has_under_the_same_name_by_now_are_not_read(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"stat": "1 2 3 4 5 6 700 8 9 10 11"})
    (tmp_path / "block/sda/diskseq").write_text("8\n")
    with pytest.raises(OSError, match="another disk"):
        audit.read_stat(disk, sysfs=tmp_path)
