"""Set-ups that are killed at every step: the same command again brings what one run would have."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from shared import api
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.daemon.service import load_config
from shared.keys.vault import FileVault
from shared.trust import identity
from tests import forked
from tests.cli import ROOT, clean
from tests.config_parts import config_for, running
from tests.marks import some
from tests.setups import outcomes, places, set_up, storage, tree

_MOST = 60


async def killed(role: str, arguments: Sequence[str], step: int) -> bool:
    """Runs the set-up, to be killed at a step; whether it came to that."""
    ended = await forked.run(
        *("-m", role.replace("-", "_"), "setup", *arguments),
        env={**clean(), "PYTHONPATH": str(ROOT), "UNDERSTUDY_CRASH_AT": f"setup.step:{step}"},
    )
    assert ended.exit_code in (0, -signal.SIGKILL), ended.stderr.decode()
    return ended.exit_code != 0


def shape(*folders: Path) -> dict[str, str]:
    """Names and modes: keys and tokens are others in each run."""
    base = folders[0].parent
    return {str(Path(path).relative_to(base)): mode for path, (mode, _) in tree(*folders).items()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def init_arguments(folder: Path, blob: BlobConfig) -> list[str]:
    return [
        *("--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", str(free_port())),
        *("--recovery-key", str(folder / "recovery.key")),
        *storage(blob),
        *places(folder),
    ]


async def check_config_server(folder: Path) -> None:
    config = load_config(folder / "etc/config-server.toml", ConfigServerConfig)
    assert config.vault_file is not None
    assert FileVault(folder / "recovery.key").fingerprints == FileVault(config.vault_file).fingerprints
    assert stat.S_IMODE((folder / "recovery.key").stat().st_mode) == 0o600
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.MACHINES, Nothing())


async def test_init_killed_at_each_step_in_turn_is_completed_by_the_run_after_the_last(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    """Each run goes one step further than the one before, over what that left."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert (await set_up("config-server", *init_arguments(whole, blob_config))).exit_code == 0
    cut = tmp_path / "cut"
    cut.mkdir()
    arguments = init_arguments(cut, blob_config)
    steps = 0
    while await killed("config-server", arguments, steps + 1):
        steps += 1
        assert steps < _MOST
    assert steps > 12, "points were named on the way"
    assert shape(cut / "etc", cut / "state") == shape(whole / "etc", whole / "state")
    await check_config_server(cut)
    again = (await set_up("config-server", *arguments, "--output", "json")).json
    assert not again["changed"]


@pytest.mark.parametrize("step", some(range(8, 26), short=(17,)))
async def test_init_killed_once_is_completed_by_the_next_run(
    tmp_path: Path, blob_config: BlobConfig, step: int
) -> None:
    arguments = init_arguments(tmp_path, blob_config)
    await killed("config-server", arguments, step)
    keys = {path: data for path, (_, data) in tree(tmp_path / "etc", tmp_path / "state").items()}
    assert (await set_up("config-server", *arguments)).exit_code == 0
    after = tree(tmp_path / "etc", tmp_path / "state")
    for path, data in keys.items():
        if Path(path).name in ("vault.json", "ca.pem", "operator.token", "config-server.toml"):
            assert after[path][1] == data, f"{path} was made anew"
    await check_config_server(tmp_path)


@pytest.mark.parametrize("step", some(range(8, 26), short=(19,)))
async def test_init_killed_over_a_configuration_that_was_written_by_hand_is_completed_too(
    tmp_path: Path, blob_config: BlobConfig, step: int
) -> None:
    """It says nothing of whether there was a data folder before."""
    arguments = init_arguments(tmp_path, blob_config)
    places_ = [*arguments[:-4], *places(tmp_path / "other")]
    places_[places_.index("--recovery-key") + 1] = str(tmp_path / "other.key")
    (tmp_path / "other").mkdir()
    assert (await set_up("config-server", *places_)).exit_code == 0
    text = (tmp_path / "other/etc/config-server.toml").read_text()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config-server.toml").write_text(text.replace(f"{tmp_path}/other/", f"{tmp_path}/"))
    await killed("config-server", arguments, step)
    done = await set_up("config-server", *arguments)
    assert done.exit_code == 0, done.stderr
    await check_config_server(tmp_path)


@pytest.mark.parametrize("step", some(range(8, 26), short=(16,)))
@pytest.mark.parametrize("left", some(["nothing", "a CA without a database"], short=("nothing",)))
async def test_a_new_ca_killed_once_is_completed_as_the_next_run_says(
    tmp_path: Path, blob_config: BlobConfig, left: str, step: int
) -> None:
    """Until its CA is noted a run that was not asked for a new one refuses it, and says how it is asked for."""
    arguments = init_arguments(tmp_path, blob_config)
    assert (await set_up("config-server", *arguments)).exit_code == 0
    data = tmp_path / "state/config-server"
    before = (data / "ca.pem").read_bytes()
    for path in data.iterdir():
        if left == "nothing" or not path.name.startswith("ca."):
            path.unlink()
    await killed("config-server", [*arguments, "--new-ca"], step)
    done = await set_up("config-server", *arguments)
    if done.exit_code != 0:
        assert "--new-ca" in done.stderr
        done = await set_up("config-server", *arguments, "--new-ca")
    assert done.exit_code == 0, done.stderr
    assert (data / "ca.pem").read_bytes() != before
    await check_config_server(tmp_path)


