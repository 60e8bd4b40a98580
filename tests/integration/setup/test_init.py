"""`understudy init` as a process, against real blob storage, in folders of the test's own; and the config server that starts with what it
made."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server.cli import profile
from config_server.config import ConfigServerConfig
from shared import api
from shared.blob import BlobConfig, BlobStore
from shared.machine_storage import MachineStorage
from shared.messages import Nothing
from shared.service import load_config
from shared.vault import FileVault
from tests.cli import Done, begun, ended, understudy
from tests.config_parts import running
from tests.dispositions import inherited
from tests.setups import outcomes, places, storage, tree


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def arguments(tmp_path: Path, blob_config: BlobConfig) -> list[str]:
    return [
        *("--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(free_port())),
        *("--recovery-key", str(tmp_path / "recovery.key")),
        *storage(blob_config),
        *places(tmp_path),
    ]


@contextlib.asynccontextmanager
async def daemon(config: Path) -> AsyncIterator[None]:
    """The config server as a process of its own, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "config_server", "--config", config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = ""
    while "listening" not in said:
        line = (await process.stdout.readline()).decode()
        assert line, said
        said += line
    try:
        yield
    finally:
        process.terminate()
        await process.communicate()


async def init(arguments: Sequence[str], *more: str) -> Done:
    return await understudy("init", *arguments, *more)


def made(folder: Path) -> dict[str, tuple[str, bytes]]:
    return tree(folder / "etc", folder / "state", folder / "recovery.key")


def load(tmp_path: Path) -> ConfigServerConfig:
    return load_config(tmp_path / "etc/config-server.toml", ConfigServerConfig)


