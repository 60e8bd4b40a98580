"""The recovery key: put where the operator says, once, and never over anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from config_server.setup.recovery import NOTE, RecoveryKey
from shared import vault
from shared.errors import ConfigError, RecoveryFileThereError, UsageError
from shared.setup.steps import Done, Outcome, carry_out
from shared.vault import FileVault


@pytest.fixture
def vault_file(tmp_path: Path) -> Path:
    FileVault.create(tmp_path / "vault.json")
    return tmp_path / "vault.json"


async def put(vault_file: Path, wanted: Path | None, *, dry_run: bool = False) -> Done:
    [done] = await carry_out([RecoveryKey(vault_file, wanted)], lambda _: None, dry_run=dry_run)
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
