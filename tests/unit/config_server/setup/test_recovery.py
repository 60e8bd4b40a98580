"""The recovery key: put where the operator says, once, and never over anything."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from config_server.setup import recovery
from config_server.setup.recovery import NOTE, RecoveryKey, noted
from shared.errors import ConfigError, RecoveryFileThereError, StateFileError, UsageError
from shared.host import durable
from shared.keys import vault
from shared.keys.vault import FileVault
from shared.setup.steps import Done, Outcome, carry_out


@pytest.fixture
def vault_file(tmp_path: Path) -> Path:
    FileVault.create(tmp_path / "vault.json")
    return tmp_path / "vault.json"


def content(file: Path) -> bytes:
    return file.read_bytes()


async def put(
    vault_file: Path, wanted: Path | None, *, dry_run: bool = False, folders: Sequence[Path] = ()
) -> Done:
    step = RecoveryKey(vault_file, wanted, folders)
    [done] = await carry_out([step], lambda _: None, dry_run=dry_run)
    return done


async def test_once_it_was_put_somewhere_no_other_is_made_wherever_it_is_by_now(
    vault_file: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert (await put(vault_file, first)).outcome is Outcome.CREATED
    assert FileVault(first).fingerprints == FileVault(vault_file).fingerprints
    assert (await put(vault_file, second)).outcome is Outcome.WARNING  # it is still here
    first.unlink()
    for wanted in (second, None):
        assert (await put(vault_file, wanted)).outcome is Outcome.KEPT
    assert not second.exists()


async def test_a_copy_of_a_run_that_was_killed_is_named_until_it_is_gone(
    vault_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as killed:
        killed.setattr(recovery, "_closed", lambda _: pytest.exit("killed"))
        with pytest.raises(pytest.exit.Exception):
            await put(vault_file, first)
    assert content(first) == content(vault_file)
    with pytest.raises(UsageError, match="a run that was killed had begun to put it into"):
        await put(vault_file, None)
    assert str(first) in (await put(vault_file, second)).detail
    second.unlink()
    told = await put(vault_file, None)
    assert (told.outcome, str(first) in told.detail) == (Outcome.WARNING, True)
    first.unlink()
    assert (await put(vault_file, None)).outcome is Outcome.KEPT


async def test_a_place_that_is_not_needed_is_named(vault_file: Path, tmp_path: Path) -> None:
    await put(vault_file, tmp_path / "first")
    told = await put(vault_file, tmp_path / "second")
    assert f"{tmp_path / 'second'} was not made" in told.detail


async def test_when_the_vault_has_got_a_key_since_another_place_is_asked_for(
    vault_file: Path, tmp_path: Path
) -> None:
    await put(vault_file, tmp_path / "first")
    FileVault.create(tmp_path / "other.json")
    vault.add(vault_file, tmp_path / "other.json")
    with pytest.raises(UsageError, match=r"the vault has got keys that .*first lacks"):
        await put(vault_file, None)
    with pytest.raises(RecoveryFileThereError):
        await put(vault_file, tmp_path / "first")
    assert (await put(vault_file, tmp_path / "second")).outcome is Outcome.CREATED
    assert FileVault(tmp_path / "second").fingerprints == FileVault(vault_file).fingerprints
    assert (await put(vault_file, tmp_path / "second")).outcome is Outcome.WARNING


async def test_a_key_that_the_vault_gets_while_it_is_copied_is_not_noted(
    vault_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FileVault.create(tmp_path / "other.json")
    create_file = durable.create_file

    def create_and_add(path: Path, data: bytes, *, mode: int) -> None:
        create_file(path, data, mode=mode)
        vault.add(vault_file, tmp_path / "other.json")

    monkeypatch.setattr(durable, "create_file", create_and_add)
    assert (await put(vault_file, tmp_path / "first")).outcome is Outcome.CREATED
    handed = noted(tmp_path / NOTE)
    assert handed is not None
    assert handed.keys == tuple(FileVault(tmp_path / "first").fingerprints)
    with pytest.raises(UsageError, match=r"the vault has got keys that .*first lacks"):
        await put(vault_file, None)


async def test_one_that_was_written_and_not_noted_is_taken_for_it_and_no_other_file_is(
    vault_file: Path, tmp_path: Path
) -> None:
    place = tmp_path / "key"
    shutil.copy(vault_file, place)
    assert (await put(vault_file, place)).outcome is Outcome.CREATED
    assert (tmp_path / NOTE).exists()
    (tmp_path / NOTE).unlink()
    place.write_bytes(b"somebody's")
    with pytest.raises(RecoveryFileThereError, match="is another file"):
        await put(vault_file, place)
    assert place.read_bytes() == b"somebody's"


async def test_a_place_that_is_none_and_a_note_that_cannot_be_read_are_told(
    vault_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        await put(vault_file, tmp_path / "not-mounted/key")
    with pytest.raises(UsageError, match="Nobody said where"):
        await put(vault_file, None, dry_run=True)
    (tmp_path / NOTE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        await put(vault_file, tmp_path / "key")
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("name", ["itself", "symbolic", "hard", "around", "folder"])
async def test_the_vault_itself_is_no_recovery_key_by_whatever_name(
    vault_file: Path, tmp_path: Path, name: str
) -> None:
    """The operator is told to take it away, and to delete it here."""
    place = tmp_path / name
    match name:
        case "itself":
            place = vault_file
        case "symbolic":
            place.symlink_to(vault_file)
        case "hard":
            place.hardlink_to(vault_file)
        case "around":
            (tmp_path / "x").mkdir()
            place = tmp_path / "x/../vault.json"
        case "folder":
            place.symlink_to(tmp_path, target_is_directory=True)
            place = place / "vault.json"
    before = content(vault_file)
    with pytest.raises(UsageError, match="is the vault file itself"):
        await put(vault_file, place)
    with pytest.raises(UsageError, match="is the vault file itself"):
        RecoveryKey(vault_file, place).check()
    assert (content(vault_file), (tmp_path / NOTE).exists()) == (before, False)


async def test_a_vault_that_is_not_made_yet_is_no_recovery_key_either(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the vault file itself"):
        RecoveryKey(tmp_path / "vault.json", tmp_path / "vault.json").check()


async def test_a_note_that_names_the_vault_itself_is_none(vault_file: Path, tmp_path: Path) -> None:
    """As an earlier version left it."""
    await put(vault_file, tmp_path / "key")
    note = (tmp_path / NOTE).read_text()
    (tmp_path / NOTE).write_text(note.replace(str(tmp_path / "key"), str(vault_file)))
    with pytest.raises(UsageError, match="noted as it, is the vault file itself"):
        await put(vault_file, None)
    assert (await put(vault_file, tmp_path / "second")).outcome is Outcome.CREATED


async def test_what_leads_elsewhere_and_what_is_lost_with_the_vault_is_no_place(
    vault_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"symbolic link, to .*elsewhere"):
        await put(vault_file, tmp_path / "link")
    etc = tmp_path / "etc"
    (etc / "config-server").mkdir(parents=True)
    (tmp_path / "round").symlink_to(etc)
    for place in (etc / "key", etc / "config-server/key", tmp_path / "round/key"):
        with pytest.raises(UsageError, match="lost, or stolen, together with the vault"):
            await put(vault_file, place, folders=[etc])
        assert not place.exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecoveryFileThereError):
        await put(vault_file, tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("size", [0, 1, 1 << 20])
async def test_somebody_else_s_file_is_not_taken_for_the_beginning_of_it(
    vault_file: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder like /tmp anybody can make it, before a run or while one is at work, and reads all that is written into it."""
    place, data = tmp_path / "key", content(vault_file)[:size]
    place.write_bytes(data)
    place.chmod(0o600)
    os.chown(place, 4711, 4712)
    for dry_run in (True, False):
        with pytest.raises(RecoveryFileThereError, match="belongs to another user"):
            await put(vault_file, place, dry_run=dry_run)
    with pytest.raises(RecoveryFileThereError):
        RecoveryKey(vault_file, place).check()
    monkeypatch.setattr(RecoveryKey, "_check_it", lambda *_: None)  # it came since the look
    with pytest.raises(StateFileError, match="belongs to another user"):
        await put(vault_file, place)
    assert (content(place), place.stat().st_uid, (tmp_path / NOTE).exists()) == (data, 4711, False)


