"""What others say, as far as it is kept: a daemon may say megabytes. Pure."""

from __future__ import annotations

from typing import Final

MOST: Final = 2000
_CUT: Final = " …"


def bounded(words: str) -> str:
    """As much of it as a person reads."""
    return words if len(words) <= MOST else words[: MOST - len(_CUT)] + _CUT
