"""One lab for the stories of this folder: two loop disks, written from before the installation until after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import Lab, lab
from tests.lab_places import disk, folder
from tests.long.story import Story, scratch, two_disks

__all__ = ["disk", "folder"]

DISK_B = 64 << 20


@dataclass
class Site:
    """A lab under load, and the folder for what the tests make."""

    lab: Lab
    story: Story
    folder: Path


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        scratch() as place,
        two_disks(place, DISK_B) as devices,
        Story(place, devices, 5, DISK_B) as story,
        lab(devices, point_interval=4, segment_seconds=1) as running,
    ):
        yield Site(running, story, place)
