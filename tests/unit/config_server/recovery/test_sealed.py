"""The envelope of the control state."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.recovery import sealed
from shared.errors import IntegrityError, WrongKeyError
from shared.keys import vault
from shared.keys.vault import FileVault

PARTS = {"ca.key": b"key", "state.db": b"\0" * 100_000, "empty": b""}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> FileVault:
    return FileVault.create(tmp_path_factory.mktemp("vault") / "vault.json")


def test_what_was_sealed_is_opened_by_the_same_vault(file: FileVault) -> None:
    data = sealed.seal(PARTS, file, generation=7, made_ns=12)
    assert len(data) < 2000, "it is compressed"
    assert sealed.opened(data, file, "blob") == (sealed.head_of(data, "blob"), PARTS)
    assert (sealed.head_of(data, "blob").generation, sealed.head_of(data, "blob").made_ns) == (7, 12)
    assert sealed.seal(PARTS, file, generation=7, made_ns=12) != data, "under a key of its own"


def test_a_recovery_key_from_before_the_vault_got_another_key_opens_it(tmp_path: Path) -> None:
    before = FileVault.create(tmp_path / "recovery.key")
    (tmp_path / "vault.json").write_bytes(before.path.read_bytes())
    (tmp_path / "vault.json").chmod(0o600)
    FileVault.create(tmp_path / "other.json")
    vault.add(tmp_path / "vault.json", tmp_path / "other.json")
    now = FileVault(tmp_path / "vault.json")
    data = sealed.seal(PARTS, now, generation=1, made_ns=1)
    assert len(sealed.head_of(data, "blob").keys) == 2
    for each in (before, now, FileVault(tmp_path / "other.json")):
        assert sealed.opened(data, each, "blob").parts == PARTS


def test_another_installation_s_key_does_not_open_it_and_that_is_said(
    file: FileVault, tmp_path: Path
) -> None:
    data = sealed.seal(PARTS, file, generation=1, made_ns=1)
    other = FileVault.create(tmp_path / "other.json")
    with pytest.raises(WrongKeyError, match=f"under vault keys {file.current}, and .* holds {other.current}"):
        sealed.opened(data, other, "blob")


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_whatever_is_altered_in_it_it_does_not_open(file: FileVault, at: int, bit: int) -> None:
    data = bytearray(sealed.seal(PARTS, file, generation=1, made_ns=1))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises((IntegrityError, WrongKeyError)):
        sealed.opened(bytes(data), file, "blob")


@given(length=st.integers(0, 10_000))
def test_cut_anywhere_it_does_not_open(file: FileVault, length: int) -> None:
    data = sealed.seal(PARTS, file, generation=1, made_ns=1)
    with pytest.raises(IntegrityError):
        sealed.opened(data[: length % len(data)], file, "blob")


@given(data=st.binary(max_size=200))
def test_anything_else_is_none(file: FileVault, data: bytes) -> None:
    for each in (data, sealed.MAGIC + data):
        with pytest.raises(IntegrityError):
            sealed.opened(each, file, "blob")


def test_nothing_of_what_is_in_it_can_be_read(file: FileVault) -> None:
    data = sealed.seal({"operator.token": b"a secret that is long enough"}, file, generation=1, made_ns=1)
    assert b"secret" not in data
    assert b"operator" not in data
