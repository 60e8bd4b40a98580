"""Who is at work in an epoch, by its index alone: whatever the machine's clock says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from process_server.spool.rivals import Look, Verdict, Watched, pace
from shared.log.epochs import EpochDisk, EpochInfo
from shared.log.index import IndexEntry

S = 1_000_000_000
STILL_S = 20.0
START_S = 1_700_000_000
EPOCH = EpochInfo(
    machine="web1",
    epoch=1,
    disks=(EpochDisk(0, "sda", "", 8),),
    reason="first",
    created_ns=0,
    claim="0" * 16,
)
OFF_S = [-3 * 365 * 86_400, -3 * 3600, -180, 0, 180, 3 * 3600, 3 * 365 * 86_400]

Index = Callable[[int], tuple[int, int]]
"""At a second from the first look on: when the index was changed last, by storage's clock, and when its newest batch was captured, by a
clock that is right; both in seconds from the first look."""


def working(at_s: int) -> tuple[int, int]:
    """Something gets to storage every 7 s, one to five seconds after it was captured."""
    changed_s = at_s // 7 * 7
    return changed_s, changed_s - 1 - changed_s % 5


def backlog(*, died_s: int, from_s: int, pace: float) -> Index:
    """Of a machine that died at a second; its server is at what was captured at another, and lists `pace` seconds in one."""

    def index(at_s: int) -> tuple[int, int]:
        changed_s = min(at_s, int((died_s - from_s) / pace))
        return changed_s, min(died_s, int(from_s + changed_s * pace))

    return index


def verdict(index: Index, off_s: int) -> tuple[Verdict, int]:
    """The first that ends the waiting, and when."""

    def look(at_s: int) -> Look:
        changed_s, captured_s = index(at_s)
        return Look((changed_s, captured_s), (START_S + captured_s + off_s) * S, (START_S + changed_s) * S)

    watched = Watched(EPOCH, look(0), START_S * S, 0.0)
    for at_s in range(0, 1000, 5):
        found = watched.judge(look(at_s), float(at_s), STILL_S)
        if found is not Verdict.WAIT:
            return found, at_s
    raise AssertionError("it is waited for ever")


@pytest.mark.parametrize("off_s", OFF_S)
def test_a_machine_that_works_is_seen_whatever_its_clock_says(off_s: int) -> None:
    found, at_s = verdict(working, off_s)
    assert found is Verdict.AT_WORK
    assert at_s < 6 * STILL_S


@pytest.mark.parametrize("off_s", [off_s for off_s in OFF_S if off_s <= 0])
@pytest.mark.parametrize("pace", [0.3, 2.0, 10.0])
def test_what_a_machine_that_is_gone_left_to_be_listed_is_no_work(off_s: int, pace: float) -> None:
    found, at_s = verdict(backlog(died_s=-30, from_s=-3600, pace=pace), off_s)
    assert found is Verdict.GONE
    assert at_s <= 6 * STILL_S


@pytest.mark.parametrize("off_s", OFF_S)
def test_a_machine_whose_log_stands_still_is_gone_whatever_its_clock_says(off_s: int) -> None:
    assert verdict(backlog(died_s=-30, from_s=-30, pace=1.0), off_s) == (Verdict.GONE, int(STILL_S))


def test_a_batch_that_was_captured_in_the_second_of_the_first_look_is_no_work() -> None:
    """Storage's clock says no more than the second."""
    first = Look(1, START_S * S - 5, START_S * S)
    watched = Watched(EPOCH, first, START_S * S, 0.0)
    assert watched.judge(Look(2, START_S * S + S // 2, START_S * S + S), 1.0, STILL_S) is Verdict.WAIT


def listed_every(*seconds: int) -> list[IndexEntry]:
    """Segments, so many seconds between each and the one before."""
    at_s, entries = START_S, []
    for number, later_s in enumerate((0, *seconds), 1):
        at_s += later_s
        entries.append(
            IndexEntry(
                term=1,
                blob="",
                bytes=1,
                digest="",
                plain_b=1,
                first=number,
                last=number,
                first_captured_ns=at_s * S,
                last_captured_ns=at_s * S,
                end_seq=1,
                predecessor="",
                last_digest="",
                ordered=(),
                written_ns=at_s * S,
            )
        )
    return entries


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((), 0),
        ((60,), 0),
        ((60, 60, 60), 60),
        ((5, 5, 7200, 5, 5), 5),
        ((7200, *[5] * 8), 5),
        ((5, -7200), 0),
    ],
)
def test_the_pace_of_a_log_is_what_lies_between_its_segments_but_for_one_absence(
    seconds: tuple[int, ...], expected: int
) -> None:
    assert pace(listed_every(*seconds)) == expected
