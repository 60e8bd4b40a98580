"""Folders and files of a set-up: made once, kept ever after, and never written over."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shared.daemon.service import load_config
from shared.errors import ConfigError, StateFileError
from shared.host.owner import as_owner
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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Which others can enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        yield Path(place)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away takes root")
async def test_a_folder_that_root_has_restored_is_given_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    restored = Folder(folder, 0o700, "nobody", is_restored=True)
    (folder / "replaced").mkdir(parents=True)
    folder.chmod(0o700)
    files = [folder / "state.db", folder / "replaced/state.db"]
    for file in files:
        file.touch()
    assert (await done(restored, dry_run=True))[0] is Outcome.WOULD_CREATE
    os.chown(files[0], pwd.getpwnam("nobody").pw_uid, -1)  # a run was killed here
    assert (await done(restored))[0] is Outcome.CREATED
    assert {path.owner() for path in (folder, folder / "replaced", *files)} == {"nobody"}
    assert (await done(restored))[0] is Outcome.KEPT
    # Others could enter it; not all of it was put there by root.
    for uid, mode in ((0, 0o755), (12345, 0o700)):
        os.chown(folder, 0, 0)
        folder.chmod(mode)
        os.chown(files[0], uid, 0)
        with pytest.raises(StateFileError, match="belongs to root, and not to nobody"):
            await done(restored)


async def test_a_given_file_is_made_once_and_another_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "a/key"
    step = GivenFile("key", file, b"secret\n", 0o600, "a key", "do this")
    assert (await done(step))[0] is Outcome.CREATED
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"secret\n", 0o600)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert (await done(step))[0] is Outcome.KEPT
    file.write_bytes(b"secret")  # whoever put it there left the line's end out
    assert (await done(step))[0] is Outcome.KEPT
    file.write_bytes(b"another")
    [found] = await carry_out([step], lambda _: None)
    assert (found.outcome, found.action, file.read_bytes()) == (Outcome.DIFFERS, "do this", b"another")
    assert (await done(GivenFile("key", file, b"new", replace=True)))[0] is Outcome.CREATED
    assert file.read_bytes() == b"new"


async def test_a_secret_that_others_can_read_is_closed_and_that_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"secret")
    file.chmod(0o644)
    step = GivenFile("key", file, b"secret\n", 0o600, "a key", "do this")
    assert await done(step, dry_run=True) == (
        Outcome.WOULD_MEND,
        "others can read it: its mode is 0644",
    )
    [found] = await carry_out([step], lambda _: None)
    assert found.outcome is Outcome.MENDED
    assert found.detail.startswith("others can read it: its mode is 0644; now it is ")
    assert found.detail.endswith("'s, and its mode 0600")
    assert found.action == "Consider it known to others."
    assert file.stat().st_mode & 0o777 == 0o600
    assert (await done(step))[0] is Outcome.KEPT
    file.write_bytes(b"another")
    file.chmod(0o644)
    [found] = await carry_out([step], lambda _: None)
    assert (found.outcome, file.read_bytes(), file.stat().st_mode & 0o777) == (
        Outcome.MENDED,
        b"another",
        0o600,
    )
    assert "its mode is 0644; now" in found.detail
    assert found.detail.endswith("it is there with another content, and stays as it is")
    assert found.action == "Consider it known to others. do this"
    assert (await done(step))[0] is Outcome.DIFFERS


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
async def test_a_secret_that_belongs_to_another_user_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"secret")
    file.chmod(0o600)
    os.chown(file, 61000, 61000)
    step = GivenFile("key", file, b"secret\n", 0o600)
    assert await done(step) == (
        Outcome.MENDED,
        "it belongs to user 61000; now it is root's, and its mode 0600",
    )
    assert (file.stat().st_uid, (await done(step))[0]) == (0, Outcome.KEPT)


async def test_what_a_link_leads_to_is_told_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (tmp_path / "elsewhere").chmod(0o644)
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    outcome, detail = await done(GivenFile("key", tmp_path / "key", b"secret", 0o600))
    assert (outcome, "its mode is 0644, where the link" in detail) == (Outcome.WARNING, True)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644
    (tmp_path / "masked").symlink_to("/dev/null")
    assert (await done(GivenFile("unit-file", tmp_path / "masked", b"unit")))[0] is Outcome.DIFFERS


async def test_what_everybody_may_read_and_others_can_write_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "unit"
    file.write_bytes(b"unit")
    file.chmod(0o666)
    assert (await done(GivenFile("unit-file", file, b"unit")))[0] is Outcome.MENDED
    assert file.stat().st_mode & 0o777 == 0o644


async def test_a_copy_of_a_secret_that_a_killed_run_left_is_removed_and_no_other_file_is(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    step = GivenFile("key", file, b"secret\n", 0o600)
    await done(step)
    copy, other = tmp_path / ".key.0123456789ab", tmp_path / ".key.0123456789ac"
    copy.write_bytes(b"secret\n")
    other.write_bytes(b"somebody's")
    assert await done(step) == (Outcome.MENDED, f"a run that was killed left {copy} beside it")
    assert (copy.exists(), other.exists(), (await done(step))[0]) == (False, True, Outcome.KEPT)


async def test_a_folder_of_one_user_that_others_can_use_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for mode, may in ((0o777, "read and write"), (0o750, "read"), (0o711, "enter")):
        folder.chmod(mode)
        says = f"others can {may} it: its mode is {mode:04o}"
        assert await done(Folder(folder, 0o700), dry_run=True) == (Outcome.WOULD_MEND, says)
        assert await done(Folder(folder, 0o700)) == (Outcome.MENDED, f"{says}; now it is 0700")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (await done(Folder(folder, 0o700)))[0] is Outcome.KEPT


async def test_a_folder_that_others_share_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    """It may be /srv, or somebody's way to let a group in."""
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(0o777)
    outcome, detail = await done(Folder(folder, 0o755))
    assert (outcome, detail.startswith("others can write it: its mode is 0777")) == (Outcome.WARNING, True)
    assert folder.stat().st_mode & 0o7777 == 0o777
    folder.chmod(0o1777)
    assert (await done(Folder(folder, 0o755)))[0] is Outcome.KEPT


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o750, (Outcome.KEPT, "others can read it: its mode is 0750, which stays so")),
        (0o711, (Outcome.KEPT, "others can enter it: its mode is 0711, which stays so")),
        (0o770, (Outcome.WARNING, "others can write it: its mode is 0770")),
        (0o700, (Outcome.KEPT, "mode 0700")),
    ],
)
async def test_a_folder_of_one_user_in_which_others_have_files_is_told_and_left_as_it_is(
    tmp_path: Path, mode: int, says: tuple[Outcome, str]
) -> None:
    """/etc/credstore: other services' credentials lie in it, and somebody may have let their users in."""
    folder = tmp_path / "a"
    step = Folder(folder, 0o700, is_shared=True)
    assert ((await done(step))[0], folder.stat().st_mode & 0o777) == (Outcome.CREATED, 0o700)
    folder.chmod(mode)
    for dry_run in (True, False):
        outcome, detail = await done(step, dry_run=dry_run)
        assert (outcome, detail.startswith(says[1]), folder.stat().st_mode & 0o777) == (says[0], True, mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away takes root")
async def test_the_daemon_s_user_gets_at_what_an_earlier_version_made_with_a_narrow_umask(
    tmp_path: Path,
) -> None:
    folder, config, ca = tmp_path / "a", tmp_path / "a/x.toml", tmp_path / "a/ca.pem"
    folder.mkdir(0o700)
    config.write_text('name = "a"\n')
    config.chmod(0o600)
    ca.write_bytes(b"ca")
    ca.chmod(0o640)
    steps: list[Step] = [
        Folder(folder, 0o755, reader="nobody"),
        Configuration(config, Config, {"name": "a"}, reader="nobody"),
        GivenFile("ca", ca, b"ca", reader="nobody"),
    ]
    assert [await done(step, dry_run=True) for step in steps] == [
        (Outcome.WOULD_MEND, "nobody cannot get in: its mode is 0700"),
        (Outcome.WOULD_MEND, "nobody cannot read it: its mode is 0600"),
        (Outcome.WOULD_MEND, "nobody cannot read it: its mode is 0640"),
    ]
    assert [await done(step) for step in steps] == [
        (Outcome.MENDED, "nobody cannot get in: its mode is 0700; now it is 0755"),
        (Outcome.MENDED, "nobody cannot read it: its mode is 0600; now it is 0644"),
        (Outcome.MENDED, "nobody cannot read it: its mode is 0640; now it is 0644"),
    ]
    assert [(await done(step))[0] for step in steps] == [Outcome.KEPT] * 3
    config.chmod(0o640)
    os.chown(config, 0, pwd.getpwnam("nobody").pw_gid)  # an administrator's way
    assert (await done(steps[1]))[0] is Outcome.KEPT


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders away takes root")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
async def test_what_is_made_under_any_umask_serves_a_daemon_with_a_user_of_its_own(
    umask: int, open_folder: Path
) -> None:
    state, etc = open_folder / "var/x/state", open_folder / "etc/x"
    before = os.umask(umask)
    try:
        await done(Folder(state, 0o700, "nobody"))
        await done(Configuration(etc / "x.toml", Config, {"name": "a"}, reader="nobody"))
        await done(GivenFile("ca", etc / "ca.pem", b"ca", reader="nobody"))
    finally:
        os.umask(before)
    with as_owner(state):
        (state / "file").write_bytes(b"")
        assert ((etc / "x.toml").read_text() != "", (etc / "ca.pem").read_bytes()) == (True, b"ca")


async def test_a_configuration_that_others_can_write_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('name = "a"\n')
    file.chmod(0o666)
    [found] = await carry_out([Configuration(file, Config, {"name": "a"})], lambda _: None)
    assert (found.outcome, "others can write it: its mode is 0666" in found.detail) == (
        Outcome.WARNING,
        True,
    )
    [found] = await carry_out([Configuration(file, Config, {"name": "b"})], lambda _: None)
    assert (found.outcome, "its mode is 0666" in found.detail) == (Outcome.DIFFERS, True)
    assert 'name is "a" there' in found.detail
    assert file.stat().st_mode & 0o777 == 0o666


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
