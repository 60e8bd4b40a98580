"""A lab's settings and the files that it writes for its daemons."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from agent.config import AgentConfig
from config_server.cli import profile
from config_server.config import ConfigServerConfig
from deploy.lab import commands, files
from deploy.lab.state import Lab, Settings, locked
from deploy.lab.vocabulary import Daemon
from master_target.config import MasterTargetConfig
from process_server.config import ProcessServerConfig
from shared.blob import BlobConfig
from shared.daemon.service import load_config
from shared.errors import LabError, LabNotFoundError
from shared.keys.vault import FileVault


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path, Settings(id="abcd", disks=("/dev/loop0", "/dev/loop1"), port_base=24000))
    files.make_folders(made)
    made.save()
    return made


def test_the_process_server_takes_what_lab_up_does(lab: Lab) -> None:
    (option,) = (each for each in commands.up.params if each.name == "segment_seconds")
    assert isinstance(option.type, click.FloatRange)
    longest = Lab(lab.folder, msgspec.structs.replace(lab.settings, segment_seconds=option.type.max))
    files.write_configs(longest)
    config = load_config(lab.config_file(Daemon.PROCESS_SERVER), ProcessServerConfig)
    assert config.segment_seconds == option.type.max


@pytest.mark.parametrize(
    ("daemon", "type_"),
    [
        (Daemon.AGENT, AgentConfig),
        (Daemon.PROCESS_SERVER, ProcessServerConfig),
        (Daemon.MASTER_TARGET, MasterTargetConfig),
        (Daemon.CONFIG_SERVER, ConfigServerConfig),
    ],
)
def test_every_daemon_understands_its_file(lab: Lab, daemon: Daemon, type_: type[Any]) -> None:
    files.write_configs(lab)
    config = load_config(lab.config_file(daemon), type_)
    assert stat.S_IMODE(lab.config_file(daemon).stat().st_mode) == 0o600
    if daemon is Daemon.AGENT:
        assert config.disks == ["/dev/loop0", "/dev/loop1"]
        assert config.addresses == (("127.0.0.1", 24003),)
    else:
        assert config.blob.url == "https://127.0.0.1:24010/understudylab"


def test_files_are_written_only_when_they_change(lab: Lab) -> None:
    assert set(files.write_configs(lab)) == {"agent", "process-server", "master-target", "config-server"}
    assert files.write_configs(lab) == []
    faster = Lab(lab.folder, msgspec.structs.replace(lab.settings, point_interval_s=5.0))
    assert files.write_configs(faster) == ["agent"]


def test_secrets_are_made_once_and_are_private(lab: Lab) -> None:
    files.make_secrets(lab)
    before = [path.read_bytes() for path in (lab.vault_file, lab.account_key_file)]
    files.make_secrets(lab)
    assert [path.read_bytes() for path in (lab.vault_file, lab.account_key_file)] == before
    assert stat.S_IMODE(lab.account_key_file.stat().st_mode) == 0o600
    FileVault(lab.vault_file)
    secret = lab.account_key_file.read_text()
    files.write_configs(lab)
    assert all(secret not in path.read_text() for path in lab.folder.glob("*.toml"))


def test_only_the_config_server_has_the_vault(lab: Lab) -> None:
    having = {name for name, config in files.configs(lab).items() if str(lab.vault_file) in str(config)}
    assert having == {"config-server"}


def test_the_profile_leads_to_the_lab_and_round_it(lab: Lab) -> None:
    files.write_profile(lab)
    found = profile.load_from(lab.folder)
    assert (found.server, found.token_file) == (lab.config_server_url, lab.operator_token_file)
    assert found.rescue == profile.Rescue(vault_file=lab.vault_file, blob=files.blob_config(lab))


def test_an_account_elsewhere_replaces_azurite(lab: Lab) -> None:
    settings = msgspec.structs.replace(
        lab.settings, blob_url="https://x.blob.core.windows.net", blob_key_file="/k"
    )
    elsewhere = Lab(lab.folder, settings)
    assert "azurite" not in elsewhere.daemons
    assert files.blob_config(elsewhere) == BlobConfig(
        url="https://x.blob.core.windows.net", account_key_file=Path("/k")
    )


def test_a_folder_without_settings_is_no_lab(tmp_path: Path) -> None:
    with pytest.raises(LabNotFoundError):
        Lab.open(tmp_path)
    with pytest.raises(LabNotFoundError):
        Lab.open(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "why"), [("{", "lab.json"), ('{"v":9,"id":"x","disks":[]}', "format is 9")]
)
def test_damaged_or_newer_settings_are_named(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "lab.json").write_text(content)
    with pytest.raises(LabError, match=why):
        Lab.open(tmp_path)


def test_a_lab_that_may_not_be_locked_says_what_to_do(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deploy.lab.state.os.open", denied)
    with pytest.raises(LabError, match="Run as root"), locked(lab.folder):
        pass


def test_only_one_command_changes_a_lab_at_a_time(lab: Lab) -> None:
    with locked(lab.folder), pytest.raises(LabError, match="busy"), locked(lab.folder):
        pass
    with locked(lab.folder):
        pass
