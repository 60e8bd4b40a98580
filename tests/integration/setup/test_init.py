"""`understudy init` as a process, against real blob storage, in folders of the test's own; and the config server that starts with what it
made."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
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
from config_server.data_folder import tools
from config_server.data_folder.belonging import RESTORING
from shared.blob import BlobConfig, BlobStore
from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.daemon.service import load_config
from shared.errors import ConfigError
from shared.keys.vault import FileVault, add, machine_key
from shared.keys.vault_record import RecordedVault
from shared.machine.storage import MachineStorage
from tests.cli import ROOT, Done, begun, ended, understudy
from tests.config_parts import running
from tests.dispositions import inherited
from tests.marks import some
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


def daemon(config: Path) -> contextlib.AbstractAsyncContextManager[None]:
    return started("--config", config)


@contextlib.asynccontextmanager
async def started(*words: str | Path) -> AsyncIterator[None]:
    """The config server as a process of its own, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "config_server", *words),
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


@pytest.mark.parametrize(
    "way", some(["whole", "from its folder", "around", "in one word"], short=("around",))
)
async def test_a_blank_in_a_folder_s_name_makes_no_difference(
    tmp_path: Path, arguments: list[str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc = tmp_path / "my etc"
    etc.mkdir()
    arguments[arguments.index("--etc") + 1] = str(etc)
    done = await init(arguments)
    assert done.exit_code == 0, done.stderr
    assert f"export UNDERSTUDY_PROFILE='{etc}/profile.toml'" in done.stdout
    config = etc / "config-server.toml"
    with monkeypatch.context() as here:
        here.chdir(etc)
        here.setenv("PYTHONPATH", str(ROOT))
        given: tuple[str | Path, ...] = {
            "whole": ("--config", config),
            "from its folder": ("--config", Path(config.name)),
            "around": ("--config", etc / "../my etc" / config.name),
            "in one word": (f"--config={config}",),
        }[way]
        async with started(*given):
            here.undo()
            again = (await init(arguments, "--output", "json")).json
    assert (again["changed"], outcomes(again["steps"])["port"]) == (False, "kept")


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


async def test_the_end_says_which_hosts_are_left(tmp_path: Path, arguments: list[str]) -> None:
    """Also at an upgrade, which is the same command in an installation that is whole."""
    first = await init(arguments)
    assert "Next, for each host that is not part of it yet: understudy token create ROLE NAME" in first.stdout
    file = tmp_path / "etc/profile.toml"
    url = profile.load(file).server
    roles = ("process-server", "master-target", "agent")
    async with daemon(tmp_path / "etc/config-server.toml"):
        for role, lacks in zip(roles, ("No master-target and no agent has", "No agent has", ""), strict=True):
            words = ("token", "create", role, "one", "--host", "127.0.0.1")
            token = (await understudy(*words, UNDERSTUDY_PROFILE=str(file))).json["token"]
            client = ControlClient(url, await enrol.enrol(url, token, tmp_path / role))
            await client.report({"state": "ordered"})
            await client.close()
            last = (await init(arguments)).stdout.splitlines()[-1]
            assert (lacks in last) if lacks else last.startswith("Nothing is left to do here."), last
        json_ = await init(arguments, "--output", "json")
    assert "Nothing is left" not in json_.stdout + json_.stderr


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
    _, _, command = report["error"]["action"].partition("All that was found: ")
    again = await understudy(*shlex.split(command)[1:], "--output", "json")
    assert again.exit_code == 5, "the advised command asks the same account by the same key and CA"
    found = {one["name"]: (one["state"], one["code"]) for one in json.loads(again.stdout)["findings"]}
    assert (found["tls"], found["credentials"]) == (("ok", ""), ("error", "US495"))


async def test_storage_with_a_ca_of_its_own_is_told_by_the_option_that_names_it(
    tmp_path: Path, arguments: list[str]
) -> None:
    at = arguments.index("--blob-ca-file")
    done = await init([*arguments[:at], *arguments[at + 2 :]])
    assert (done.exit_code, "US618" in done.stderr, made(tmp_path)) == (5, True, {})
    assert "Give the CA that signed it (--blob-ca-file FILE; in a configuration ca_file)" in done.stderr


async def test_a_container_with_an_installation_gets_no_second_vault(
    tmp_path: Path, arguments: list[str], machine_storage: MachineStorage
) -> None:
    await machine_storage.find_or_create("web1")
    done = await init(arguments)
    assert (done.exit_code, "US627" in done.stderr) == (5, True)
    assert "machines/web1.json" in done.stderr
    assert made(tmp_path) == {}


@pytest.mark.parametrize("known_by", ["record", "machine"])
async def test_a_vault_of_this_host_gets_no_container_of_another_installation(
    tmp_path: Path,
    arguments: list[str],
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    known_by: str,
) -> None:
    """Begun with one container; then, with the configuration moved away as is advised, again with another."""
    theirs = FileVault.create(tmp_path / "theirs.json")
    if known_by == "record":
        await RecordedVault(theirs, lambda: machine_storage).check()
    else:  # of an earlier version
        await machine_key(await machine_storage.find_or_create("web1"), theirs, "web1", create=True)
    at = arguments.index("--blob-container") + 1
    first = [*arguments[:at], f"{blob_config.container}-first", *arguments[at + 1 :]]
    assert (await init(first)).exit_code == 0
    (tmp_path / "etc/config-server.toml").unlink()
    before = made(tmp_path)
    done = await init(arguments)
    assert (done.exit_code, "US627" in done.stderr, theirs.current in done.stderr) == (5, True, True)
    assert made(tmp_path) == before
    vault = tmp_path / "etc/config-server/vault.json"
    add(vault, theirs.path)  # it is a newer one of that installation
    assert (await init(arguments, "--recovery-key", str(tmp_path / "other.key"))).exit_code == 0


@pytest.mark.parametrize("lost", ["etc/config-server/vault.json", "state/config-server/ca.pem"])
async def test_what_was_lost_is_not_made_anew(tmp_path: Path, arguments: list[str], lost: str) -> None:
    assert (await init(arguments)).exit_code == 0
    (tmp_path / lost).unlink()
    done = await init(arguments)
    assert (done.exit_code, "is gone" in done.stderr, (tmp_path / lost).exists()) == (2, True, False)


async def test_a_vault_that_was_moved_is_found_where_the_configuration_says(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    (tmp_path / "recovery.key").unlink()  # it was taken away
    config, old, new = (
        tmp_path / "etc/config-server.toml",
        load(tmp_path).vault_file,
        tmp_path / "safe/vault.json",
    )
    assert old is not None
    new.parent.mkdir(0o700)
    old.rename(new)
    for file in (config, tmp_path / "etc/profile.toml"):
        file.write_text(file.read_text().replace(str(old), str(new)))
    async with daemon(config):  # it notes its CA beside the vault
        for given in (arguments, places(tmp_path)):
            report = (await init(given, "--output", "json")).json
            told = outcomes(report["steps"])
            assert (report["error"], report["changed"]) == (None, False)
            assert {told[step] for step in ("vault", "recovery-key", "configuration", "profile")} == {"kept"}
    assert not old.exists()


@pytest.mark.parametrize(
    "left",
    some(["nothing", "an empty folder", "a CA without a database"], short=("a CA without a database",)),
)
@pytest.mark.parametrize("told_by", some(["note", "profile", "storage"], short=("note",)))
async def test_a_data_folder_that_is_gone_is_not_made_anew(
    tmp_path: Path, arguments: list[str], machine_storage: MachineStorage, told_by: str, left: str
) -> None:
    """Its file system is not mounted, its disk was lost: a new CA would lock out every daemon."""
    assert (await init(arguments)).exit_code == 0
    data = tmp_path / "state/config-server"
    ca = (data / "ca.pem").read_bytes()
    if told_by != "note":
        (tmp_path / "etc/config-server/vault.json.ca").unlink()  # an earlier version has written none
    if told_by == "storage":
        (tmp_path / "etc/profile.toml").unlink()
        await machine_storage.find_or_create("web1")  # as a server does
    await asyncio.to_thread(lose, data, left)
    before = made(tmp_path)
    for more in ([], ["--dry-run"]):
        done = await init(arguments, *more)
        assert (done.exit_code, "is gone, or is empty" in done.stderr) == (2, True), done.stderr
        told = {
            "note": "vault.json.ca names the CA",
            "profile": "names the operator's token",
            "storage": "has written machines/web1.json",
        }[told_by]
        for words in (told, "mount that", "config_server restore --config", "--new-ca"):
            assert words in done.stderr
    assert made(tmp_path) == before
    done = await init(arguments, "--new-ca")
    assert (done.exit_code, "a new one is begun, as was asked for" in done.stdout) == (0, True), done.stderr
    # One that was left is no exception: beside an empty database it would admit who was revoked.
    assert (data / "ca.pem").read_bytes() != ca
    assert ("and is gone" in done.stdout) == (left == "a CA without a database")
    async with daemon(tmp_path / "etc/config-server.toml"):
        again = (await init(arguments, "--new-ca", "--output", "json")).json
    assert (again["changed"], outcomes(again["steps"])["data-folder"]) == (False, "kept")


def lose(data: Path, left: str) -> None:
    if left == "a CA without a database":
        for path in (data / "state.db", data / "operator.token"):
            path.unlink()
        return
    shutil.rmtree(data)
    if left == "an empty folder":
        data.mkdir(0o700)


async def test_a_data_folder_that_is_gone_comes_back_from_a_backup(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    data, config = tmp_path / "state/config-server", str(tmp_path / "etc/config-server.toml")
    ca, backup = (data / "ca.pem").read_bytes(), str(tmp_path / "backup.tar")
    assert tools.main("backup", ["--config", config, "--to", backup]) == 0
    await asyncio.to_thread(lose, data, "nothing")
    assert (await init(arguments)).exit_code == 2
    assert tools.main("restore", ["--config", config, "--from", backup]) == 0
    report = (await init(arguments, "--output", "json")).json
    assert (report["changed"], outcomes(report["steps"])["ca"]) == (False, "kept")
    assert (data / "ca.pem").read_bytes() == ca


async def test_another_host_takes_the_place_of_the_config_server_as_errors_say(
    tmp_path: Path, arguments: list[str], machine_storage: MachineStorage
) -> None:
    """It has the backup, the recovery key and the account's key: no configuration, and nothing of the installation."""
    assert (await init(arguments)).exit_code == 0
    await machine_storage.find_or_create("web1")  # as a server does
    etc, data = tmp_path / "etc/config-server", tmp_path / "state/config-server"
    ca, backup = (data / "ca.pem").read_bytes(), str(tmp_path / "backup.tar")
    config = str(tmp_path / "etc/config-server.toml")
    assert tools.main("backup", ["--config", config, "--to", backup]) == 0
    for folder in (tmp_path / "etc", tmp_path / "state"):
        await asyncio.to_thread(shutil.rmtree, folder)
    kept = (tmp_path / "recovery.key").rename(tmp_path / "safe")
    done = await init(arguments)
    assert (done.exit_code, "US627" in done.stderr) == (5, True)
    assert f"or the recovery key, at {etc / 'vault.json'} (" in done.stderr
    kept.rename(tmp_path / "recovery.key")  # the same stick, mounted there again
    done = await init(arguments)
    assert (done.exit_code, "US626" in done.stderr) == (5, True)
    assert f"put a copy of it at {etc / 'vault.json'} (" in done.stderr
    etc.mkdir(parents=True)
    shutil.copy(tmp_path / "recovery.key", etc / "vault.json")
    done = await init(arguments)
    assert (done.exit_code, "is gone, or is empty" in done.stderr) == (2, True)
    [command] = re.findall(r"\(python -m config_server (restore .*?) --from FILE\)", done.stderr)
    assert tools.main("restore", [*shlex.split(command)[1:], "--from", backup]) == 0
    report = (await init(arguments, "--output", "json")).json
    assert (report["error"], outcomes(report["steps"])["ca"]) == (None, "kept")
    assert (data / "ca.pem").read_bytes() == ca
    async with daemon(tmp_path / "etc/config-server.toml"):
        assert not (await init(arguments, "--output", "json")).json["changed"]


@pytest.mark.parametrize("words", [[], ["--config", "x.toml", "--data-dir", "y"]])
def test_a_restore_is_told_its_folder_in_one_way(words: list[str]) -> None:
    with pytest.raises(SystemExit) as told:
        tools.main("restore", [*words, "--from", "backup.tar"])
    assert told.value.code == 2


async def test_a_data_folder_that_is_half_restored_gets_no_new_ca(
    tmp_path: Path, arguments: list[str]
) -> None:
    data = tmp_path / "state/config-server"
    data.mkdir(parents=True, mode=0o700)
    (data / RESTORING).touch()
    done = await init(arguments)
    assert (done.exit_code, "half restored" in done.stderr) == (2, True)
    assert [path.name for path in data.iterdir()] == [RESTORING]


@pytest.mark.parametrize(
    "place", ["etc/config-server/vault.json", "etc/recovery.key", "state/config-server/recovery.key"]
)
async def test_a_recovery_key_that_would_be_the_vault_or_lost_with_it_ends_it_before_anything_is_made(
    tmp_path: Path, arguments: list[str], place: str
) -> None:
    arguments[arguments.index("--recovery-key") + 1] = str(tmp_path / place)
    done = await init(arguments)
    assert (done.exit_code, "The recovery key cannot be put into" in done.stderr) == (2, True), done.stderr
    assert made(tmp_path) == {}


@pytest.mark.parametrize("umask", some([0o000, 0o027, 0o077], short=(0o000,)))
async def test_who_may_read_what_does_not_depend_on_the_umask(
    tmp_path: Path, arguments: list[str], umask: int
) -> None:
    before = os.umask(umask)
    try:
        done = await init(arguments)
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.stderr
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for folder in ("etc", "state")
        for path in (tmp_path / folder, *(tmp_path / folder).rglob("*"))
    }
    public = {"etc", "state", "etc/config-server.toml", "etc/profile.toml", "state/config-server/ca.pem"}
    for name, mode in modes.items():
        is_folder = (tmp_path / name).is_dir()
        assert mode == (
            (0o755 if is_folder else 0o644) if name in public else (0o700 if is_folder else 0o600)
        ), name


async def test_secrets_that_others_could_read_are_closed_and_told(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    data = tmp_path / "state/config-server"
    for path, mode in ((data, 0o777), (data / "ca.key", 0o644), (data / "operator.token", 0o640)):
        path.chmod(mode)
    before = made(tmp_path)
    dry = (await init(arguments, "--dry-run", "--output", "json")).json
    assert (dry["changed"], outcomes(dry["steps"])["ca"]) == (False, "would-mend")
    assert made(tmp_path) == before
    report = (await init(arguments, "--output", "json")).json
    steps = {step["what"]: step for step in report["steps"]}
    for path, says in (
        (data, "others can read and write it: its mode is 0777"),
        (data / "ca.pem", "ca.key: others can read it: its mode is 0644"),
        (data / "operator.token", "operator.token: others can read it: its mode is 0640"),
    ):
        told = steps[str(path)]
        assert (told["outcome"], says in told["detail"], told["action"] != "") == ("mended", True, True)
    assert report["changed"]
    modes = [stat.S_IMODE((data / name).stat().st_mode) for name in ("", "ca.key", "operator.token")]
    assert modes == [0o700, 0o600, 0o600]
    assert not (await init(arguments, "--output", "json")).json["changed"]


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


@pytest.mark.parametrize("told_by", some(["note", "profile"], short=("note",)))
async def test_a_token_that_was_taken_away_is_not_made_anew_but_by_a_start(
    tmp_path: Path, arguments: list[str], told_by: str
) -> None:
    """Whoever keeps it elsewhere has a token that ends with the next one. A start is how an administrator changes it."""
    assert (await init(arguments)).exit_code == 0
    token, config = tmp_path / "state/config-server/operator.token", tmp_path / "etc/config-server.toml"
    before = token.read_text()

    async def refused() -> None:
        done = await init(arguments)
        assert (done.exit_code, "operator.token is gone" in done.stderr) == (2, True), done.stderr
        assert "Put it back" in done.stderr
        assert not token.exists()

    async with daemon(config):
        token.unlink()
        if told_by == "profile":
            (tmp_path / "etc/config-server/vault.json.ca").unlink()
        await refused()
    await refused()
    async with daemon(config):
        assert token.read_text() != before
        assert (await init(arguments)).exit_code == 0


@pytest.mark.parametrize("left", ["an empty folder", "a CA without a database"])
async def test_a_server_whose_data_folder_is_gone_does_not_begin_anew(
    tmp_path: Path, arguments: list[str], left: str
) -> None:
    """At the boot at which its file system is not mounted nobody asks init first. And storage may be away."""
    assert (await init(arguments)).exit_code == 0
    data, config = tmp_path / "state/config-server", load(tmp_path)
    async with running(config):
        pass
    shutil.copytree(data, tmp_path / "kept")
    lose(data, left)
    before = {path.name for path in data.iterdir()}
    assert config.blob is not None
    away = msgspec.structs.replace(
        config, blob=msgspec.structs.replace(config.blob, url="https://127.0.0.1:1/away")
    )
    for each in (config, away):
        with pytest.raises(ConfigError, match="is gone, or is empty") as refused:
            async with running(each):
                pass
        assert "vault.json.ca names its CA" in refused.value.cause
        assert "mount that" in refused.value.action
        assert {path.name for path in data.iterdir()} - before <= {"config-server.lock"}
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "kept", data)
    async with running(away):  # storage that is away keeps no server from starting that has its data
        pass


async def test_a_server_with_the_data_of_another_ca_is_not_started_and_init_tells(
    tmp_path: Path, arguments: list[str]
) -> None:
    """An earlier version began anew in an empty folder; or the wrong file system is mounted."""
    assert (await init(arguments)).exit_code == 0
    data, config, note = (
        tmp_path / "state/config-server",
        load(tmp_path),
        tmp_path / "etc/config-server/vault.json.ca",
    )
    noted = note.read_text()
    note.unlink()
    data.rename(tmp_path / "unmounted")
    async with running(config):  # as an earlier version did
        assert note.read_text() != noted
    note.write_text(noted)
    with pytest.raises(ConfigError, match="is not the one that this installation had"):
        async with running(config):
            pass
    done = await init(arguments)
    assert (done.exit_code, "is not the one that this installation had" in done.stderr) == (2, True)
    assert note.read_text() == noted
    done = await init(arguments, "--new-ca")
    assert (done.exit_code, "it is taken, as was asked for" in done.stdout) == (0, True), done.stderr
    async with running(config):
        assert note.read_text() != noted


async def test_after_a_restore_of_another_ca_s_backup_its_ca_is_the_installation_s(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert (await init(arguments)).exit_code == 0
    config, backup = str(tmp_path / "etc/config-server.toml"), str(tmp_path / "backup.tar")
    assert tools.main("backup", ["--config", config, "--to", backup]) == 0
    lose(tmp_path / "state/config-server", "nothing")
    assert (await init(arguments, "--new-ca")).exit_code == 0
    assert tools.main("restore", ["--config", config, "--from", backup]) == 0
    async with running(load(tmp_path)):
        pass
    assert not (await init(arguments, "--output", "json")).json["changed"]


@pytest.mark.parametrize(
    "number", some([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], short=(signal.SIGTERM,))
)
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
