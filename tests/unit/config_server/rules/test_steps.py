"""What a job does next, by its steps and its journal."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.rules.steps import (
    Do,
    Ended,
    Failure,
    Next,
    Undo,
    after_failure,
    next_of,
    pause_s,
)
from shared.api.jobs import Direction, StepState

STEPS = ("side", "snapshot", "disks", "vm")
B, D, U, X = StepState.BEGUN, StepState.DONE, StepState.UNDOING, StepState.UNDONE


@pytest.mark.parametrize(
    ("journal", "direction", "expected"),
    [
        ({}, Direction.FORWARD, Do("side", again=False)),
        ({"side": B}, Direction.FORWARD, Do("side", again=True)),
        ({"side": D}, Direction.FORWARD, Do("snapshot", again=False)),
        ({"side": D, "snapshot": D, "disks": D, "vm": D}, Direction.FORWARD, Ended(Direction.FORWARD)),
        ({}, Direction.BACK, Ended(Direction.BACK)),
        ({"side": D, "snapshot": B}, Direction.BACK, Undo("snapshot")),
        ({"side": D, "snapshot": U}, Direction.BACK, Undo("snapshot")),
        ({"side": D, "snapshot": X}, Direction.BACK, Undo("side")),
        ({"side": X, "snapshot": X}, Direction.BACK, Ended(Direction.BACK)),
    ],
)
def test_what_is_next(journal: Mapping[str, StepState], direction: Direction, expected: Next) -> None:
    assert next_of(STEPS, journal, direction) == expected


def test_a_journal_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="network"):
        next_of(STEPS, {"network": D}, Direction.FORWARD)


def test_a_job_that_turned_back_goes_forward_no_more() -> None:
    with pytest.raises(ValueError, match="side"):
        next_of(STEPS, {"side": X}, Direction.FORWARD)


@given(st.lists(st.sampled_from(["dies", "done", "turned"]), max_size=30))
def test_whatever_was_begun_is_done_or_undone_in_the_order_of_the_steps(happenings: list[str]) -> None:
    """Owners that die before or behind each effect; and at some time somebody cancels."""
    journal: dict[str, StepState] = {}
    world: list[str] = []
    direction = Direction.FORWARD
    for happens in [*happenings, *["done"] * (2 * len(STEPS))]:
        if happens == "turned":
            direction = Direction.BACK
        match next_of(STEPS, journal, direction):
            case Do(step):
                journal[step] = B
                if step not in world:
                    world.append(step)
                if happens != "dies":
                    journal[step] = D
            case Undo(step):
                journal[step] = U
                if step in world:
                    assert world[-1] == step, "something that stands on it is there still"
                    world.remove(step)
                if happens != "dies":
                    journal[step] = X
            case Ended():
                break
    assert world == (list(STEPS) if direction is Direction.FORWARD else [])


@pytest.mark.parametrize(
    ("begun", "direction", "tries", "may_pass", "expected"),
    [
        (2, Direction.FORWARD, 1, True, Failure.AGAIN),
        (2, Direction.FORWARD, 8, True, Failure.BACK),
        (2, Direction.FORWARD, 1, False, Failure.BACK),
        (3, Direction.FORWARD, 1, False, Failure.ATTENTION),
        (4, Direction.FORWARD, 8, True, Failure.ATTENTION),
        (1, Direction.BACK, 1, True, Failure.AGAIN),
        (1, Direction.BACK, 1, False, Failure.AGAIN),
        (1, Direction.BACK, 8, True, Failure.ATTENTION),
        (1, Direction.BACK, 8, False, Failure.ATTENTION),
    ],
)
def test_what_becomes_of_a_job_whose_step_failed(
    begun: int, direction: Direction, tries: int, may_pass: bool, expected: Failure
) -> None:
    """Which of them failed does not count: of a job that is looked at again from its beginning all may have been done."""
    found = after_failure(STEPS, STEPS[:begun], direction, tries=tries, may_pass=may_pass, fence="disks")
    assert found is expected
    without = after_failure(STEPS, STEPS[:begun], Direction.FORWARD, tries=8, may_pass=may_pass, fence=None)
    assert without is Failure.BACK


def test_pauses_grow_to_ten_minutes() -> None:
    pauses = [pause_s(tries) for tries in range(1, 12)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (5.0, 600.0)
