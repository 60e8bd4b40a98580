"""The data folder as one file, taken while the server runs, and given back whatever lies where it goes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import sqlite3
import sys
import tarfile
from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, belonging, restoring
from shared import api
from shared.api.certificates import RevokeRequest
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.errors import CertificateRevokedError, ConfigError, DataFolderInUseError, StateFileError
from shared.host import durable
from shared.status import AgentReport
from tests.config_parts import config_for, daemon, running


def write_config(folder: Path, config: ConfigServerConfig) -> Path:
    path = folder / "config-server.toml"
    path.write_text(f'data_dir = "{config.data_dir}"\nlisten = "127.0.0.1"\nport = 0\n')
    return path


async def tool(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "config_server",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_what_was_revoked_before_a_backup_of_a_server_that_runs_is_revoked_after_its_restore(
    tmp_path: Path,
) -> None:
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    file = write_config(tmp_path, config)
    async with running(config) as server, server.operator() as operator:
        thief = await server.enrolled("agent", "web1", tmp_path / "web1")
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web2")
        await operator.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="agent:web1"))
        code, said = await tool("backup", "--config", str(file), "--to", str(target))
        assert (code, str(target) in said, target.stat().st_mode & 0o777) == (0, True, 0o600)
        code, said = await tool("restore", "--config", str(file), "--from", str(target))
        assert (code, "Stop the config server first" in said) == (DataFolderInUseError.exit_code, True)
        await operator.call(api.MACHINES, Nothing())
    shutil.rmtree(config.data_dir)
    assert (await tool("restore", "--config", str(file), "--from", str(target)))[0] == 0
    async with running(config) as server, server.operator() as operator, daemon(server, thief) as agent:
        assert [m.name for m in (await operator.call(api.MACHINES, Nothing())).machines] == ["web2"]
        with pytest.raises(CertificateRevokedError):
            await agent.report(AgentReport(machine="web1", state="ordered", epoch=1))


async def test_a_restore_beside_the_log_of_a_server_that_was_killed_takes_nothing_of_it(
    tmp_path: Path,
) -> None:
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    async with running(config) as server, server.operator() as operator:
        backup.backup(config, target)
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="after")
        shutil.copytree(config.data_dir, tmp_path / "killed")
    shutil.rmtree(config.data_dir)
    (tmp_path / "killed").rename(config.data_dir)
    assert (config.data_dir / "state.db-wal").stat().st_size
    aside = restoring.restore(config, target).kept.aside
    assert aside is not None
    assert {"state.db", "state.db-wal", "ca.key"} <= {path.name for path in aside.iterdir()}
    async with running(config) as server, server.operator() as operator:
        assert (await operator.call(api.MACHINES, Nothing())).machines == []
        await operator.call(api.AUDIT, Page())
    with contextlib.closing(sqlite3.connect(aside / "state.db")) as before:
        assert before.execute("SELECT name FROM machines").fetchall() == [("after",)]


async def test_a_backup_goes_where_a_link_leads_and_replaces_nothing_but_a_file_outside_of_the_data_folder(
    tmp_path: Path,
) -> None:
    config = config_for(tmp_path)
    async with running(config):
        disk, link, pipe = tmp_path / "disk.tar", tmp_path / "backup.tar", tmp_path / "pipe"
        link.symlink_to(disk)
        backup.backup(config, link)
        assert (link.is_symlink(), tarfile.is_tarfile(disk)) == (True, True)
        os.mkfifo(pipe)
        through = tmp_path / "through"
        through.symlink_to(config.data_dir / "state.db")
        circle = tmp_path / "circle"
        circle.symlink_to(circle)
        before = (config.data_dir / "state.db").read_bytes()
        for place in (pipe, Path("/dev/null"), tmp_path, config.data_dir / "state.db", through, circle):
            with pytest.raises(ConfigError, match="No backup was written"):
                backup.backup(config, place)
        assert pipe.is_fifo()
        assert (config.data_dir / "state.db").read_bytes() == before
        with pytest.raises(ConfigError, match="lies in the data folder"):
            backup.backup(config, config.data_dir / "new.tar")


async def test_nothing_is_touched_for_a_file_that_is_no_whole_backup(tmp_path: Path) -> None:
    config, other = config_for(tmp_path / "one"), config_for(tmp_path / "two")
    target = tmp_path / "backup.tar"
    for made in (config, other):
        async with running(made) as server:
            await server.enrolled("agent", "web1", made.data_dir.parent / "web1")
            backup.backup(made, target)
    with tarfile.open(target) as archive:
        parts = {name: archive.extractfile(name).read() for name in belonging.PARTS}  # type: ignore[union-attr]
    foreign = {
        **parts,
        "ca.key": (config.data_dir / "ca.key").read_bytes(),
        "ca.pem": (config.data_dir / "ca.pem").read_bytes(),
    }
    torn = {**parts, "state.db": parts["state.db"][:20_000]}
    old_token = {**parts, "operator.token": (config.data_dir / "operator.token").read_bytes()}
    missing = {name: data for name, data in parts.items() if name != "operator.token"}
    before = {path.name: path.read_bytes() for path in config.data_dir.iterdir()}
    for wrong in (foreign, torn, old_token, missing):
        with tarfile.open(target, "w") as archive:
            for name, data in wrong.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        with pytest.raises(ConfigError):
            restoring.restore(config, target)
    target.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="no backup of a config server"):
        restoring.restore(config, target)
    with pytest.raises(StateFileError):
        restoring.restore(config, tmp_path / "nowhere")
    assert {path.name: path.read_bytes() for path in config.data_dir.iterdir()} == before


async def test_a_folder_that_is_not_whole_is_not_backed_up_over_a_good_backup(tmp_path: Path) -> None:
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    async with running(config):
        pass
    backup.backup(config, target)
    good = target.read_bytes()
    durable.replace_file(config.data_dir / "operator.token", b"another\n")
    with pytest.raises(ConfigError, match="was not backed up"):
        backup.backup(config, target)
    assert target.read_bytes() == good


async def test_a_start_removes_what_a_killed_restore_was_writing(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    config.data_dir.mkdir(mode=0o700)
    for name in ("ca.key.new", ".operator.token.new.96115380d76d"):
        (config.data_dir / name).write_bytes(b"of a backup")
    async with running(config):
        assert not list(config.data_dir.glob("*.new*"))
