"""Where a mark may stand, and what becomes of it when its batch is lost."""

from __future__ import annotations

import msgspec

from agent.stream.marks import DUE_MAX, Marks
from shared.batch import META_MAX_B, BatchMeta, Mark
from shared.recovery.position import Position

M = Mark("m")


def asked(end_seq: int = 10, loss: int = 3) -> Marks:
    marks = Marks()
    marks.ask(M, end_seq, loss)
    return marks


def test_a_mark_waits_for_all_that_was_in_the_ring() -> None:
    marks = asked(end_seq=10)
    assert marks.due(9, 3) == ()
    assert marks.due(10, 3) == (M,)


def test_a_mark_does_not_stand_in_an_order_from_before_a_loss_that_preceded_it() -> None:
    marks = asked(loss=3)
    assert marks.due(10, 2) == ()
    assert marks.due(10, 4) == (M,)


def test_asking_again_changes_nothing_neither_before_nor_after_it_is_placed() -> None:
    marks = asked(end_seq=10)
    marks.ask(M, 20, 9)
    assert marks.due(10, 3) == (M,)
    marks.place((M,), Position.of(1, 7))
    marks.ask(M, 20, 9)
    assert marks.due(99, 99) == ()
    assert marks.where("m") == Position.of(1, 7)


def test_a_mark_whose_batch_is_lost_waits_again_under_its_old_conditions() -> None:
    marks = asked(end_seq=10, loss=3)
    marks.place((M,), Position.of(1, 7))
    marks.lost_behind(Position.of(1, 7))
    assert marks.where("m") == Position.of(1, 7)
    marks.lost_behind(Position.of(1, 6))
    assert marks.where("m") is None
    assert marks.due(9, 3) == marks.due(10, 2) == ()
    assert marks.due(10, 3) == (M,)


def test_a_mark_of_a_stored_epoch_is_not_asked_for_again() -> None:
    marks = asked()
    marks.place((M,), Position.of(1, 7))
    marks.lost_behind(Position.of(2, 0))
    assert marks.where("m") == Position.of(1, 7)


def test_however_many_marks_are_due_a_batch_has_the_first_of_them_and_those_of_a_lost_one_wait_again() -> (
    None
):
    marks = Marks()
    ids = [f"{number:032x}" for number in range(2 * DUE_MAX + 1)]
    for id_ in ids:
        marks.ask(Mark(id_), 5, 0)
    for number, count in ((10, DUE_MAX), (11, DUE_MAX), (12, 1)):
        due = marks.due(5, 0)
        assert len(due) == count
        assert len(msgspec.json.encode(BatchMeta(marks=due))) < META_MAX_B // 4
        marks.place(due, Position.of(1, number))
    assert marks.due(5, 0) == ()
    assert [marks.where(ids[at]) for at in (0, DUE_MAX, -1)] == [Position.of(1, at) for at in (10, 11, 12)]
    marks.stored(Position.of(1, 9))
    marks.lost_behind(Position.of(1, 10))
    assert marks.where(ids[0]) == Position.of(1, 10)
    assert [mark.id for mark in marks.due(5, 0)] == ids[DUE_MAX : 2 * DUE_MAX]


def test_of_marks_that_are_stored_the_newest_are_remembered() -> None:
    marks = Marks()
    for number in range(3000):
        marks.ask(Mark(f"m{number}"), 5, 0)
        marks.place((Mark(f"m{number}"),), Position.of(1, number))
    marks.stored(Position.of(1, 2990))
    assert marks.where("m0") is None
    assert marks.where("m2990") == Position.of(1, 2990)
    assert len(marks._placed) == 1024