@pytest.mark.parametrize("role", some(("master-target", "process-server"), short=()))
async def test_a_server_s_set_up_killed_at_each_step_in_turn_is_completed_with_one_token(
    tmp_path: Path, blob_config: BlobConfig, role: str
) -> None:
    async with running(config_for(tmp_path)) as server:
        token = tmp_path / "token"
        token.write_text((await server.token(role, "one")).token)
        arguments = ["--config-server", server.url, "--token-file", str(token), *storage(blob_config)]
        arguments += places(tmp_path)
        arguments += ["--port", str(free_port())] if role == "process-server" else []
        steps = 0
        while await killed(role, arguments, steps + 1):
            steps += 1
            assert steps < _MOST
        assert steps > 7, "points were named on the way"
        files = identity.files_in(tmp_path / "etc" / role)
        identity.check_name(files, f"{role}:one")
        assert sorted(path.name for path in files.key.parent.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
        again = (await set_up(role, *arguments, "--output", "json")).json
        assert (again["changed"], outcomes(again["steps"])["configuration"]) == (False, "kept")


@pytest.mark.parametrize("step", some(range(5, 17), short=(13,)))
async def test_a_server_s_set_up_killed_once_is_completed_with_the_same_token(
    tmp_path: Path, blob_config: BlobConfig, step: int
) -> None:
    async with running(config_for(tmp_path)) as server:
        token = tmp_path / "token"
        token.write_text((await server.token("master-target", "one")).token)
        arguments = ["--config-server", server.url, "--token-file", str(token), *storage(blob_config)]
        arguments += places(tmp_path)
        await killed("master-target", arguments, step)
        before = tree(tmp_path / "etc")
        assert (await set_up("master-target", *arguments)).exit_code == 0
        after = tree(tmp_path / "etc")
        assert {path: after[path] for path in before} == before, "what was there was made anew"
        identity.check_name(identity.files_in(tmp_path / "etc/master-target"), "master-target:one")


@pytest.mark.long
async def test_a_host_that_enrols_again_killed_at_each_step_goes_on_with_the_same_command(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    """Killed behind the certificate, its token is used, and for the key that is there."""
    async with running(config_for(tmp_path)) as server:
        token, files = tmp_path / "token", identity.files_in(tmp_path / "etc/master-target")
        arguments = ["--config-server", server.url, "--token-file", str(token), *storage(blob_config)]
        arguments += places(tmp_path)
        token.write_text((await server.token("master-target", "one")).token)
        assert (await set_up("master-target", *arguments)).exit_code == 0
        told = set()
        for step in range(6, _MOST):
            token.write_text((await server.token("master-target", "one")).token)
            before = files.key.read_bytes()
            if not await killed("master-target", [*arguments, "--enrol-again"], step):
                break
            has_another = files.key.read_bytes() != before
            done = await set_up("master-target", *arguments, "--enrol-again", "--output", "json")
            assert done.exit_code == 0, f"killed at {step}: {done.stderr}"
            assert files.key.read_bytes() != before
            assert sorted(path.name for path in files.key.parent.iterdir()) == [
                "ca.pem",
                "cert.pem",
                "key.pem",
            ]
            key = identity.only_certificate(files.cert.read_text()).public_key()
            assert key == identity.key_of(files).public_key()
            told.add((has_another, outcomes(done.json["steps"])["certificate"]))
        assert told == {(False, "created"), (True, "warning")}
        await server.revoke("master-target:one")  # whoever stole the key could ask for it, too
        done = await set_up("master-target", *arguments, "--enrol-again")
        assert (done.exit_code, "The enrolment was refused" in done.stderr) == (2, True), done.stderr


async def test_killed_between_certificate_and_key_the_same_token_mends_it(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    """A host that enrols anew: its certificate was damaged."""
    async with running(config_for(tmp_path)) as server:
        token = tmp_path / "token"
        arguments = ["--config-server", server.url, "--token-file", str(token), *storage(blob_config)]
        arguments += places(tmp_path)
        for point in (None, "enrol.between-certificate-and-key"):
            token.write_text((await server.token("master-target", "one")).token)
            if point is None:
                assert (await set_up("master-target", *arguments)).exit_code == 0
                (tmp_path / "etc/master-target/ca.pem").unlink()
                continue
            done = await set_up("master-target", *arguments, UNDERSTUDY_CRASH_AT=point)
            assert done.exit_code == -signal.SIGKILL
        report = (await set_up("master-target", *arguments, "--output", "json")).json
        assert outcomes(report["steps"])["certificate"] == "created"
        files = identity.files_in(tmp_path / "etc/master-target")
        identity.check_certificate(files)
        assert (
            identity.only_certificate(files.cert.read_text()).public_key()
            == identity.key_of(files).public_key()
        )
