"""Some of the table of failing files (tests/environment_cases.py), under load; all of it is the long part `environment`."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment_cases import CASES, Case, check
from tests.hosted_lab import HostedLab, hosted_lab
from tests.long.story import Story
from tests.loopdisk import loop_disk

DISK_B = 32 << 20
SOME = (
    "process-server: spool files: syncs",
    "process-server: spool files that are read: reads",
    "process-server: revoked.json: read only",
    "config-server: database: writes",
    "agent: note for the host: full",
    "master-target: log: writes",
    "process-server: boot.json: writes",
    "config-server starts: vault: gone",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[HostedLab]:
    """Whatever failed in it, what was written is there at the end."""
    folder = Path("/dev/shm") / f"understudy-failing-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        with (
            loop_disk(folder / "disk-a", DISK_B) as disk,
            hosted_lab([disk], folder, point_interval=60, segment_seconds=1) as made,
            Story(folder, [disk], 0.3, DISK_B) as story,
        ):
            made.site.wait_ordered(60)
            epoch = made.site.machine()["epoch"]
            yield made
            made.site.wait_ordered(60)
            story.stop()
            story.check_latest(made.site)
            assert made.site.machine()["epoch"] == epoch
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SOME], ids=lambda case: case.name)
def test_a_file_that_fails_is_named_and_all_goes_on_when_it_is_well(lab: HostedLab, case: Case) -> None:
    check(case, lab)


def test_all_chosen_cases_are_in_the_table() -> None:
    assert set(SOME) <= {case.name for case in CASES}
