"""What a job does next: which of its steps it does, or undoes. Pure.

A kind of job is a list of steps, in the order in which they are done. The journal has one entry for each step that was ever begun; `begun`
is written before anything is done, so whatever a step does is known to the journal before it can be seen in the world. From these two,
and from whether the job goes forward or back, follows what is next, for whoever has the job: nothing is remembered elsewhere.

Forward: the first step that is not `done` is done; one that is `begun` is done *again*, since its owner may have been killed in its midst:
each step looks first for what it makes, by a name that is its own. Back: the last step that is not `undone` is undone, until none is left:
also one that was only begun, and one whose undoing was begun. A job that turned back never goes forward again.

Why a killed owner harms nobody: before its effect there is `begun`, after it either `done` or nothing, and for `begun` both ways lead on.
Why a cancel is never too late or twice: it only turns the job, which happens once, and undoing undone steps is nothing. What is past the
`fence` of its kind, the step from which nobody can take it back by himself, is not turned by a failure, only by a person.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Mapping, Sequence
from typing import Final

import msgspec

from shared.api.jobs import Direction, StepState

OVER: Final = (StepState.UNDONE, StepState.GONE)


class Do(msgspec.Struct, frozen=True):
    step: str
    again: bool
    """It was begun before."""


class Undo(msgspec.Struct, frozen=True):
    step: str


class Ended(msgspec.Struct, frozen=True):
    """Nothing is left to be done."""

    direction: Direction


Next = Do | Undo | Ended


def next_of(steps: Sequence[str], journal: Mapping[str, StepState], direction: Direction) -> Next:
    """`steps` are those of the job's kind and version. Raises ValueError for a journal that is none of theirs: some other version's."""
    if strangers := journal.keys() - set(steps):
        raise ValueError(f"the journal has {', '.join(sorted(strangers))}, which are no steps of this kind")
    if direction is Direction.BACK:
        left = [step for step in steps if journal.get(step, StepState.GONE) not in OVER]
        return Undo(left[-1]) if left else Ended(direction)
    for step in steps:
        match journal.get(step):
            case StepState.DONE:
                pass
            case None:
                return Do(step, again=False)
            case StepState.BEGUN:
                return Do(step, again=True)
            case StepState.UNDOING | StepState.UNDONE | StepState.GONE:
                raise ValueError(f"the step {step} was undone, and the job goes forward")
    return Ended(direction)


class Failure(enum.Enum):
    """What becomes of a job one of whose steps failed."""

    AGAIN = "again"
    """The same step, after `pause_s`."""
    BACK = "back"
    """What was done is undone."""
    ATTENTION = "attention"
    """A person decides: again, back, or given up. What is left is named."""


_TRIES: Final = 8
"""Of one step: some 20 minutes."""
_LONGEST_S: Final = 600.0


def pause_s(tries: int) -> float:
    """Before the next try of a step that failed so often."""
    return min(_LONGEST_S, 5.0 * 2.0 ** (tries - 1))


def after_failure(
    steps: Sequence[str],
    journal: Container[str],
    direction: Direction,
    *,
    tries: int,
    may_pass: bool,
    fence: str | None,
) -> Failure:
    """`journal`: the steps that were ever begun, among them the one that failed. Of a job that is looked at again from its beginning,
    since the database was put back, these are all: any may have been. `tries`: how often it has failed, this time included. `may_pass`:
    the failure is of a kind that passes by itself; what hinders an undoing is tried again in any case, since it may be something of a
    later step that came late, and goes with it. `fence`: the first step that is not taken back without a person's word."""
    if tries < _TRIES and (may_pass or direction is Direction.BACK):
        return Failure.AGAIN
    if direction is Direction.BACK:
        return Failure.ATTENTION
    is_past = fence is not None and any(step in journal for step in steps[steps.index(fence) :])
    return Failure.ATTENTION if is_past else Failure.BACK
