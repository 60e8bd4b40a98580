"""The stream with one line changed, in its own place: kills fall between the lines of a mutant as well."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any


def mutated(owner: Any, name: str, old: str, new: str) -> Any:
    """The function of a class with one piece of its text replaced."""
    function = getattr(owner, name)
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, f"{owner.__name__}.{name} does not read so any more:\n{old}"
    code = compile(
        "from __future__ import annotations\n" + text.replace(old, new), inspect.getfile(function), "exec"
    )
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)  # noqa: S102 - text of this project
    return made[name]
