"""`understudy storage check` as a process, against real blob storage."""

from __future__ import annotations

import asyncio
import base64
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server.cli import profile
from config_server.cli.profile import Profile, Rescue
from shared.blob import BlobConfig, BlobStore
from shared.host.toml import to_toml
from tests.azurite import Azurite
from tests.cli import begun, ended, understudy
from tests.dispositions import inherited
from tests.storage_faults import FaultProxy, Stall


@pytest.fixture
def faulty(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as proxy:
        yield proxy


def options(config: BlobConfig) -> list[str]:
    return [
        *("--blob-url", config.url, "--blob-container", config.container),
        *("--blob-key-file", str(config.account_key_file), "--blob-ca-file", str(config.ca_file)),
    ]


def server_config(folder: Path, config: BlobConfig) -> Path:
    """As a process server's: other keys stand beside it, which are none of the check's business."""
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    file = folder / "process-server.toml"
    file.write_text(to_toml({"name": "ps1", "spool_dir": "/nowhere", "blob": plain}))
    return file


async def test_the_account_is_that_of_options_of_a_configuration_or_of_a_profile(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    ours = Profile(
        server="https://127.0.0.1:1",
        token_file=tmp_path / "nobody-reads-it",
        rescue=Rescue(vault_file=tmp_path / "nor-this", blob=blob_config),
    )
    profile.save(tmp_path / "profile.toml", ours)
    for where in (
        options(blob_config),
        ["--config", str(server_config(tmp_path, blob_config))],
        ["--profile", str(tmp_path / "profile.toml")],
    ):
        report = (await understudy("storage", "check", *where, "--output", "json")).json
        assert report["container"] == blob_config.container
        assert not [finding for finding in report["findings"] if finding["state"] == "error"]


async def test_the_table_names_each_check_and_says_what_to_do(blob_config: BlobConfig) -> None:
    done = await understudy("storage", "check", *options(blob_config), "--output", "table")
    assert done.exit_code == 0
    assert "page-blob" in done.stdout
    assert "unknown lifecycle-rules\n  Do: See that no rule" in done.stdout


async def test_an_error_ends_with_5_after_the_whole_report(blob_config: BlobConfig, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    wrong = msgspec.structs.replace(blob_config, account_key_file=other)
    done = await understudy("storage", "check", *options(wrong), "--output", "json")
    assert done.exit_code == 5
    report = msgspec.json.decode(done.stdout)
    assert report["state"] == "error"
    told = {finding["name"]: finding for finding in report["findings"]}
    assert (told["credentials"]["state"], told["credentials"]["code"]) == ("error", "US495")
    assert "US618" in done.stderr
    assert "credentials" in done.stderr
    table = await understudy("storage", "check", *options(wrong), "--output", "table")
    assert table.exit_code == 5
    assert "error US495 credentials\n  Do: Put one of the account's" in table.stdout
    assert table.stdout.count("not looked at: credentials failed") == 1, "one line for all of them"


async def test_what_is_not_said_clearly_is_a_mistake_of_usage(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    agent = tmp_path / "agent.toml"
    agent.write_text('machine = "web1"\n')
    broken = tmp_path / "broken.toml"
    broken.write_text('[blob]\nurl = "https://account"\ncontainer = "X"\n')
    server = server_config(tmp_path, blob_config)
    for arguments, says in (
        ([], "No storage account is known"),
        (["--config", str(agent)], "names no storage account"),
        (["--config", str(broken)], "'X' cannot be used"),
        (["--config", str(tmp_path / "absent")], "could not be read"),
        (["--config", str(server), *options(blob_config)], "not both"),
        (["--config", str(server), "--blob-container", "other"], "--blob-container would not be used"),
        (
            ["--blob-key-file", str(broken), "--blob-ca-file", "x"],
            "--blob-key-file and --blob-ca-file would not be used",
        ),
        (["--blob-url", "https://[::1"], "is not valid"),
        (
            ["--blob-url", "https://account.invalid", "--blob-key-file", str(broken)],
            "does not hold an account key",
        ),
    ):
        done = await understudy("storage", "check", *arguments)
        assert (done.exit_code, says in done.stderr) == (2, True), (arguments, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_command_that_is_interrupted_tidies_up_and_says_so(
    number: signal.Signals, faulty: FaultProxy, store: BlobStore
) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()
    rule = faulty.add(Stall(), blob="append")
    rule.then = lambda: loop.call_soon_threadsafe(reached.set)
    with inherited(signal.SIG_DFL, number):
        process = await begun("storage", "check", *options(faulty.config(store.container)))
    async with asyncio.timeout(30):
        await reached.wait()
        process.send_signal(number)
        done = await ended(process)
    assert done.exit_code == 128 + number
    assert "interrupted: everything that the check had made is gone" in done.stderr
    assert [name async for name, _ in store.list_containers(f"{store.container}-")] == []
    assert [found.name async for found in store.list("")] == []
