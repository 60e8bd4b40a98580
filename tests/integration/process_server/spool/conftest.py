"""Where a spool of a test is."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a spool of the test is."""
    return tmp_path / "spool"
