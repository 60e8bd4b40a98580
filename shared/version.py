"""The version of this installation. Said here alone: pyproject.toml reads it."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
