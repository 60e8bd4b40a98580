"""A database that was put back with pg_restore, or as a copy of its file, and is told so before its server starts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from config_server.__main__ import main
from config_server.config import ConfigServerConfig
from config_server.data_folder.put_back import put_back
from config_server.store.config import DatabaseConfig
from shared import api
from shared.api.events import EventKind, EventQuery
from shared.api.jobs import JobQuery, JobState
from shared.api.protection import Protection
from shared.api.route import Page
from shared.control import enrol
from shared.errors import DataFolderInUseError, TokenUnknownError
from tests.config_parts import config_for, running


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ConfigServerConfig:
    if request.param == "sqlite":
        return config_for(tmp_path)
    database: DatabaseConfig = request.getfixturevalue("database_config")
    return config_for(tmp_path, database=database)


async def test_what_it_held_ready_is_void_and_its_jobs_wait_for_a_person(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    async with running(config) as server, server.operator() as operator:
        token = await server.token("agent", "web9")
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
    assert "put back" in await told(config, tmp_path)
    async with running(config) as server, server.operator() as operator:
        with pytest.raises(TokenUnknownError):
            await enrol.enrol(server.url, token.token, tmp_path / "web9")
        [job] = (await operator.call(api.JOBS, JobQuery())).jobs
        assert job.state is JobState.ATTENTION
        events = (await operator.call(api.EVENTS, EventQuery())).events
        assert EventKind.RESTORED in [event.kind for event in events]
        actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
        assert {"database.restored", "token.void", "job.held"} <= {*actions}


async def told(config: ConfigServerConfig, tmp_path: Path) -> str:
    """What the command says to people."""
    file = tmp_path / "config-server.toml"
    database = "" if config.database.is_file else f'[database]\nurl = "{config.database.url}"\n'
    file.write_text(f'data_dir = "{config.data_dir}"\n{database}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "config_server", "put-back", "--config", str(file)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_while_a_server_uses_it_it_is_refused(config: ConfigServerConfig) -> None:
    async with running(config):
        with pytest.raises(DataFolderInUseError):
            await asyncio.to_thread(put_back, config)


async def test_also_from_another_host(database_config: DatabaseConfig, tmp_path: Path) -> None:
    other = config_for(tmp_path / "other", database=database_config)
    other.data_dir.mkdir(parents=True)
    async with running(config_for(tmp_path, database=database_config)):
        with pytest.raises(DataFolderInUseError, match="a config server uses it: "):
            await asyncio.to_thread(put_back, other)


def test_a_configuration_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["put-back", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
