"""What `restore` says before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from config_server.cli import restore_command
from shared.errors import RestoreError
from shared.log.epochs import EpochDisk
from shared.recovery.plan import Plan
from shared.recovery.position import Position
from tests.epoch_ids import eid

MIB = 1 << 20
PLAN = Plan(
    machine="web1",
    epoch=eid(1),
    position=Position.of(1, 2),
    captured_ns=1,
    disks=(EpochDisk(0, "sda", "", 2 * MIB // 512), EpochDisk(1, "sdb", "", MIB // 512)),
    suspect=False,
    point=None,
    base=None,
    replay=(),
)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free_2_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: Usage(9 * MIB, 7 * MIB, 2 * MIB))


def test_a_plan_says_what_is_needed_and_what_room_there_is(free_2_mib: None, tmp_path: Path) -> None:
    plan = restore_command._plan_view(PLAN, tmp_path / "not/made/yet")
    assert (plan["at_most_b"], plan["room_b"]) == (3 * MIB, 2 * MIB)


def test_a_restore_that_may_not_fit_warns_before_it_begins(
    free_2_mib: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore_command._warn_of_room(PLAN, tmp_path)
    assert f"{tmp_path} has room for 2.0 MiB, the disks have 3.0 MiB" in capsys.readouterr().err


def test_what_an_interrupted_restore_has_written_counts_as_room(
    free_2_mib: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sda.raw").write_bytes(b"x" * MIB)
    restore_command._warn_of_room(PLAN, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_dry_run_into_too_small_a_disk_ends_unhealthy(free_2_mib: None, tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match=r"3\.0 MiB, and there is room for 2\.0 MiB") as caught:
        restore_command._check_room(2 * MIB, PLAN, tmp_path)
    assert caught.value.exit_code == 5
    restore_command._check_room(3 * MIB, PLAN, tmp_path)
    restore_command._check_room(None, PLAN, tmp_path)
