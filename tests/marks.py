"""Cases that say the same of one more step, daemon or cause: `make test` runs some of each kind, `python -m tests.long every-case` all."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import hypothesis
import pytest


def examples(most: int) -> int:
    """How many a property test tries that takes long for each: of `make test`, which tries the same ones each time, a third."""
    return most // 3 if hypothesis.settings().derandomize else most


def some(cases: Iterable[Any], short: Container[Any]) -> list[Any]:
    """The parameters of a test: those that are not in `short` are marked as long ones."""
    made = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        made.append(pytest.param(*values, marks=() if case in short else pytest.mark.long))
    return made
