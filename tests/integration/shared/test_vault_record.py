"""Which vault keys storage knows: no new key is wrapped under one of which it does not."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import msgspec
import pytest

from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import VaultMisfitError, VaultUnrecordedError
from shared.keys import vault
from shared.keys.vault import FileVault, machine_key
from shared.keys.vault_record import FOLDER, RecordedVault, Records
from shared.machine.storage import MachineStorage
from tests.process_server_site import free_port


@pytest.fixture
def machines(store: BlobStore) -> MachineStorage:
    return MachineStorage(store)


@pytest.fixture
def ours(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "ours")


@pytest.fixture
def other(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "other")


def over(file: FileVault, machines: MachineStorage, remembered: Records | None = None) -> RecordedVault:
    return RecordedVault(file, lambda: machines, remembered)


async def records(machines: MachineStorage) -> list[bytes]:
    return [await machines.vault.read(info.name) async for info in machines.vault.list(FOLDER)]


async def test_a_file_s_key_is_recorded_before_it_wraps_and_another_file_wraps_nothing(
    machines: MachineStorage, ours: FileVault, other: FileVault
) -> None:
    right, wrong = over(ours, machines), over(other, machines)
    await right.new_key("web1")
    (record,) = await records(machines)
    secret = msgspec.json.decode(ours.path.read_bytes())["keys"][0]["key"]
    assert not any(form in record for form in (secret.encode(), base64.b64decode(secret).hex().encode()))
    with pytest.raises(VaultMisfitError) as caught:
        await wrong.new_key("web2")
    assert f"lacks vault key {ours.current}" in caught.value.cause
    assert f"it holds {other.current}" in caught.value.cause
    assert wrong.problem is not None
    assert await records(machines) == [record]
    await over(FileVault(ours.path), machines).new_key("web2")  # after a restart, or at another server
    assert right.problem is None


async def test_of_two_files_at_once_one_becomes_the_vault(
    machines: MachineStorage, ours: FileVault, other: FileVault
) -> None:
    vaults = over(ours, machines), over(other, machines)
    tried = await asyncio.gather(*(one.new_key("web1") for one in vaults), return_exceptions=True)
    assert sorted(isinstance(one, VaultMisfitError) for one in tried) == [False, True]
    assert len(await records(machines)) == 1


async def test_a_file_that_has_more_keys_is_recorded_and_a_backup_from_before_is_told(
    machines: MachineStorage, ours: FileVault, other: FileVault, tmp_path: Path
) -> None:
    await over(ours, machines).check()
    backup = tmp_path / "backup"
    backup.write_bytes(ours.path.read_bytes())
    backup.chmod(0o600)
    assert vault.add(ours.path, other.path) == [other.current]
    grown = over(FileVault(ours.path), machines)
    await grown.check()
    assert (grown.problem, len(await records(machines))) == (None, 2)
    before = over(FileVault(backup), machines)
    await before.check()
    assert isinstance(before.problem, VaultMisfitError)
    assert f"lacks vault key {other.current}" in before.problem.cause
    made = await before.new_key("web1")  # the whole file opens it
    assert (await machine_opened(FileVault(ours.path), made.wrapped, made.key_id)) == made.key


async def machine_opened(file: FileVault, wrapped: bytes, key_id: str) -> bytes:
    return await file.unwrap(vault.WrappedKey(key_id, wrapped), "web1")


async def test_machines_from_before_there_were_records_say_which_keys_there_are(
    machines: MachineStorage, ours: FileVault, other: FileVault
) -> None:
    for name, file in (("web1", ours), ("web2", other)):
        await machine_key(await machines.find_or_create(name), file, name, create=True)
    with pytest.raises(VaultMisfitError, match="not the one") as caught:
        await over(ours, machines).new_key("web3")
    assert f"lacks vault key {other.current}" in caught.value.cause
    assert await records(machines) == []
    vault.add(ours.path, other.path)
    await over(FileVault(ours.path), machines).new_key("web3")
    assert len(await records(machines)) == 2


async def test_another_key_under_a_recorded_id_wraps_nothing(
    machines: MachineStorage, ours: FileVault, other: FileVault
) -> None:
    await over(ours, machines).check()
    forged = other.path.read_text().replace(other.current, ours.current)
    other.path.write_text(forged)
    with pytest.raises(VaultMisfitError) as caught:
        await over(FileVault(other.path), machines).new_key("web1")
    assert f"another key under the id {ours.current}" in caught.value.cause


async def test_while_storage_is_away_only_what_it_knew_wraps_new_keys(
    blob_config: BlobConfig, ours: FileVault, other: FileVault
) -> None:
    gone = msgspec.structs.replace(blob_config, url=f"https://127.0.0.1:{free_port()}/account")
    async with MachineStorage.connect(gone) as storage:
        away = storage.with_retry(Retry(deadline_s=0.0))
        unknown = over(other, away)
        with pytest.raises(VaultUnrecordedError) as caught:
            await unknown.new_key("web1")
        assert "does not answer" in caught.value.cause
        assert "go on by themselves" in caught.value.action
        assert unknown.problem is not None
        known = over(ours, away, ours.fingerprints)
        await known.check()
        await known.new_key("web1")
        assert known.problem is None
        with pytest.raises(VaultMisfitError):
            await over(other, away, ours.fingerprints).new_key("web1")
