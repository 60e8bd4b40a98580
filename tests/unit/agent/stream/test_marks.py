"""Where a mark may stand, and what becomes of it when its batch is lost."""

from __future__ import annotations

from agent.stream.marks import Marks
from shared.batch import Mark
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


def test_marks_of_one_batch_are_all_found_and_wait_again_if_it_is_lost_however_many() -> None:
    marks = Marks()
    ids = [f"m{number}" for number in range(3000)]
    for id_ in ids:
        marks.ask(Mark(id_), 5, 0)
    placed = Position.of(1, 10)
    marks.place(marks.due(5, 0), placed)
    assert all(marks.where(id_) == placed for id_ in ids)
    marks.stored(Position.of(1, 9))
    marks.lost_behind(Position.of(1, 9))
    assert len(marks.due(5, 0)) == len(ids)


def test_of_marks_that_are_stored_the_newest_are_remembered() -> None:
    marks = Marks()
    for number in range(3000):
        marks.ask(Mark(f"m{number}"), 5, 0)
        marks.place((Mark(f"m{number}"),), Position.of(1, number))
    marks.stored(Position.of(1, 2990))
    assert marks.where("m0") is None
    assert marks.where("m2990") == Position.of(1, 2990)
    assert len(marks._placed) == 1024
