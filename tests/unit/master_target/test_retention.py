"""Which points expire."""

from __future__ import annotations

import msgspec

from master_target.retention import RetentionPolicy, expired
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position

MINUTE_NS = 60 * 1_000_000_000
HOUR_NS = 60 * MINUTE_NS
NOW_NS = 500_000 * HOUR_NS
POLICY = RetentionPolicy()


def point(batch: int, age_ns: int, *, snapshots: bool = True) -> PointDoc:
    doc = logged_point("web1", Position.of(1, batch), NOW_NS - age_ns, "crash", ["m"])
    return msgspec.structs.replace(doc, state="snapshotted" if snapshots else "logged")


def kept(docs: list[PointDoc], now_ns: int = NOW_NS) -> list[int]:
    gone = {doc.id for doc in expired(docs, now_ns, POLICY)}
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


def test_points_expire_only_when_newer_ones_have_arrived() -> None:
    docs = every(5, 4)
    assert kept(docs, NOW_NS + 1000 * HOUR_NS) == kept(docs)


def test_a_clock_that_ran_ahead_expires_nothing() -> None:
    docs = [*every(5, 2), point(1000, -900 * HOUR_NS)]
    assert kept(docs) == [doc.batch for doc in docs]


def test_the_newest_and_the_newest_processed_stay_at_any_age() -> None:
    docs = [point(1, 900 * HOUR_NS), point(2, 800 * HOUR_NS), point(3, 0, snapshots=False)]
    assert kept(docs) == [2, 3]
    assert kept([]) == []