async def test_the_config_server_starts_with_what_it_made_and_the_operator_gets_in(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = await init(arguments)
    assert done.exit_code == 0, done.stderr
    assert "created" in done.stdout
    assert f"export UNDERSTUDY_PROFILE={tmp_path}/etc/profile.toml" in done.stdout
    config = load(tmp_path)
    assert (config.hosts, config.data_dir) == (["127.0.0.1"], tmp_path / "state/config-server")
    assert "# The port on which it is reached" in (tmp_path / "etc/config-server.toml").read_text()
    before = made(tmp_path)
    async with daemon(tmp_path / "etc/config-server.toml"):
        listed = await understudy("machine", "list", UNDERSTUDY_PROFILE=str(tmp_path / "etc/profile.toml"))
        assert listed.json == []
        again = (await init(arguments, "--output", "json")).json
    assert not again["changed"]
    told = outcomes(again["steps"])
    assert (told["port"], told["answers"], told["vault"]) == ("kept", "checked", "kept")
    for path, found in before.items():  # the server has its own certificate and logs beside them by now
        assert path.endswith("state.db") or tree(tmp_path / "etc", tmp_path / "state")[path] == found, path


async def test_the_recovery_key_is_a_vault_file_of_the_operators_alone(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    key = tmp_path / "recovery.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    vault = load(tmp_path).vault_file
    assert vault is not None
    assert FileVault(key).fingerprints == FileVault(vault).fingerprints
    still = (await init(arguments, "--output", "json")).json["steps"]
    [told] = [step for step in still if step["step"] == "recovery-key"]
    assert (told["outcome"], "Take it off this host" in told["action"]) == ("warning", True)
    key.unlink()  # it was taken away
    again = (await init(arguments, "--output", "json")).json
    assert (outcomes(again["steps"])["recovery-key"], key.exists()) == ("kept", False)


async def test_a_second_run_changes_nothing_with_options_and_without(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    before = made(tmp_path)
    for given in (arguments, places(tmp_path)):
        again = await init(given)
        assert again.exit_code == 0, again.stderr
        assert "Nothing was changed" in again.stdout
        assert "created" not in again.stdout
        assert made(tmp_path) == before


async def test_a_dry_run_says_what_it_would_do_and_touches_nothing(
    tmp_path: Path, arguments: list[str], blob_config: BlobConfig
) -> None:
    report = (await init(arguments, "--dry-run", "--output", "json")).json
    told = outcomes(report["steps"])
    assert (report["dry_run"], report["changed"]) == (True, False)
    assert {told[step] for step in ("vault", "ca", "operator", "recovery-key", "configuration")} == {
        "would-create"
    }
    assert told["storage"] == "would-check"
    assert made(tmp_path) == {}
    async with BlobStore.connect(blob_config) as store:
        assert [name async for name, _ in store.list_containers(blob_config.container)] == []


async def test_what_an_administrator_changed_is_kept_and_told(tmp_path: Path, arguments: list[str]) -> None:
    assert (await init(arguments)).exit_code == 0
    file = tmp_path / "etc/config-server.toml"
    file.write_text(file.read_text().replace("#grant_hours = 8.0", "grant_hours = 2.0"))
    at = arguments.index("--host")
    other = [*arguments[:at], *arguments[at + 2 :], "--host", "other.example.com"]
    before = file.read_bytes()
    report = (await init(other, "--output", "json")).json
    [told] = [step for step in report["steps"] if step["step"] == "configuration"]
    assert told["outcome"] == "differs"
    assert 'hosts is ["127.0.0.1"] there, and would be ["other.example.com"]' in told["detail"]
    assert file.read_bytes() == before
    report = (await init(arguments, "--output", "json")).json
    [told] = [step for step in report["steps"] if step["step"] == "configuration"]
    assert (told["outcome"], told["detail"]) == ("kept", "it also sets grant_hours")


async def test_a_file_in_the_recovery_key_s_place_is_never_written_over(
    tmp_path: Path, arguments: list[str]
) -> None:
    key = tmp_path / "recovery.key"
    key.write_text("somebody's")
    done = await init(arguments)
    assert (done.exit_code, "US626" in done.stderr, key.read_text()) == (5, True, "somebody's")


async def test_storage_is_checked_before_anything_is_made(tmp_path: Path, arguments: list[str]) -> None:
    other = tmp_path / "other.key"
    other.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    other.chmod(0o600)
    at = arguments.index("--blob-key-file")
    done = await init([*arguments[: at + 1], str(other), *arguments[at + 2 :], "--output", "json"])
    assert done.exit_code == 5
    report: Any = json.loads(done.stdout)
    assert (report["error"]["code"], report["steps"]) == ("US618", [])
    assert "credentials" in report["error"]["cause"]
    assert made(tmp_path) == {}


async def test_a_container_with_an_installation_gets_no_second_vault(
    tmp_path: Path, arguments: list[str], machine_storage: MachineStorage
) -> None:
    await machine_storage.find_or_create("web1")
    done = await init(arguments)
    assert (done.exit_code, "US627" in done.stderr) == (5, True)
    assert "machines/web1.json" in done.stderr
    assert made(tmp_path) == {}


@pytest.mark.parametrize("lost", ["etc/config-server/vault.json", "state/config-server/ca.pem"])
async def test_what_was_lost_is_not_made_anew(tmp_path: Path, arguments: list[str], lost: str) -> None:
    assert (await init(arguments)).exit_code == 0
    (tmp_path / lost).unlink()
    done = await init(arguments)
    assert (done.exit_code, "is gone" in done.stderr, (tmp_path / lost).exists()) == (2, True, False)


async def test_a_port_that_somebody_has_ends_it_before_anything_is_made(
    tmp_path: Path, arguments: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", int(arguments[arguments.index("--port") + 1]))):
        done = await init(arguments)
    assert (done.exit_code, "US102" in done.stderr, "listens on it" in done.stderr) == (2, True, True)
    assert made(tmp_path) == {}


async def test_what_nobody_can_be_asked_is_named_all_at_once(tmp_path: Path) -> None:
    done = await init(places(tmp_path))
    assert done.exit_code == 2
    assert "Missing: --host, --recovery-key, --blob-url" in done.stderr


async def test_the_profile_leads_round_a_config_server_that_is_gone(
    tmp_path: Path, arguments: list[str], blob_config: BlobConfig
) -> None:
    assert (await init(arguments)).exit_code == 0
    found = profile.load(tmp_path / "etc/profile.toml")
    assert found.rescue is not None
    assert found.rescue.blob == blob_config
    FileVault(found.rescue.vault_file)


async def test_the_common_option_for_the_form_of_output_holds_here_too(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = await understudy("--output", "json", "init", *arguments, "--dry-run")
    assert msgspec.json.decode(done.stdout)["role"] == "config-server"
    assert "usage: understudy init" in (await understudy("init", "--help")).stdout


async def test_another_operator_token_is_made_where_it_was_deleted(
    tmp_path: Path, arguments: list[str]
) -> None:
    """As by a start: that is how an administrator changes it."""
    assert (await init(arguments)).exit_code == 0
    token = tmp_path / "state/config-server/operator.token"
    before = token.read_text()
    token.unlink()
    assert outcomes((await init(arguments, "--output", "json")).json["steps"])["operator"] == "created"
    assert token.read_text() != before
    async with running(load(tmp_path)) as server, server.operator() as operator:
        await operator.call(api.MACHINES, Nothing())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_one_that_is_interrupted_says_that_it_can_go_on(
    tmp_path: Path, arguments: list[str], number: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        at = arguments.index("--blob-url") + 1
        arguments[at] = f"https://127.0.0.1:{silent.getsockname()[1]}/account"
        with inherited(signal.SIG_DFL, number):
            process = await begun("init", *arguments)
        (await asyncio.get_running_loop().sock_accept(silent))[0].close()
        process.send_signal(number)
        done = await ended(process)
    assert (done.exit_code, "The same command again goes on from here" in done.stderr) == (130, True)
    assert made(tmp_path) == {}
