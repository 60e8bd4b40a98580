"""The version of this installation, as it was built (setup.py)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("understudy")
    except PackageNotFoundError:
        return "not installed"  # run from a tree


VERSION: Final = _installed()
