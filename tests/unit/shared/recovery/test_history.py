"""Ordered runs, gaps and marks of a log, from its index entries."""

from __future__ import annotations

import msgspec
import pytest

from shared.errors import LogGapError
from shared.log.index import IndexEntry
from shared.log.segment import MarkRow
from shared.recovery import history
from shared.recovery.history import History
from shared.recovery.plan import base_candidates, replay_steps
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position
from shared.vocabulary import INITIAL_REPLICATION
from tests.epoch_ids import CLAIM, epoch_info


def entry(
    first: int,
    last: int,
    ordered: tuple[tuple[int, int], ...] = (),
    marks: tuple[MarkRow, ...] = (),
    cause: str = "",
) -> IndexEntry:
    return IndexEntry(
        term=1,
        blob=f"{first}.seg",
        bytes=100,
        digest="",
        plain_b=100,
        first=first,
        last=last,
        first_captured_ns=first * 10,
        last_captured_ns=last * 10,
        end_seq=last,
        predecessor="",
        last_digest="",
        ordered=ordered,
        marks=marks,
        cause=cause,
        written_ns=0,
    )


LOG: History = [
    (1, entry(1, 5, ((4, 5),), cause="first replication")),
    (1, entry(6, 9, ((6, 9),))),
    (1, entry(10, 15, ((10, 11), (14, 15)), cause="ring full")),
    (1, entry(16, 17, cause="ring full again")),
    (2, entry(1, 6, ((5, 6),), cause="first replication of 2")),
]
REASONS = {1: "new machine", 2: "agent lost its state"}


def P(epoch: int, batch: int) -> Position:
    return Position.of(epoch, batch)


def test_ordered_runs_go_on_over_segments_but_not_over_epochs() -> None:
    runs = history.ordered_runs(LOG)
    assert [(r.first, r.last) for r in runs] == [
        (P(1, 4), P(1, 11)),
        (P(1, 14), P(1, 15)),
        (P(2, 5), P(2, 6)),
    ]


def test_the_next_ordered_positions_are_found_on_both_sides() -> None:
    runs = history.ordered_runs(LOG)
    assert history.at_or_before(runs, P(1, 3)) is None
    assert history.at_or_before(runs, P(1, 7)) == P(1, 7)
    assert history.at_or_before(runs, P(1, 12)) == P(1, 11)
    assert history.at_or_after(runs, P(1, 12)) == P(1, 14)
    assert history.at_or_after(runs, P(1, 16)) == P(2, 5)
    assert history.at_or_after(runs, P(2, 7)) is None
    assert [b for b in range(20) if history.contains(runs, P(1, b))] == [*range(4, 12), 14, 15]


def test_gaps_name_their_borders_and_their_cause() -> None:
    found = history.gaps(LOG, REASONS, {})
    assert [(g.after, g.until, g.cause) for g in found] == [
        (None, P(1, 4), "first replication"),
        (P(1, 11), P(1, 14), "ring full"),
        (P(1, 15), P(2, 5), "first replication of 2"),
    ]
    assert (found[2].since_ns, found[2].until_ns) == (150, 60)


@pytest.mark.parametrize(
    ("boots", "says"),
    [
        (("k1/1", "k1/2"), "as after `machine unprotect`; then all"),
        (("k1/1", "k2/1"), "the machine was booted, or was not protected; then all"),
        (("", ""), "the machine was booted, or was not protected; then all"),
    ],
)
def test_a_time_in_which_nothing_was_captured_is_no_initial_replication(
    boots: tuple[str, str], says: str
) -> None:
    """Its agent, whose capture is new, says of each such copy that it is the first."""
    log = [
        (1, entry(1, 5, ((4, 5),), cause=INITIAL_REPLICATION)),
        (2, entry(1, 6, ((5, 6),), cause=INITIAL_REPLICATION)),
    ]
    epochs = [
        msgspec.structs.replace(epoch_info(number=number), reason=INITIAL_REPLICATION, boot=boot)
        for number, boot in enumerate(boots, 1)
    ]
    first, second = history.gaps(log, history.reasons(epochs), {})
    assert (first.until, first.cause) == (P(1, 4), INITIAL_REPLICATION)
    assert (second.after, second.until) == (P(1, 5), P(2, 5))
    assert second.cause.startswith("nothing was captured for a time")
    assert says in second.cause
    third = msgspec.structs.replace(epochs[1], epoch=3, reason="the ring was full")
    assert history.reasons([*epochs, third])[3] == "the ring was full"


