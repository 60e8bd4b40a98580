"""What is said of a disk that the audit says nothing of."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from agent.capture.audit import DRIVER, LACKING, UNTOLD, Baseline, Outcome, Sample, Stat, Verdict, compare
from agent.continuity.unaudited import UNAUDITED_S, Unaudited

BUSY = Verdict(Outcome.IN_FLIGHT, 8)


def sample(counted: int, before: int) -> Sample:
    """Of a disk that is being written: 100 sectors seen, 90 completed by now, `before` of them when the kernel was asked."""
    return Sample(Stat(counted, counting=True), 100, 90, still=False, completed_before_sectors=before)


def last_of(unaudited: Unaudited, verdicts: Iterable[Verdict]) -> Verdict:
    return [unaudited.judge(0, verdict, 0.0) for verdict in verdicts][-1]


@pytest.mark.parametrize("offset", [0, None])
def test_a_driver_that_does_not_count_is_named_on_a_disk_that_is_never_idle(offset: int | None) -> None:
    baseline = Baseline(0, offset)
    blind, late, well = (compare(sample(*counts), baseline) for counts in [(0, 80), (79, 80), (80, 80)])
    unaudited = Unaudited()
    assert last_of(unaudited, [blind] * (LACKING - 1)).cause != DRIVER
    found = unaudited.judge(0, blind, 0.0)
    assert (found.outcome, found.cause) == (Outcome.UNVERIFIABLE, DRIVER)
    # One that counts is ahead of what had completed before at most looks, if not at each.
    assert last_of(Unaudited(), [late, *[late] * (LACKING - 2), well] * 3).cause != DRIVER


def test_what_was_written_while_the_kernel_did_not_count_does_not_make_the_driver_blind() -> None:
    assert not compare(sample(0, 80), Baseline(0, 0, gap=True)).lacks


@pytest.mark.parametrize("nothing", [BUSY, Verdict(Outcome.UNVERIFIABLE, cause=UNTOLD)])
def test_a_disk_that_is_never_idle_is_named_after_a_time_and_until_a_look_says_something(
    nothing: Verdict,
) -> None:
    unaudited = Unaudited()
    for now in (0.0, UNAUDITED_S - 1):
        unaudited.judge(0, nothing, now)
        assert unaudited.error(0, "sda", now) is None
    unaudited.judge(0, nothing, UNAUDITED_S)
    error = unaudited.error(0, "sda", UNAUDITED_S)
    assert error is not None
    assert (error.code, "10 minutes" in error.what) == ("US597", True)
    assert "a completion that was missed" in error.cause
    assert "order waits" in error.action
    assert unaudited.error(1, "sdb", UNAUDITED_S) is None
    unaudited.judge(0, Verdict(Outcome.EXACT), UNAUDITED_S)
    unaudited.judge(0, nothing, UNAUDITED_S + 1)
    assert unaudited.error(0, "sda", UNAUDITED_S + 1) is None
