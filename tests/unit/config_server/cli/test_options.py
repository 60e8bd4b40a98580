"""Where the config server is: options, environment, profiles."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from config_server.cli.options import COMMON, Target, add_options, find_target
from config_server.cli.profile import Profile, save
from shared.errors import ConfigError, LabNotFoundError, UsageError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("UNDERSTUDY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("t1\n")
    save(tmp_path / "profile.toml", Profile(server="https://one", token_file=tmp_path / "token"))
    save(tmp_path / "two.toml", Profile(server="https://two", token_file=tmp_path / "token"))
    return tmp_path


def found(*arguments: str) -> Target:
    targets: list[Target] = []

    @click.command()
    @add_options(*COMMON)
    def command() -> None:
        targets.append(find_target())

    command.main(list(arguments), standalone_mode=False)
    return targets[0]


def test_a_profile_is_given_as_a_file_or_as_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("--profile", str(folder / "two.toml")).url == "https://two"
    assert found("--lab", str(folder)).url == "https://one"
    monkeypatch.setenv("UNDERSTUDY_LAB", str(folder))
    assert found().url == "https://one"
    monkeypatch.setenv("UNDERSTUDY_PROFILE", str(folder / "two.toml"))
    assert found().url == "https://two"


def test_an_option_beats_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_SERVER", "https://three")
    monkeypatch.setenv("UNDERSTUDY_PROFILE", str(folder / "two.toml"))
    assert found("--token-file", str(folder / "token")).url == "https://three"
    assert found("--lab", str(folder), "--server", "https://four").url == "https://four"


def test_what_is_no_profile_is_named(folder: Path) -> None:
    with pytest.raises(LabNotFoundError, match="is no lab"):
        found("--lab", str(folder / "none"))
    with pytest.raises(ConfigError, match="none could not be read"):
        found("--profile", str(folder / "none"))
    (folder / "two.toml").write_text("server = 1")
    with pytest.raises(ConfigError, match=r"two\.toml is not valid"):
        found("--profile", str(folder / "two.toml"))
    with pytest.raises(UsageError, match="No config server is known") as raised:
        found()
    assert "/etc/understudy/profile.toml" in raised.value.action
