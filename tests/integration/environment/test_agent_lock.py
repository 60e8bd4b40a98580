"""The agent's lock file on a disk that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import lock
from shared.errors import AgentRunningError, StateFileError
from tests.failing_disks import FAILING


@pytest.mark.parametrize("kind", FAILING)
def test_a_lock_that_cannot_be_made_is_named(kind: str) -> None:
    with FAILING[kind]() as disk:
        disk.fail()
        with (
            pytest.raises(StateFileError, match="The agent's lock could not be made") as caught,
            lock.held(disk.where / "agent", "The agent was not started"),
        ):
            pass
        assert kind in caught.value.cause
        if disk.heals:
            disk.heal()
            with lock.held(disk.where / "agent", "The agent was not started"):
                pass


def test_an_agent_that_ran_before_starts_again_on_a_disk_that_became_read_only() -> None:
    with FAILING["Read-only file system"]() as disk:
        with lock.held(disk.where / "agent", "The agent was not started"):
            pass
        disk.fail()
        with (
            lock.held(disk.where / "agent", "The agent was not started"),
            pytest.raises(AgentRunningError),
            lock.held(disk.where / "agent", "Another was not started"),
        ):
            pass


def test_a_state_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent").touch()
    with (
        pytest.raises(StateFileError, match="lock could not be made"),
        lock.held(tmp_path / "agent", "The agent was not started"),
    ):
        pass
