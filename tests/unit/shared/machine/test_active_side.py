"""Which of several answers of storage about the active side counts."""

from __future__ import annotations

from shared.machine.active_side import ActiveSide, Known


def side(generation: int, identity: str) -> ActiveSide:
    return ActiveSide(machine="m1", generation=generation, identity=identity, changed_ns=0, claim=identity)


def test_storage_that_was_set_back_counts_from_the_next_request_on() -> None:
    known = Known()
    known.learn(side(4, "old"), known.asking())
    assert known.learn(side(2, "new"), known.asking()) == side(2, "new")
    assert known.get("m1") == side(2, "new")


def test_a_slow_answer_does_not_undo_what_was_learnt_since_it_was_asked_for() -> None:
    known = Known()
    slow = known.asking()
    known.learn(side(2, "new"), known.asking())
    assert known.learn(side(1, "old"), slow) == side(2, "new")
    assert known.get("m1") == side(2, "new")


def test_of_requests_that_overlap_the_higher_generation_counts_in_whichever_order_they_are_answered() -> None:
    known = Known()
    first, second = known.asking(), known.asking()
    known.learn(side(1, "old"), first)
    assert known.learn(side(2, "new"), second) == side(2, "new")


def test_an_answer_that_confirms_what_is_known_makes_requests_from_before_it_old() -> None:
    known = Known()
    known.learn(side(2, "new"), known.asking())
    slow = known.asking()
    known.learn(side(2, "new"), known.asking())
    assert known.learn(side(1, "old"), slow) == side(2, "new")


def test_of_other_machines_nothing_is_learnt() -> None:
    known = Known()
    known.learn(side(1, "one"), known.asking())
    assert known.get("m2") is None
