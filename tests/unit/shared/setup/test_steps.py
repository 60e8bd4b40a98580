"""How the steps of a set-up are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import UsageError
from shared.setup.files import Folder
from shared.setup.steps import Done, Outcome, Step, carry_out


async def test_steps_are_told_as_they_are_done_and_nothing_is_done_in_a_dry_run(tmp_path: Path) -> None:
    steps = [Folder(tmp_path / name, 0o700) for name in "ab"]
    told: list[Done] = []
    assert await carry_out(steps, told.append, dry_run=True) == told
    assert ([step.outcome for step in told], steps[0].path.exists()) == ([Outcome.WOULD_CREATE] * 2, False)
    assert [step.outcome for step in await carry_out(steps, told.append)] == [Outcome.CREATED] * 2
    assert [step.outcome for step in await carry_out(steps, told.append)] == [Outcome.KEPT] * 2


async def test_a_step_that_is_made_when_its_turn_comes_sees_what_was_done_before(tmp_path: Path) -> None:
    def steps() -> Iterator[Step]:
        yield Folder(tmp_path / "a", 0o700)
        yield Folder(tmp_path / "a" / ("b" if (tmp_path / "a").exists() else "c"), 0o700)

    await carry_out(steps(), lambda _: None)
    assert (tmp_path / "a/b").exists()


async def test_what_was_done_before_an_error_is_told(tmp_path: Path) -> None:
    def steps() -> Iterator[Step]:
        yield Folder(tmp_path / "a", 0o700)
        raise UsageError("no")

    told: list[Done] = []
    with pytest.raises(UsageError):
        await carry_out(steps(), told.append)
    assert [step.what for step in told] == [str(tmp_path / "a")]
