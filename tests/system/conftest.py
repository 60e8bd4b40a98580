"""One lab for the stories of this folder: two loop disks, written from before the installation until after."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import Lab, lab
from tests.long.story import Story
from tests.loopdisk import loop_disk

DISK_B = 64 << 20


@dataclass
class Site:
    """A lab under load, and the folder for what the tests make."""

    lab: Lab
    story: Story
    folder: Path


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path("/dev/shm") / f"understudy-system-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        with (
            loop_disk(folder / "a", DISK_B) as a,
            loop_disk(folder / "b", DISK_B) as b,
            Story(folder, [a, b], 5, DISK_B) as story,
            lab([a, b], point_interval=4, segment_seconds=1) as running,
        ):
            yield Site(running, story, folder)
    finally:
        shutil.rmtree(folder)
