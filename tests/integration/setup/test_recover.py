"""`understudy server recover` as a process: a config server whose host is gone begins again on another one, from storage and the recovery
key alone."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder.belonging import LOGS
from config_server.recovery import generation
from config_server.recovery.generation import state_blob
from config_server.setup.recovering import find
from shared import api
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.daemon.service import load_config
from shared.errors import (
    ConfigError,
    ControlStateMissingError,
    IntegrityError,
    ServerSupersededError,
    UsageError,
    WrongKeyError,
)
from shared.keys.vault import FileVault
from shared.status import AgentReport
from shared.trust.tls import TlsFiles
from tests.cli import Done
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.marks import some
from tests.setups import outcomes, places, set_up, storage, tree


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The recovery key: all that is left, beside storage."""
    (tmp_path / "gone").mkdir()
    shutil.copy(FileVault.create(tmp_path / "gone/vault.json").path, tmp_path / "recovery.key")
    return tmp_path / "recovery.key"


@pytest.fixture
def foreign_key(tmp_path: Path) -> Path:
    return FileVault.create(tmp_path / "foreign.key").path


@pytest.fixture(autouse=True)
def keeps_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config_server.background.KEEP_S", 0.1)
    monkeypatch.setattr("config_server.recovery.keeping.PAUSE_S", 0.1)


@pytest.fixture
async def files(blob_config: BlobConfig, store: BlobStore, tmp_path: Path, key: Path) -> TlsFiles:
    """An agent's, of a config server that is gone with its host."""
    site = tmp_path / "gone"
    vault_file = site / "vault.json"
    config = config_for(site, blob=blob_config, vault_file=vault_file, hosts=["127.0.0.1"], name="first")
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with server.operator() as operator, daemon(server, files) as agent:
            await agent.report(AgentReport(machine="web1", state="ordered", epoch=1))
            await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web2")
        await until(lambda: has(blob_config, key, ["web1", "web2"]))
    return files


async def has(blob: BlobConfig, key: Path, names: list[str]) -> bool:
    try:
        return (await find(blob, FileVault(key), None)).content.machines == names
    except ControlStateMissingError:
        return False


@pytest.fixture
def words(tmp_path: Path, blob_config: BlobConfig, key: Path) -> list[str]:
    return ["--recovery-key", str(key), "--listen", "127.0.0.1", *storage(blob_config), *places(tmp_path)]


async def recover(words: list[str], *more: str, **env: str) -> Done:
    return await set_up("config-server", *words, "--port", str(free_port()), *more, verb="recover", **env)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def begun(tmp_path: Path) -> ConfigServerConfig:
    return load_config(tmp_path / "etc/config-server.toml", ConfigServerConfig)