def no_links(*_args: object, **_kwargs: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


async def test_it_can_be_put_where_files_have_one_name(
    vault_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vfat, exfat: what sticks have."""
    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "stick").mkdir()
    assert (await put(vault_file, tmp_path / "stick/key")).outcome is Outcome.CREATED
    assert [path.name for path in (tmp_path / "stick").iterdir()] == ["key"]
    assert (tmp_path / "stick/key").read_bytes() == content(vault_file)
    other = tmp_path / "stick/other"
    other.write_bytes(b"somebody's")
    (tmp_path / NOTE).unlink()
    with pytest.raises(RecoveryFileThereError):
        await put(vault_file, other)
    assert other.read_bytes() == b"somebody's"


async def test_one_that_a_killed_run_wrote_in_part_is_completed(
    vault_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    data, place = content(vault_file), tmp_path / "key"
    for size in (0, 1, len(data) // 2, len(data) - 1, len(data)):
        place.write_bytes(data[:size])
        place.chmod(0o600)
        assert (await put(vault_file, place)).outcome is Outcome.CREATED
        assert place.read_bytes() == data
        (tmp_path / NOTE).unlink()
    place.write_bytes(data + b"x")
    with pytest.raises(RecoveryFileThereError):
        await put(vault_file, place)


async def test_it_is_for_its_owner_alone_and_where_that_cannot_be_it_is_told(
    vault_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "key"
    shutil.copy(vault_file, place)
    place.chmod(0o644)
    done = await put(vault_file, place)
    assert (done.outcome, place.stat().st_mode & 0o777) == (Outcome.CREATED, 0o600)
    assert "others can read" not in done.detail
    place.chmod(0o755)  # as all is on a stick
    done = await put(vault_file, place)
    assert (done.outcome, "still on this host; others can read it: its mode is 0755" in done.detail) == (
        Outcome.WARNING,
        True,
    )
    (tmp_path / NOTE).unlink()
    monkeypatch.setattr(os, "fchmod", lambda _fd, _mode: None)
    assert "others can read it: its mode is 0755" in (await put(vault_file, place)).detail


async def test_copies_of_the_vault_that_a_killed_run_left_beside_it_are_removed(
    vault_file: Path, tmp_path: Path
) -> None:
    """An earlier version made a file under another name first."""
    place = tmp_path / "home/key"
    place.parent.mkdir()
    copy, other = place.with_name(".key.0123456789ab"), place.with_name(".key.0123456789ac")
    await put(vault_file, place)
    place.unlink()
    copy.write_bytes(content(vault_file))
    other.write_bytes(b"somebody's")
    assert (await put(vault_file, place, dry_run=True)).outcome is Outcome.WOULD_MEND
    done = await put(vault_file, place)
    assert (done.outcome, str(copy) in done.detail) == (Outcome.MENDED, True)
    assert list(place.parent.iterdir()) == [other]
    assert (await put(vault_file, place)).outcome is Outcome.KEPT
    (tmp_path / NOTE).unlink()
    copy.write_bytes(content(vault_file))
    assert (await put(vault_file, place)).outcome is Outcome.CREATED
    assert sorted(place.parent.iterdir()) == [other, place]
