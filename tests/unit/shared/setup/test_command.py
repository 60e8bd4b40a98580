"""What a set-up prints at its end."""

from __future__ import annotations

import pytest

from shared.setup.command import _summary
from shared.setup.steps import Done, Outcome


@pytest.mark.parametrize(
    ("outcomes", "dry_run", "says"),
    [
        ((Outcome.KEPT, Outcome.CHECKED), False, "Nothing was changed."),
        ((Outcome.KEPT, Outcome.CREATED), False, "Done."),
        ((Outcome.WOULD_CREATE,), True, "Dry run: nothing was changed."),
        (
            (Outcome.KEPT, Outcome.DIFFERS, Outcome.WARNING, Outcome.WARNING),
            False,
            "Nothing was changed. To look at: 2 warning, 1 differs.",
        ),
        ((Outcome.CREATED, Outcome.TO_DO), False, "Done. To look at: 1 to-do."),
    ],
)
def test_the_last_line_says_whether_all_is_well(
    outcomes: tuple[Outcome, ...], dry_run: bool, says: str
) -> None:
    assert _summary([Done(step="x", outcome=each, what="y") for each in outcomes], dry_run) == says
