"""`python -m ROLE setup` as a process, against a real config server and real blob storage, in folders of the test's own."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig
from master_target.config import MasterTargetConfig
from process_server.config import ProcessServerConfig
from shared.blob import BlobConfig
from shared.control.enrol import NEW_KEY
from shared.daemon.service import load_config
from shared.setup import command, host
from shared.setup.host import alone
from shared.trust import identity
from shared.vocabulary import Role
from tests.cli import Done
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.loopdisk import loop_disk
from tests.setups import outcomes, places, set_up, storage, tree

SERVERS = ("process-server", "master-target")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


async def token_file(server: ConfigServer, folder: Path, role: str, name: str) -> Path:
    file = folder / f"{role}.token"
    file.write_text((await server.token(role, name)).token + "\n")
    return file


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def arguments(
    server: ConfigServer, folder: Path, role: str, blob: BlobConfig, name: str = "one"
) -> list[str]:
    given = ["--config-server", server.url, *places(folder)]
    given += ["--token-file", str(await token_file(server, folder, role, name))]
    given += storage(blob)
    return [*given, "--port", str(free_port())] if role == "process-server" else given


def made(folder: Path) -> dict[str, tuple[str, bytes]]:
    return tree(folder / "etc", folder / "state")


@pytest.mark.parametrize("role", SERVERS)
async def test_a_server_enrols_and_gets_the_configuration_by_which_it_can_start(
    role: str, server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, role, blob_config, "srv1")
    done = await set_up(role, *given)
    assert done.exit_code == 0, done.stderr
    types: dict[str, type[Any]] = {"process-server": ProcessServerConfig, "master-target": MasterTargetConfig}
    config = load_config(tmp_path / f"etc/{role}.toml", types[role])
    assert (config.name, config.control_url, config.blob) == ("srv1", server.url, blob_config)
    identity.check_name(config.tls, f"{role}:srv1")
    identity.check_certificate(config.tls)
    assert config.tls.key.stat().st_mode & 0o777 == 0o600
    assert f"-m {role.replace('-', '_')} --config {tmp_path}/etc/{role}.toml" in done.stdout
    shows = f"Next, on the config server: understudy daemon list shows {role} srv1 as soon as it reports."
    assert done.stdout.splitlines()[-1] == shows
    before = made(tmp_path)
    again = (await set_up(role, *given, "--output", "json")).json  # the token is used up: it is not needed
    assert (again["changed"], outcomes(again["steps"])["certificate"]) == (False, "kept")
    without = await set_up(role, *places(tmp_path))
    assert without.exit_code == 0, "what the file says needs no options"
    assert without.stdout.splitlines()[-1] == shows
    assert made(tmp_path) == before


@pytest.mark.parametrize("role", SERVERS)
async def test_a_dry_run_enrols_nobody(
    role: str, server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, role, blob_config)
    report = (await set_up(role, *given, "--dry-run", "--output", "json")).json
    told = outcomes(report["steps"])
    assert (told["certificate"], told["configuration"], told["config-server"]) == (
        "would-create",
        "would-create",
        "checked",
    )
    assert made(tmp_path) == {}
    assert (await set_up(role, *given)).exit_code == 0, "the token is still good"


async def agent_arguments(server: ConfigServer, folder: Path, disk: str) -> list[str]:
    token = await token_file(server, folder, "agent", "web1")
    return [
        *("--config-server", server.url, "--token-file", str(token)),
        *("--disk", disk, "--process-server", f"127.0.0.1:{free_port()}", "--identity", "test:1"),
        *places(folder),
    ]


async def test_an_agent_is_told_which_disks_can_be_protected_and_that_nobody_listens_for_it_yet(
    server: ConfigServer, tmp_path: Path
) -> None:
    with loop_disk(tmp_path / "disk", 4 << 20) as disk:
        given = await agent_arguments(server, tmp_path, disk)
        report = (await set_up("agent", *given, "--output", "json")).json
        told = outcomes(report["steps"])
        assert (told["disk"], told["port"], told["clock"]) == ("checked", "warning", "checked")
        config = load_config(tmp_path / "etc/agent.toml", AgentConfig)
        assert (config.machine, config.disks, config.identity) == ("web1", [disk], "test:1")
        before = made(tmp_path)
        again = await set_up("agent", *given)
        assert "Next, on the config server: understudy machine protect web1" in again.stdout
        assert (again.exit_code, "Nothing was changed" in again.stdout, made(tmp_path)) == (0, True, before)


async def test_a_disk_that_is_none_ends_it_before_the_token_is_used(
    server: ConfigServer, tmp_path: Path
) -> None:
    given = await agent_arguments(server, tmp_path, "/dev/null")
    done = await set_up("agent", *given)
    assert (done.exit_code, made(tmp_path)) == (2, {}), done.stderr
    with loop_disk(tmp_path / "disk", 4 << 20) as disk:
        given[given.index("/dev/null")] = disk
        assert (await set_up("agent", *given)).exit_code == 0


def wrong(done: Done, code: str) -> bool:
    return done.exit_code != 0 and f"{code}: " in done.stderr


async def test_a_token_of_another_installation_ends_it_before_anything_is_sent(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    """Or somebody in the middle, who shows a CA of his own."""
    async with running(config_for(tmp_path / "other")) as other:
        given = await arguments(server, tmp_path, "master-target", blob_config)
        given[1] = other.url
        assert wrong(await set_up("master-target", *given), "US464")
        assert made(tmp_path) == {}
        given[1] = server.url
        assert (await set_up("master-target", *given)).exit_code == 0
        before = made(tmp_path)
        given = await arguments(other, tmp_path, "master-target", blob_config)
        done = await set_up("master-target", *given)  # enrolled host, another installation's token
        assert wrong(done, "US584"), done.stderr
        given = given[: given.index("--token-file")] + given[given.index("--token-file") + 2 :]
        done = await set_up("master-target", *given)  # ... or its URL alone
        assert done.exit_code != 0
        assert made(tmp_path) == before


async def test_a_token_of_another_role_writes_nothing_and_the_right_one_mends_it(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "agent", "web1"))
    assert wrong(await set_up("master-target", *given), "US625")
    assert not (tmp_path / "etc/master-target/cert.pem").exists()
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "master-target", "mt1"))
    done = await set_up("master-target", *given)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("is_again", [False, True])
async def test_a_key_that_was_certified_for_another_daemon_by_mistake_is_not_used(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig, is_again: bool
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    folder = tmp_path / "etc/master-target"
    if is_again:
        assert (await set_up("master-target", *given)).exit_code == 0
    before = sorted(folder.iterdir()) if is_again else []
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "agent", "web1"))
    assert wrong(await set_up("master-target", *given, *(["--enrol-again"] if is_again else [])), "US625")
    assert sorted(folder.iterdir()) == before


async def test_a_token_of_another_name_is_refused_in_words_of_the_set_up(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    assert (await set_up("master-target", *given)).exit_code == 0
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "master-target", "two"))
    done = await set_up("master-target", *given, "--enrol-again")
    assert wrong(done, "US584")
    assert "understudy token create master-target one" in done.stderr
    assert not [option for option in ("--dir", "--replace") if option in done.stderr]


async def test_a_folder_below_a_file_is_named_and_no_note_in_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [
        "--etc",
        str(tmp_path / "file/etc"),
        "--state",
        str(tmp_path / "state"),
        "--recovery-key",
        str(tmp_path / "r"),
    ]
    done = await set_up(
        "config-server", *words, "--host", "a.example.com", "--blob-url", "http://127.0.0.1:9/a"
    )
    assert done.exit_code != 0
    assert "recovery.json" not in done.stderr


def test_a_dry_run_makes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(host, "_locks", lambda: pytest.fail("a folder is made for it"))
    made = command.parser("x", "x").parse_args(["--dry-run", *places(tmp_path)])
    assert command.run(Role.AGENT, made, lambda _show: [], lambda _done: []) == 0


async def test_without_a_token_a_host_that_is_not_enrolled_is_told_what_to_do(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = ["--config-server", server.url, *storage(blob_config), *places(tmp_path)]
    done = await set_up("master-target", *given)
    assert (done.exit_code, "understudy token create" in done.stderr) == (2, True)
    done = await set_up("master-target", *places(tmp_path))
    assert "Missing: --config-server" in done.stderr


async def test_a_token_is_no_option_that_every_user_of_the_host_could_read(tmp_path: Path) -> None:
    done = await set_up("agent", "--token", "usy1.x.y", *places(tmp_path))
    assert done.exit_code == 2


async def test_a_port_that_somebody_has_is_named_before_the_token_is_used(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "process-server", blob_config)
    with socket.create_server(("0.0.0.0", int(given[-1]))):
        assert wrong(await set_up("process-server", *given), "US102")
    assert (await set_up("process-server", *given)).exit_code == 0


async def test_a_damaged_certificate_is_mended_with_a_new_token(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    assert (await set_up("master-target", *given)).exit_code == 0
    cert = tmp_path / "etc/master-target/cert.pem"
    cert.write_text("damaged")
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "master-target", "one"))
    report = (await set_up("master-target", *given, "--output", "json")).json
    assert outcomes(report["steps"])["certificate"] == "created"
    identity.check_certificate(identity.files_in(tmp_path / "etc/master-target"))


async def test_a_host_that_was_revoked_enrols_again_for_a_new_key_under_its_name(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    assert (await set_up("master-target", *given)).exit_code == 0
    files = identity.files_in(tmp_path / "etc/master-target")
    before = files.key.read_bytes()
    await server.revoke("master-target:one")
    assert wrong(await set_up("master-target", *given, "--enrol-again"), "US121")
    assert files.key.read_bytes() == before
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "master-target", "one"))
    assert (
        outcomes((await set_up("master-target", *given, "--output", "json")).json["steps"])["certificate"]
        == "kept"
    )
    report = (await set_up("master-target", *given, "--enrol-again", "--output", "json")).json
    assert outcomes(report["steps"])["certificate"] == "created"
    assert files.key.read_bytes() != before
    async with daemon(server, files) as client:
        await client.report({"state": "ordered"})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "", "1e3", "9" * 40])
async def test_what_is_no_port_is_refused(port: str, tmp_path: Path) -> None:
    done = await set_up("process-server", f"--port={port}", *places(tmp_path))
    assert (done.exit_code, "is no port: it must be 1 to 65535" in done.stderr) == (2, True)


@pytest.mark.parametrize("way", ["without its certificate", "waiting for one"])
async def test_a_key_that_others_could_read_is_never_certified(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig, way: str
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    assert (await set_up("master-target", *given)).exit_code == 0
    folder = tmp_path / "etc/master-target"
    files = identity.files_in(folder)
    if way == "waiting for one":
        given.append("--enrol-again")
        (folder / NEW_KEY).write_bytes(identity.new_key_pem())
        known_to_others = folder / NEW_KEY
    else:
        files.cert.unlink()
        known_to_others = files.key
    known_to_others.chmod(0o644)
    before = known_to_others.read_bytes()
    given[given.index("--token-file") + 1] = str(await token_file(server, tmp_path, "master-target", "one"))
    assert (await set_up("master-target", *given)).exit_code == 0
    assert (files.key.read_bytes() != before, files.key.stat().st_mode & 0o777) == (True, 0o600)
    assert not (folder / NEW_KEY).exists()
    async with daemon(server, files) as client:
        await client.report({"state": "ordered"})


async def test_a_key_that_others_could_read_is_closed_and_told(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    assert (await set_up("master-target", *given)).exit_code == 0
    key = identity.files_in(tmp_path / "etc/master-target").key
    before = key.read_bytes()
    key.chmod(0o644)
    report = (await set_up("master-target", *given, "--output", "json")).json
    [told] = [step for step in report["steps"] if step["step"] == "certificate"]
    assert (told["outcome"], "its mode is 0644" in told["detail"]) == ("mended", True)
    assert "certificate revoke master-target:one" in told["action"]
    assert (key.read_bytes(), key.stat().st_mode & 0o777) == (before, 0o600)
    again = (await set_up("master-target", *given, "--output", "json")).json
    assert (again["changed"], outcomes(again["steps"])["certificate"]) == (False, "kept")


@pytest.mark.parametrize("shared", ["etc", "state"])
async def test_two_at_once_do_not_get_into_each_other_s_way(tmp_path: Path, shared: str) -> None:
    with alone(tmp_path / shared, tmp_path / "other"):
        done = await set_up("agent", *places(tmp_path))
    assert (done.exit_code, "another set-up is at work" in done.stderr) == (2, True)
    assert "Missing" in (await set_up("agent", *places(tmp_path))).stderr


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_set_up_whose_reader_has_gone_is_carried_out(
    form: str, server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = [*await arguments(server, tmp_path, "master-target", blob_config), "--output", form]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "master_target", "setup", *given),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(writing)
    _, err = await process.communicate()
    assert process.returncode == (5 if form == "json" else 0), err.decode()
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert (tmp_path / "etc/master-target.toml").exists()


async def test_a_token_comes_from_standard_input(
    server: ConfigServer, tmp_path: Path, blob_config: BlobConfig
) -> None:
    given = await arguments(server, tmp_path, "master-target", blob_config)
    given[given.index("--token-file") + 1] = "-"
    token = (await server.token("master-target", "one")).token.encode()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "master_target", "setup", *given),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(token)
    assert (process.returncode, b"master-target:one" in out) == (0, True)
