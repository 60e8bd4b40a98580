"""Which points expire."""

from __future__ import annotations

import msgspec
import pytest

from master_target.retention import RetentionPolicy, expired
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position
from tests.epoch_ids import CLAIM

MINUTE_NS = 60 * 1_000_000_000
HOUR_NS = 60 * MINUTE_NS
NOW_NS = 500_000 * HOUR_NS
POLICY = RetentionPolicy()


def point(batch: int, age_ns: int, *, snapshots: bool = True) -> PointDoc:
    doc = logged_point("web1", Position.of(1, batch), CLAIM, NOW_NS - age_ns, "crash", ["m"])
    return msgspec.structs.replace(doc, state="snapshotted" if snapshots else "logged")


def kept(docs: list[PointDoc], stored_ns: dict[Position, int] | None = None) -> list[int]:
    """By default storage's clock is the machine's."""
    gone = {doc.id for doc in expired(docs, stored_ns or {d.position: d.captured_ns for d in docs}, POLICY)}
    return [doc.batch for doc in docs if doc.id not in gone]


def every(minutes: int, hours: int) -> list[PointDoc]:
    count = hours * 60 // minutes
    return [point(i + 1, (count - 1 - i) * minutes * MINUTE_NS) for i in range(count)]


def test_all_points_of_two_hours_stay() -> None:
    docs = every(5, 2)
    assert kept(docs) == [doc.batch for doc in docs]


def test_then_one_an_hour_stays_for_a_day() -> None:
    docs = every(5, 48)
    left = [doc for doc in docs if doc.batch in kept(docs)]
    young = [doc for doc in left if NOW_NS - doc.captured_ns <= 2 * HOUR_NS]
    assert len(young) == 25  # both ends count
    # The newest point stands at a full hour, so hours of the clock are hours of age.
    older = [(NOW_NS - doc.captured_ns) / HOUR_NS for doc in left if doc not in young]
    assert [int(age) for age in older] == list(range(23, 1, -1))


def test_pruning_again_after_pruning_removes_nothing() -> None:
    docs = every(5, 48)
    left = [doc for doc in docs if doc.batch in kept(docs)]
    assert kept(left) == [doc.batch for doc in left]


def test_what_was_set_aside_stays_for_a_day_and_takes_no_points_place() -> None:
    """Its snapshots are not the newest ones of the machine, although it stands behind them in the log."""
    old, kept_one, new = point(1, 40 * HOUR_NS), point(2, 30 * HOUR_NS), point(30, 0, snapshots=False)
    young, outlived, newest = point(10, 23 * HOUR_NS), point(20, 25 * HOUR_NS), point(40, 26 * HOUR_NS)
    docs, aside = [old, kept_one, new], [young, outlived, newest]
    stored_ns = {doc.position: doc.captured_ns for doc in (*docs, *aside)}
    assert expired(docs, stored_ns, POLICY, aside) == [old, outlived]
    assert expired([], stored_ns, POLICY, aside) == []


def test_points_expire_only_when_newer_ones_have_arrived() -> None:
    docs = every(5, 4)
    later = {doc.position: doc.captured_ns + 1000 * HOUR_NS for doc in docs}
    assert kept(docs, later) == kept(docs)


@pytest.mark.parametrize("years", [-30, -1, 1, 30])
def test_a_machine_whose_clock_is_years_away_loses_and_keeps_what_others_do(years: int) -> None:
    docs = every(5, 48)
    stored_ns = {doc.position: doc.captured_ns for doc in docs}
    away_ns = years * 365 * 24 * HOUR_NS
    wrong = [
        msgspec.structs.replace(doc, captured_ns=doc.captured_ns + (away_ns if i % 3 else 0))
        for i, doc in enumerate(docs)
    ]
    assert kept(wrong, stored_ns) == kept(docs, stored_ns)


def test_a_days_points_that_are_documented_in_one_minute_expire_one_by_one() -> None:
    """The master target was away for a day, and is back for two hours."""
    docs = [msgspec.structs.replace(doc, listed_ns=doc.captured_ns, captured_ns=1) for doc in every(5, 26)]
    back_ns = NOW_NS - 2 * HOUR_NS
    stored_ns = {doc.position: max(doc.listed_ns, back_ns) for doc in docs}
    as_always = {doc.position: doc.listed_ns for doc in docs}
    assert kept(docs, stored_ns) == kept(docs, as_always)
    assert len(kept(docs, stored_ns)) == 25 + 22


def test_points_of_one_moment_stay_or_go_together() -> None:
    old = [point(i, 30 * HOUR_NS) for i in range(1, 4)]
    young = [point(i, HOUR_NS) for i in range(4, 7)]
    assert kept([*old, *young]) == [4, 5, 6]


def test_a_document_that_was_written_again_is_no_younger_than_the_next_point() -> None:
    docs = every(5, 48)
    stored_ns = {doc.position: doc.captured_ns for doc in docs}
    again = stored_ns | {docs[7].position: NOW_NS}
    assert kept(docs, again) == kept(docs, stored_ns)


def test_the_newest_and_the_newest_processed_stay_at_any_age() -> None:
    docs = [point(1, 900 * HOUR_NS), point(2, 800 * HOUR_NS), point(3, 0, snapshots=False)]
    assert kept(docs) == [2, 3]
    assert kept([]) == []
