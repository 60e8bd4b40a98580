"""What a config server needs of its data folder when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import api
from shared.errors import ConfigError, DataFolderInUseError
from shared.messages import Nothing
from tests.config_parts import config_for, running


async def test_two_do_not_run_on_one_data_folder(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as first:
        with pytest.raises(DataFolderInUseError, match="another one holds"):
            async with running(config_for(tmp_path)):
                pass
        async with first.operator() as operator:
            await operator.call(api.MACHINES, Nothing())
    async with running(config_for(tmp_path)):
        pass


async def test_a_lost_database_is_not_replaced_by_one_that_has_forgotten_who_was_revoked(
    tmp_path: Path,
) -> None:
    config = config_for(tmp_path)
    async with running(config):
        pass
    files = sorted(path.name for path in config.data_dir.iterdir())
    (config.data_dir / "state.db").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"state\.db is gone"):
        async with running(config):
            pass
    (tmp_path / "away").rename(config.data_dir / "state.db")
    assert sorted(path.name for path in config.data_dir.iterdir()) == files
    async with running(config):
        pass


async def test_a_first_start_that_ended_before_its_token_was_written_is_repeated(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config):
        pass
    (config.data_dir / "operator.token").unlink()
    (config.data_dir / "state.db").unlink()
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.MACHINES, Nothing())
