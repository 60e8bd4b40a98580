"""What a config server needs of its data folder when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from config_server import background
from config_server.config import ConfigServerConfig
from config_server.data_folder import backup
from config_server.rules.clock import SECOND_NS
from config_server.store import journal
from shared import api
from shared.api.jobs import JobState
from shared.api.route import Nothing
from shared.errors import ConfigError, DataFolderInUseError
from tests.config_parts import config_for, running, until
from tests.databases import opened
from tests.small_fs import fill, small_fs


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


async def test_an_empty_database_in_the_place_of_the_old_one_is_told(tmp_path: Path) -> None:
    """What a full disk leaves of a restore, or a copy of the file of a server that ran."""
    config = config_for(tmp_path)
    async with running(config):
        pass
    (config.data_dir / "state.db").write_bytes(b"")
    with pytest.raises(ConfigError, match="database is empty") as told:
        async with running(config):
            pass
    assert "config_server restore" in told.value.action


async def test_a_database_of_another_installation_is_told(tmp_path: Path) -> None:
    configs = [config_for(tmp_path / name) for name in ("one", "two")]
    for number, config in enumerate(configs):
        async with running(config) as server:
            if number:
                await server.enrolled("agent", "web1", tmp_path / "agent")
    one, two = (config.data_dir for config in configs)
    (one / "state.db").write_bytes((two / "state.db").read_bytes())
    with pytest.raises(ConfigError, match="the CA are of two installations"):
        async with running(configs[0]):
            pass
    (one / "ca.key").write_bytes((two / "ca.key").read_bytes())
    (one / "ca.pem").write_bytes((two / "ca.pem").read_bytes())
    with pytest.raises(ConfigError, match="does not know the token") as told:
        async with running(configs[0]):
            pass
    assert "delete that file" in told.value.action


async def test_a_database_beside_another_ones_log_is_told(tmp_path: Path) -> None:
    """The backup's was copied over it after a kill, and the log that lay there stayed."""
    config = config_for(tmp_path)
    async with running(config):
        path = config.data_dir / "state.db"
        older = backup.snapshot(path)
        with contextlib.closing(sqlite3.connect(path)) as db:
            for number in range(300):
                with db:
                    db.execute(
                        "INSERT INTO audit (time_ns, who, action, object, detail) VALUES (?, '', ?, '', '')",
                        (number, "x" * 3000),
                    )
        log = path.with_name("state.db-wal").read_bytes()
    path.write_bytes(older)
    path.with_name("state.db-wal").write_bytes(log)
    with pytest.raises(ConfigError, match="database is damaged") as told:
        async with running(config):
            pass
    assert "config_server restore" in told.value.action


def begun(config: ConfigServerConfig) -> None:
    """A job that another process has, as it left it."""
    with opened(config.data_dir / "state.db") as db:
        journal.create(
            db,
            kind="resync",
            version=1,
            machine="web1",
            lane="",
            who="",
            args={"after": 1},
            now_ns=0,
            id_="j1",
        )
        journal.claim(db, "j1", "cs1", 3600 * SECOND_NS)


@contextlib.contextmanager
def read_only(file: Path) -> Iterator[None]:
    for options in ("bind", "remount,ro,bind"):
        subprocess.run(["mount", "-o", options, file, file], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", file], check=True)


async def test_it_starts_on_a_full_disk_where_a_job_was_at_work(tmp_path: Path) -> None:
    """And a revocation is in force (docs/operations/trouble.md, US545)."""
    config = config_for(tmp_path)
    with small_fs(config.data_dir, 6 << 20):
        async with running(config) as server:
            await server.enrolled("agent", "web1", tmp_path / "agent")
        begun(config)
        fill(config.data_dir)
        async with running(config) as server, server.operator() as operator:
            await server.revoke("agent:web1")
            assert (await operator.call(api.JOB, Nothing(), id="j1")).state is JobState.RUNNING


async def test_it_starts_on_a_database_that_takes_nothing(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config):
        pass
    begun(config)
    with read_only(config.data_dir / "state.db"):
        async with running(config) as server, server.operator() as operator:
            assert (await operator.call(api.JOB, Nothing(), id="j1")).state is JobState.RUNNING


async def test_what_a_process_before_this_one_had_is_driven_at_once(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config):
        pass
    begun(config)
    async with running(config) as server, server.operator() as operator:

        async def is_driven() -> bool:
            return bool((await operator.call(api.JOB, Nothing(), id="j1")).steps)

        await until(is_driven)


async def test_it_ends_at_once_and_not_with_the_next_look_at_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_BEAT_S", 600.0)
    async with asyncio.timeout(20):
        async with running(config_for(tmp_path)) as server, server.operator() as operator:
            await operator.call(api.MACHINES, Nothing())