def test_a_gap_that_lasts_has_no_end() -> None:
    lasting = history.gaps(LOG[:4], {1: "new machine"}, {})[-1]
    assert (lasting.after, lasting.until, lasting.cause) == (P(1, 15), None, "ring full again")
    # An epoch that has begun and holds nothing yet is a gap too.
    lasting = history.gaps(LOG, {**REASONS, 3: "cloned"}, {})[-1]
    assert (lasting.after, lasting.until, lasting.cause) == (P(2, 6), None, "cloned")


def test_what_was_lost_is_a_period_without_points_and_its_cause() -> None:
    found = history.gaps(LOG, {1: "new machine"}, {2: "the index is gone"})
    assert [(g.after, g.until, g.cause) for g in found[2:]] == [
        (P(1, 15), P(2, 5), "first replication of 2"),
        (P(2, 6), None, "the index is gone"),
    ]
    found = history.gaps(LOG, REASONS, {1: "damaged"})
    assert [g.cause for g in found] == ["first replication", "ring full", "damaged"]
    assert [(g.after, g.until, g.cause) for g in history.gaps([], {}, {1: "no document"})] == [
        (None, None, "no document")
    ]


def test_the_cause_of_a_period_is_looked_for_in_that_period_alone() -> None:
    looks = 0

    class Counted:
        def __init__(self, found: IndexEntry) -> None:
            self.found = found

        def __getattr__(self, name: str) -> object:
            nonlocal looks
            looks += name == "cause"
            return getattr(self.found, name)

    log = [(1, Counted(entry(n, n, () if n % 10 == 0 else ((n, n),), cause=f"c{n}"))) for n in range(1, 1001)]
    found = history.gaps(log, {1: "new"}, {})  # type: ignore[arg-type]
    assert [gap.cause for gap in found[:3]] == ["new", "c10", "c20"]
    assert looks < 2 * len(log)


def test_marks_at_ordered_batches_are_points_and_others_are_not() -> None:
    marks = (
        MarkRow(2, "early", "crash", 20),
        MarkRow(4, "a", "crash", 40),
        MarkRow(4, "b", "app", 40),
        MarkRow(5, "c", "crash", 50),
    )
    found = list(history.marked_points("web1", [(1, entry(1, 5, ((4, 5),), marks))], {1: CLAIM}))
    assert [(p.id, p.consistency, p.marks, p.captured_ns) for p in found] == [
        ("1-4", "app", ("a", "b"), 40),
        ("1-5", "crash", ("c",), 50),
    ]
    assert all(p.state == "logged" and not p.snapshots for p in found)


def test_replay_covers_exactly_what_lies_between() -> None:
    entries = [e for epoch, e in LOG if epoch == 1]
    assert [(s.first, s.last) for s in replay_steps(entries, 0, P(1, 17))] == [
        (1, 5),
        (6, 9),
        (10, 15),
        (16, 17),
    ]
    assert [(s.first, s.last) for s in replay_steps(entries, 7, P(1, 11))] == [(8, 9), (10, 11)]
    assert replay_steps(entries, 11, P(1, 11)) == ()


def test_replay_over_a_hole_or_beyond_the_end_is_refused() -> None:
    entries = [e for epoch, e in LOG if epoch == 1]
    with pytest.raises(LogGapError, match="batch 6"):
        replay_steps([entries[0], *entries[2:]], 0, P(1, 12))
    with pytest.raises(LogGapError, match="batch 18"):
        replay_steps(entries, 0, P(1, 18))
    with pytest.raises(LogGapError, match="batch 1 "):
        replay_steps(entries[1:], 0, P(1, 12))


def test_only_snapshots_of_the_same_epoch_that_are_not_newer_are_a_base() -> None:
    def doc(epoch: int, batch: int, target: str = "page-blob") -> PointDoc:
        made = logged_point("web1", P(epoch, batch), CLAIM, 0, "crash", ["m"])
        fields = {f: getattr(made, f) for f in made.__struct_fields__}
        return PointDoc(**fields | {"state": "snapshotted" if target else "logged", "target": target})

    docs = [doc(1, 4), doc(1, 9), doc(1, 10, ""), doc(1, 10, "image"), doc(1, 15), doc(2, 5)]
    assert [d.position for d in base_candidates(P(1, 11), docs)] == [P(1, 9), P(1, 4)]
    assert [d.position for d in base_candidates(P(1, 9), docs)] == [P(1, 9), P(1, 4)]
    assert base_candidates(P(2, 4), docs) == []