async def test_machines_and_certificates_are_there_and_the_old_server_back_again_changes_nothing(
    tmp_path: Path, words: list[str], files: TlsFiles, store: BlobStore, key: Path
) -> None:
    dry = await recover(words, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert not (tmp_path / "etc").exists()
    assert not (tmp_path / "state").exists()
    assert "It has 2 machines: web1, web2" in dry.stderr
    done = await recover(words, "--yes", "--output", "json")
    told = outcomes(done.json["steps"])
    assert (told["vault-back"], told["data-back"], told["recovery-key"], told["in-force"]) == (
        "created",
        "created",
        "created",
        "to-do",
    )
    config = begun(tmp_path)
    assert (config.name, config.hosts) == ("first", ["127.0.0.1"])
    assert config.vault_file is not None
    assert FileVault(config.vault_file).fingerprints == FileVault(key).fingerprints
    async with running(config) as server, server.operator() as operator, daemon(server, files) as agent:
        machines = (await operator.call(api.MACHINES, Nothing())).machines
        assert [machine.name for machine in machines] == ["web1", "web2"]
        await agent.report(AgentReport(machine="web1", state="ordered", epoch=1))
        found = await generation.read(store)
        assert found is not None
        assert found[0].generation == 2
        gone = config_for(tmp_path / "gone", blob=config.blob, vault_file=tmp_path / "gone/vault.json")
        async with running(gone) as old:
            await is_read_only(old)
    again = await recover(words, "--yes", "--output", "json")
    assert outcomes(again.json["steps"])["data-back"] == "kept"
    assert outcomes(again.json["steps"])["in-force"] == "checked"


async def is_read_only(old: ConfigServer) -> None:
    async with old.operator() as operator:
        with pytest.raises(ServerSupersededError):
            await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web3")


@pytest.mark.parametrize("n", some(range(1, 40), short=[2, 5, 9, 20]))
async def test_killed_anywhere_it_is_run_again(
    tmp_path: Path, words: list[str], files: TlsFiles, n: int
) -> None:
    point = f"restore.part:{n}" if n < 16 else f"setup.step:{n - 15}"
    killed = await recover(words, "--yes", UNDERSTUDY_CRASH_AT=point)
    assert killed.exit_code in (0, -signal.SIGKILL), killed.stderr  # behind the last of them it is done
    done = await recover(words, "--yes")
    assert done.exit_code == 0, done.stderr
    async with running(begun(tmp_path)) as server, server.operator() as operator:
        machines = (await operator.call(api.MACHINES, Nothing())).machines
        assert [machine.name for machine in machines] == ["web1", "web2"]


async def test_without_a_terminal_and_a_yes_nothing_is_done(
    tmp_path: Path, words: list[str], files: TlsFiles
) -> None:
    done = await recover(words)
    assert (done.exit_code, "--yes" in done.stderr) == (UsageError.exit_code, True)
    assert tree(tmp_path / "etc", tmp_path / "state") == {}


async def test_a_newest_state_that_cannot_be_read_is_said_and_an_older_one_can_be_taken(
    tmp_path: Path, words: list[str], files: TlsFiles, store: BlobStore
) -> None:
    await store.create(state_blob(7), b"understudy control state\n\0\0")
    done = await recover(words, "--yes")
    assert (done.exit_code, "--generation N (N: 1)" in done.stderr) == (IntegrityError.exit_code, True)
    done = await recover(words, "--yes", "--generation", "1")
    assert done.exit_code == 0, done.stderr
    async with running(begun(tmp_path)):
        found = await generation.read(store)
        assert found is not None
        assert found[0].generation == 8
    done = await recover(words, "--yes", "--generation", "3")
    assert (done.exit_code, "generations 1, 7" in done.stderr) == (ControlStateMissingError.exit_code, True)


async def test_another_s_key_and_an_older_installation_are_told_as_such(
    tmp_path: Path, words: list[str], files: TlsFiles, foreign_key: Path, store: BlobStore
) -> None:
    done = await recover(words, "--yes", "--recovery-key", str(foreign_key))
    assert (done.exit_code, WrongKeyError.code in done.stderr) == (WrongKeyError.exit_code, True)
    for blob in (await generation.states(store)).values():
        await store.delete(blob)
    done = await recover(words, "--yes")
    assert (done.exit_code, "docs/install.md" in done.stderr) == (ControlStateMissingError.exit_code, True)


async def test_nothing_goes_over_another_vault_file_or_over_a_config_server_s_data(
    tmp_path: Path, words: list[str], files: TlsFiles
) -> None:
    place = tmp_path / "etc/config-server"
    place.mkdir(parents=True, mode=0o700)
    FileVault.create(place / "vault.json")
    before = (place / "vault.json").read_bytes()
    done = await recover(words, "--yes")
    assert (done.exit_code, "Move it away" in done.stderr) == (ConfigError.exit_code, True)
    assert (place / "vault.json").read_bytes() == before
    (place / "vault.json").unlink()
    shutil.copytree(tmp_path / "gone/config-server", tmp_path / "state/config-server")
    there = tree(tmp_path / "state")
    done = await recover(words, "--yes")
    assert (done.exit_code, "it may be newer" in done.stderr) == (ConfigError.exit_code, True)
    after = tree(tmp_path / "state")
    assert {name: found for name, found in after.items() if not name.endswith(LOGS)} == {
        name: found for name, found in there.items() if not name.endswith(LOGS)
    }
