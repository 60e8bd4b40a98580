"""`understudy server recover` as a process: a config server whose host is gone begins again on another one, from storage and the recovery
key alone."""

from __future__ import annotations

import shutil
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


async def protects(blob: BlobConfig, tmp_path: Path, key: Path, names: list[str]) -> None:
    """The config server that was goes on, and its state has these machines then."""
    gone = config_for(
        tmp_path / "gone", blob=blob, vault_file=tmp_path / "gone/vault.json", hosts=["127.0.0.1"]
    )
    async with running(gone) as server, server.operator() as operator:
        for name in names:
            body = Protection(disks=["/dev/loop0"], offline=True)
            await operator.call(api.PROTECT, body, machine=name)
        await until(lambda: has(blob, key, sorted({"web1", "web2", *names})))


async def test_a_second_time_what_is_shown_is_put_back_and_not_what_an_earlier_run_left(
    tmp_path: Path, words: list[str], files: TlsFiles, blob_config: BlobConfig, key: Path
) -> None:
    """A drill, which nobody started."""
    assert (await recover(words, "--yes")).exit_code == 0
    await protects(blob_config, tmp_path, key, ["web3"])
    done = await recover(words, "--yes")
    assert done.exit_code == 0, done.stderr
    assert "web1, web2, web3" in done.stderr
    async with running(begun(tmp_path)) as server, server.operator() as operator:
        machines = (await operator.call(api.MACHINES, Nothing())).machines
        assert [machine.name for machine in machines] == ["web1", "web2", "web3"]


async def test_one_that_was_in_force_gives_way_to_nothing_by_itself(
    tmp_path: Path, words: list[str], files: TlsFiles, blob_config: BlobConfig, key: Path
) -> None:
    """It was superseded since, by one that is lost, too."""
    assert (await recover(words, "--yes")).exit_code == 0
    async with running(begun(tmp_path)):
        pass
    third = [word.replace(str(tmp_path / "etc"), str(tmp_path / "etc3")) for word in words]
    third = [word.replace(str(tmp_path / "state"), str(tmp_path / "state3")) for word in third]
    assert (await recover(third, "--yes")).exit_code == 0
    async with running(load_config(tmp_path / "etc3/config-server.toml", ConfigServerConfig)) as server:
        await until(lambda: is_newest(blob_config, key, 3))
    assert server
    before = tree(tmp_path / "state")
    done = await recover(words, "--yes")
    assert (done.exit_code, "move the folder away" in done.stderr) == (ConfigError.exit_code, True)
    after = tree(tmp_path / "state")
    assert {name: found for name, found in after.items() if not name.endswith(LOGS)} == {
        name: found for name, found in before.items() if not name.endswith(LOGS)
    }


async def is_newest(blob: BlobConfig, key: Path, number: int) -> bool:
    return (await find(blob, FileVault(key), None)).generation == number


async def test_one_that_was_not_started_takes_nothing_over_from_a_later_recovery(
    tmp_path: Path, words: list[str], files: TlsFiles, store: BlobStore
) -> None:
    assert (await recover(words, "--yes")).exit_code == 0
    third = [word.replace(str(tmp_path / "etc"), str(tmp_path / "etc3")) for word in words]
    third = [word.replace(str(tmp_path / "state"), str(tmp_path / "state3")) for word in third]
    assert (await recover(third, "--yes")).exit_code == 0
    async with running(load_config(tmp_path / "etc3/config-server.toml", ConfigServerConfig)):
        async with running(begun(tmp_path)) as late:
            await is_read_only(late)
        found = await generation.read(store)
        assert found is not None
        assert found[0].generation == 2


async def test_the_vault_file_itself_is_no_recovery_key_since_that_is_deleted_in_the_end(
    tmp_path: Path, words: list[str], files: TlsFiles, key: Path
) -> None:
    place = tmp_path / "etc/config-server/vault.json"
    place.parent.mkdir(parents=True, mode=0o700)
    shutil.copy(key, place)
    (tmp_path / "link").hardlink_to(place)
    for same in (place, tmp_path / "link"):
        done = await recover(words, "--yes", "--recovery-key", str(same))
        assert (done.exit_code, "give the copy" in done.stderr) == (UsageError.exit_code, True)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('data_dir = "STATE"\n[database]\nurl = "postgresql://u@h/d"\n', "names a database of PostgreSQL"),
        ('data_dir = "/elsewhere"\n', "names the data folder /elsewhere"),
    ],
)
async def test_a_configuration_that_means_something_else_is_refused_before_anything_is_changed(
    tmp_path: Path, words: list[str], files: TlsFiles, line: str, why: str
) -> None:
    config = tmp_path / "etc/config-server.toml"
    config.parent.mkdir()
    config.write_text(line.replace("STATE", str(tmp_path / "state/config-server")))
    done = await recover(words, "--yes")
    assert (done.exit_code, why in done.stderr) == (ConfigError.exit_code, True), done.stderr
    assert not (tmp_path / "state").exists()


async def test_a_word_of_who_is_in_force_that_cannot_be_read_is_told_before_anything_is_changed(
    tmp_path: Path, words: list[str], files: TlsFiles, store: BlobStore
) -> None:
    found = await generation.read(store)
    assert found is not None
    await store.replace(generation.BLOB, b"garbage", if_match=found[1])
    done = await recover(words, "--yes")
    assert (done.exit_code, "generation.json in storage cannot be read" in done.stderr) == (
        IntegrityError.exit_code,
        True,
    )
    assert not (tmp_path / "state").exists()
