"""What a step of a set-up is, and how steps are carried out."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from shared.crashpoints import reach


class Outcome(enum.StrEnum):
    CREATED = "created"
    KEPT = "kept"
    """It is there."""
    DIFFERS = "differs"
    """It is there, is not what this run would write, and was kept."""
    CHECKED = "checked"
    """Nothing is to be made, and it is as it must be."""
    WARNING = "warning"
    """It is not as it should be; the work goes on."""
    TO_DO = "to-do"
    """A person has to do it."""
    WOULD_CREATE = "would-create"
    """Dry run."""
    WOULD_CHECK = "would-check"
    """Dry run: the check itself makes something for a moment."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one step."""

    step: str
    """What kind of step it is, for programs: `configuration`, `certificate`, …"""
    outcome: Outcome
    what: str
    """The object: a file, a port, a unit."""
    detail: str = ""
    action: str = ""
    """What a person should do; "": nothing."""


class Step(Protocol):
    async def look(self, dry_run: bool) -> Done:
        """What is there. Changes nothing. WOULD_CREATE: it is missing. Raises UnderstudyError where the run cannot go on."""

    async def do(self) -> Done:
        """Makes what `look` found missing; killed anywhere, the next run's `look` finds it missing or whole."""


async def carry_out(
    steps: Iterable[Step], tell: Callable[[Done], None], *, dry_run: bool = False
) -> list[Done]:
    """One after the other; `tell` hears of each. `steps` may be a generator, which goes on when the step before is done: what it learnt can
    be used then. Raises what a step raises: those before it are done, and told."""
    all_done = []
    for step in steps:
        reach("setup.step")
        done = await step.look(dry_run)
        if done.outcome is Outcome.WOULD_CREATE and not dry_run:
            done = await step.do()
            reach("setup.step")
        all_done.append(done)
        tell(done)
    return all_done
