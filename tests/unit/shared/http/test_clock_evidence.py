"""Whose fault it is that a certificate seems out of date."""

from __future__ import annotations

import pytest

from shared.http.clock_evidence import Evidence, Fault, judge

DAY = 86400.0
YEAR = 365 * DAY
NOW = 1_900_000_000.0


def seen(
    begins: float, ends: float, *, theirs: float | None = None, jumped: float = 0.0, now: float = NOW
) -> Evidence:
    """All but `now` relative to the right time."""
    return Evidence(now, NOW + begins, NOW + ends, None if theirs is None else NOW + theirs, jumped)


@pytest.mark.parametrize(
    ("evidence", "fault", "says"),
    [
        (seen(-DAY, 29 * DAY, theirs=0, now=NOW + 3 * YEAR), Fault.CLOCK, "1095 days ahead"),
        (seen(-DAY, 29 * DAY, theirs=0, now=NOW - 3 * YEAR), Fault.CLOCK, "1095 days behind"),
        (seen(-300, 29 * DAY, theirs=0, now=NOW - 3600), Fault.CLOCK, "60 minutes behind"),
        (seen(-DAY, 29 * DAY, now=NOW - 3 * YEAR), Fault.CLOCK, "valid from"),  # nothing begins in the future
        (seen(-DAY, 29 * DAY, now=NOW + YEAR, jumped=YEAR), Fault.CLOCK, "set 365 days ahead since"),
        (seen(-31 * DAY, -DAY, theirs=0), Fault.CERTIFICATE, "by both clocks"),
        (seen(-31 * DAY, -DAY, theirs=200), Fault.CERTIFICATE, "by both clocks"),
        (seen(-31 * DAY, -DAY, theirs=-3600), Fault.CERTIFICATE, "by both clocks"),
        (seen(-31 * DAY, -10, theirs=-200), Fault.CERTIFICATE, "by both clocks"),  # so close that they agree
        (seen(-31 * DAY, -DAY), Fault.UNKNOWN, "valid from"),
        (seen(-DAY, DAY, theirs=0), Fault.UNKNOWN, "its CA's"),
        (Evidence(NOW), Fault.UNKNOWN, "this host's clock shows a time in the hour from 2030-03-17"),
    ],
)
def test_the_clock_is_named_where_it_may_be_wrong(evidence: Evidence, fault: Fault, says: str) -> None:
    verdict = judge(evidence)
    assert verdict.fault is fault
    assert says in verdict.cause
    assert "clock shows" in verdict.cause
    assert ("timedatectl" in verdict.action) == (fault is not Fault.CERTIFICATE)


def test_the_words_stay_the_same_from_try_to_try() -> None:
    assert judge(seen(-DAY, 29 * DAY, theirs=0, now=NOW + YEAR)) == judge(
        seen(-DAY, 29 * DAY, theirs=1, now=NOW + YEAR + 1)
    )
