"""Folders and files of a set-up: made once, kept ever after, and never written over."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from shared.errors import ConfigError, StateFileError
from shared.service import load_config
from shared.setup.files import Configuration, Folder, GivenFile, differences
from shared.setup.steps import Outcome, Step, carry_out


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    """Where."""
    retries: int = 3
    """How often."""


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    """Who."""
    folder: Path = Path("/x")
    """A folder."""
    hosts: list[str] = []
    """Hosts."""
    inner: Inner | None = None
    """A table."""


VALUES = {"name": "a", "folder": Path("/y"), "hosts": ["b"], "inner": {"url": "u"}}


async def done(step: Step, *, dry_run: bool = False) -> tuple[Outcome, str]:
    [found] = await carry_out([step], lambda _: None, dry_run=dry_run)
    return found.outcome, found.detail


async def test_a_folder_is_made_with_its_mode_and_then_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    assert (await done(Folder(folder, 0o700), dry_run=True))[0] is Outcome.WOULD_CREATE
    assert not (tmp_path / "a").exists()
    assert (await done(Folder(folder, 0o700)))[0] is Outcome.CREATED
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o755)
    assert (await done(Folder(folder, 0o700)))[0] is Outcome.KEPT


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away takes root")
async def test_a_folder_that_a_killed_run_did_not_give_away_is_given_and_one_with_files_in_it_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "lost+found").mkdir()  # it may be a file system of its own
    assert (await done(Folder(folder, 0o700, "nobody")))[0] is Outcome.CREATED
    assert (folder.owner(), folder.stat().st_mode & 0o777) == ("nobody", 0o700)
    assert (await done(Folder(folder, 0o700, "nobody")))[0] is Outcome.KEPT
    os.chown(folder, 0, 0)
    (folder / "file").touch()
    with pytest.raises(StateFileError, match="belongs to root, and not to nobody"):
        await done(Folder(folder, 0o700, "nobody"))


async def test_a_given_file_is_made_once_and_another_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "a/key"
    step = GivenFile("key", file, b"secret\n", 0o600, "a key", "do this")
    assert (await done(step))[0] is Outcome.CREATED
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"secret\n", 0o600)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert (await done(step))[0] is Outcome.KEPT
    file.write_bytes(b"secret")  # whoever put it there left the line's end out
    assert (await done(step))[0] is Outcome.KEPT
    file.chmod(0o640)
    assert await done(step) == (Outcome.WARNING, "others can read it: its mode is 0640")
    file.chmod(0o600)
    file.write_bytes(b"another")
    [found] = await carry_out([step], lambda _: None)
    assert (found.outcome, found.action, file.read_bytes()) == (Outcome.DIFFERS, "do this", b"another")
    assert (await done(GivenFile("key", file, b"new", replace=True)))[0] is Outcome.CREATED
    assert file.read_bytes() == b"new"


async def test_a_configuration_explains_every_key_and_is_read_as_its_values(tmp_path: Path) -> None:
    file = tmp_path / "etc/x.toml"
    assert (await done(Configuration(file, Config, VALUES), dry_run=True))[0] is Outcome.WOULD_CREATE
    assert not file.exists()
    assert (await done(Configuration(file, Config, VALUES)))[0] is Outcome.CREATED
    assert load_config(file, Config) == Config(name="a", folder=Path("/y"), hosts=["b"], inner=Inner("u"))
    assert "# How often." in file.read_text()
    assert (await done(Configuration(file, Config, VALUES)))[0] is Outcome.KEPT


async def test_what_an_administrator_changed_stays_and_the_difference_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('name = "a"\nfolder = "/y"\nhosts = ["b", "c"]\n[inner]\nurl = "v"\n')
    before = file.read_bytes()
    outcome, detail = await done(Configuration(file, Config, VALUES | {"inner": {"url": "u", "retries": 1}}))
    assert outcome is Outcome.DIFFERS
    assert 'hosts is ["b", "c"] there, and would be ["b"]' in detail
    assert 'inner.url is "v" there, and would be "u"' in detail
    assert "inner.retries is not set there, and would be 1" in detail
    assert file.read_bytes() == before


async def test_what_an_administrator_added_is_no_difference(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('name = "a"\nfolder = "/z"\n[inner]\nurl = "u"\n')
    assert await done(Configuration(file, Config, {"name": "a"})) == (
        Outcome.KEPT,
        "it also sets folder, inner",
    )


async def test_a_configuration_that_its_daemon_would_refuse_ends_the_run(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('nam = "a"\n')
    with pytest.raises(ConfigError, match="did you mean `name`"):
        await done(Configuration(file, Config, VALUES))


def test_there_is_no_difference_between_the_same() -> None:
    assert list(differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1], "d": 2}, "e": 3})) == []
    assert list(differences({"b": {"c": 1}}, {"b": 2})) == ["b is 2 there, and would be a table"]
