"""Fixtures of tests that bring up a lab of their own: a folder in memory, and a disk in it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopdisk import loop_disk


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path("/dev/shm") / f"understudy-labs-{secrets.token_hex(3)}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def disk(folder: Path) -> Iterator[str]:
    with loop_disk(folder / "disk", 32 << 20) as device:
        yield device
