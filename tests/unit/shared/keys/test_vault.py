"""Keys: wrapping, the vault file, and that nothing prints them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest

from shared.errors import StateFileError, UsageError, WrongKeyError
from shared.keys import sealing, vault
from shared.keys.sealing import MachineKey, SealError
from shared.keys.vault import FileVault, WrappedKey


async def test_a_wrapped_key_comes_back_only_from_its_vault_and_for_its_machine(tmp_path: Path) -> None:
    ours, other = FileVault.create(tmp_path / "a"), FileVault.create(tmp_path / "b")
    made = await ours.new_key("m1")
    wrapped = WrappedKey(made.key_id, made.wrapped)
    assert made.key not in wrapped.wrapped
    assert (await ours.new_key("m1")).key != made.key
    assert await FileVault(tmp_path / "a").unwrap(wrapped, "m1") == made.key
    with pytest.raises(WrongKeyError, match="m2"):
        await ours.unwrap(wrapped, "m2")
    with pytest.raises(WrongKeyError, match="does not hold"):
        await other.unwrap(wrapped, "m1")
    for bad in (b"", wrapped.wrapped[:-1], bytes(60)):
        with pytest.raises(WrongKeyError):
            await ours.unwrap(WrappedKey(wrapped.key_id, bad), "m1")


def test_a_vault_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    FileVault.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        FileVault.create(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["vault"]


def test_a_vault_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    with pytest.raises(UsageError, match="No such file"):
        FileVault(path)
    no_current = b'{"v":1,"current":"k","keys":[]}'
    short_key = b'{"v":1,"current":"k","keys":[{"id":"k","key":"AAAA"}]}'
    for content in (b"{}", b"\xff", b"[" * 10_000, short_key, no_current):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UsageError, match="not a vault file"):
            FileVault(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="readable by others"):
        FileVault(path)


def test_a_new_installation_s_vault_is_made_by_one_command_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vault.json"
    assert vault.main([str(path)]) == 0
    assert "second place" in capsys.readouterr().out
    FileVault(path)
    assert vault.main([str(path)]) == UsageError.exit_code
    assert "exists already" in capsys.readouterr().err
    assert vault.main([str(tmp_path / "none" / "vault.json")]) == StateFileError.exit_code
    assert "No such file" in capsys.readouterr().err


async def test_the_keys_of_two_files_that_were_both_used_are_put_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = FileVault.create(tmp_path / "a"), FileVault.create(tmp_path / "b")
    made = [await file.new_key("m1") for file in (ours, other)]
    assert vault.main([str(ours.path), "--add", str(other.path)]) == 0
    assert other.current in capsys.readouterr().out
    both = FileVault(ours.path)
    assert both.current == ours.current
    assert [await both.unwrap(WrappedKey(one.key_id, one.wrapped), "m1") for one in made] == [
        one.key for one in made
    ]
    assert ours.path.stat().st_mode & 0o777 == 0o600
    assert vault.main([str(ours.path), "--add", str(other.path)]) == 0
    assert "had all of them" in capsys.readouterr().out
    other.path.write_text(other.path.read_text().replace(other.current, ours.current))
    assert vault.main([str(ours.path), "--add", str(other.path)]) == UsageError.exit_code
    assert "same id" in capsys.readouterr().err


def test_what_a_killed_one_left_beside_the_vault_file_goes_with_the_next_keys(tmp_path: Path) -> None:
    ours, other = FileVault.create(tmp_path / "a"), FileVault.create(tmp_path / "b")
    child = os.fork()
    if not child:
        try:
            Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
            vault.add(ours.path, other.path)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    [left] = vault.leftovers(ours.path)
    assert FileVault(left).fingerprints.keys() == {ours.current, other.current}, "with all keys"
    assert vault.add(ours.path, other.path) == [other.current]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_vault_file_that_root_adds_keys_to_stays_its_owner_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = FileVault.create(tmp_path / "a"), FileVault.create(tmp_path / "b")
    os.chown(ours.path, 4711, 4712)
    ours.path.chmod(0o400)
    before = ours.path.read_bytes()
    with monkeypatch.context() as refusing:
        refusing.setattr("os.fchown", Mock(side_effect=PermissionError(1, "Operation not permitted")))
        with pytest.raises(StateFileError, match="Nothing was changed"):
            vault.add(ours.path, other.path)
    assert ours.path.read_bytes() == before
    assert vault.add(ours.path, other.path) == [other.current]
    found = ours.path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4711, 4712, 0o400)


def test_a_key_is_not_printed() -> None:
    key = MachineKey("id", b"wrapped", b"K" * 32)
    assert "KKK" not in repr(key)
    assert "KKK" not in f"{key}"


def test_decompression_never_makes_more_than_was_said() -> None:
    packed = sealing.compress(bytes(1_000_000))
    assert sealing.decompress(packed, 1_000_000) == bytes(1_000_000)
    for wrong in (999_999, 1_000_001, 0):
        with pytest.raises(SealError):
            sealing.decompress(packed, wrong)
    with pytest.raises(SealError):
        sealing.decompress(b"garbage", 10)
