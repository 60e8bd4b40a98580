"""The control state in storage: there soon after each change, by whoever has a recovery key to be read, and never a worse one over a good
one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup
from config_server.recovery import keeping, sealed, state
from config_server.recovery.generation import Force, state_blob
from config_server.recovery.keeping import Keeping
from config_server.store import inventory, settings, sqlite
from config_server.store.config import DatabaseConfig
from config_server.store.database import Database
from config_server.store.files import DATABASE_FILE
from shared import api
from shared.api.protection import Protection
from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import BlobNotFoundError, ConfigError, ControlStateUnstoredError, IntegrityError
from shared.keys.vault import FileVault, add
from shared.keys.vault_record import RecordedVault
from shared.machine.storage import MachineStorage
from tests.azurite import Azurite
from tests.config_parts import config_for, running, until
from tests.storage_faults import Answer, FaultProxy


@pytest.fixture
def vault(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "vault.json")


@pytest.fixture
def config(blob_config: BlobConfig, vault: FileVault, tmp_path: Path) -> ConfigServerConfig:
    return config_for(tmp_path, blob=blob_config, vault_file=vault.path, hosts=["config.example.com"])


async def content(store: BlobStore, vault: FileVault, generation: int = 1) -> state.Content | None:
    try:
        data = await store.read(state_blob(generation))
    except BlobNotFoundError:
        return None
    return state.content(sealed.opened(data, vault, "blob").parts, "blob")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_change_is_in_storage_soon_and_it_is_a_backup_that_can_be_put_back(
    kind: str,
    request: pytest.FixtureRequest,
    config: ConfigServerConfig,
    store: BlobStore,
    vault: FileVault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("config_server.background.KEEP_S", 0.1)
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    if kind == "postgresql":
        database: DatabaseConfig = request.getfixturevalue("database_config")
        config.database = database
    async with running(config) as server:

        async def has(*names: str) -> bool:
            found = await content(store, vault)
            return found is not None and found.machines == list(names)

        await until(has)
        async with server.operator() as operator:
            for name in ("web1", "web2"):
                await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine=name)
        await until(lambda: has("web1", "web2"))
    found = await content(store, vault)
    assert found is not None
    backup.check(found.folder, "it")
    assert found.folder["operator.token"].decode().strip() == server.operator_token
    assert (found.vault, found.settings.hosts) == (vault.path.read_bytes(), ("config.example.com",))
    with contextlib.closing(sqlite.of_bytes(found.folder[DATABASE_FILE])) as db:
        assert inventory.reports(db) == []


@pytest.fixture
async def db(config: ConfigServerConfig, store: BlobStore, vault: FileVault) -> AsyncIterator[Database]:
    """Of a server that ran."""
    async with running(config):

        async def is_there() -> bool:
            return await content(store, vault) is not None

        await until(is_there)
    opened = await Database.open(config.data_dir / DATABASE_FILE)
    yield opened
    await opened.close()


class Clock:
    """Monotonic, and it stands."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def keeping_of(
    db: Database,
    config: ConfigServerConfig,
    store: BlobStore,
    vault: FileVault,
    clock: Callable[[], float] = time.monotonic,
) -> Keeping:
    force = Force(db, lambda: MachineStorage(store), "host", vault.fingerprints)
    await force.look()
    return Keeping(db, config, vault, force, lambda: store, clock)


async def change(db: Database, value: str) -> None:
    await db.run(lambda opened: settings.put(opened, "something", value))


async def puts(store: BlobStore) -> str:
    return (await store.properties(state_blob(1))).etag


async def test_it_is_put_once_at_a_start_and_then_only_for_a_change_and_not_too_often(
    db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault
) -> None:
    before, clock = await puts(store), Clock()
    kept = await keeping_of(db, config, store, vault, clock)
    await kept.look()
    first = await puts(store)
    assert first != before
    clock.now_s += 1
    await kept.look()
    await change(db, "one")
    await kept.look()
    assert await puts(store) == first, "it waits"
    clock.now_s += keeping.PAUSE_S
    await kept.look()
    second = await puts(store)
    assert second != first
    clock.now_s += keeping.PAUSE_S
    await kept.look()
    assert await puts(store) == second, "nothing has changed"


async def test_what_does_not_get_there_for_five_minutes_is_a_problem_until_it_does(
    azurite: Azurite, db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(keeping, "_RETRY", Retry(deadline_s=0))
    with FaultProxy(azurite) as proxy:
        async with BlobStore.connect(proxy.config(store.container)) as behind:
            clock = Clock()
            kept = await keeping_of(db, config, behind, vault, clock)
            proxy.add(Answer(503, "ServerBusy"), times=None)
            await kept.look()
            assert kept.error is None
            clock.now_s += keeping.LATE_S
            await kept.look()
            assert isinstance(kept.error, ControlStateUnstoredError)
            assert "ServerBusy" in kept.error.cause or "busy" in kept.error.cause
            proxy.clear()
            clock.now_s += keeping.PAUSE_S
            await kept.look()
            assert kept.error is None


async def test_a_state_that_could_not_be_put_back_is_not_put_over_one_that_can(
    db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault
) -> None:
    before = await puts(store)
    kept = await keeping_of(db, config, store, vault)
    token = config.data_dir / "operator.token"
    token.write_text("another\n")
    await kept.look()
    assert await puts(store) == before
    assert "does not know the token" in kept._why
    token.unlink()
    await kept.look()
    assert await puts(store) == before


async def test_two_over_one_database_both_keep_it_and_an_older_content_goes_over_none(
    db: Database,
    config: ConfigServerConfig,
    store: BlobStore,
    vault: FileVault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "PAUSE_S", 0.0)
    one, two = [await keeping_of(db, config, store, vault) for _ in range(2)]
    await one.look()
    await two.look()
    mine = await puts(store)
    await change(db, "other")
    await one.look()
    assert await puts(store) == mine, "somebody else wrote it since"
    assert one._waits_since_s is not None
    await one.look()
    assert await puts(store) != mine
    assert one._waits_since_s is None


async def test_a_key_that_the_vault_got_since_is_in_it_and_opens_it(
    db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault, tmp_path: Path
) -> None:
    kept = await keeping_of(db, config, store, vault)
    other = FileVault.create(tmp_path / "other.json")
    add(vault.path, other.path)
    await kept.look()
    found = await content(store, other)
    assert found is not None
    assert found.vault == vault.path.read_bytes()


async def test_a_superseded_one_keeps_nothing(
    db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault
) -> None:
    kept = await keeping_of(db, config, store, vault)
    before = await puts(store)
    said = kept._force._said
    assert said is not None
    kept._force.by = said
    await change(db, "more")
    await kept.look()
    assert (await puts(store), kept.error) == (before, None)


def test_a_state_that_lacks_a_part_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it lacks ca\.key"):
        state.content({name: b"" for name in ("ca.pem", "state.db", "operator.token", "vault.json")}, "it")


async def test_a_server_without_a_vault_says_once_that_nothing_is_kept(
    tmp_path: Path, blob_config: BlobConfig, store: BlobStore, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(config_for(tmp_path, blob=blob_config)):
        pass
    assert capfd.readouterr().out.count("the control state is not kept in storage") == 1
    assert [info.name async for info in store.list("control/")] == []


async def test_what_was_deleted_or_put_by_somebody_else_is_put_again(
    db: Database, config: ConfigServerConfig, store: BlobStore, vault: FileVault
) -> None:
    clock = Clock()
    kept = await keeping_of(db, config, store, vault, clock)
    await kept.look()
    blob = state_blob(1)
    for harm in ("deleted", "replaced"):
        if harm == "deleted":
            await store.delete(blob)
        else:
            await store.replace(blob, b"an older version", if_match=await puts(store))
        clock.now_s += keeping.CHECK_S + 1
        await kept.look()
        if (
            await content_or_none(store, vault) is None
        ):  # it was not the one: at the next look it is put over what is seen now
            clock.now_s += keeping.PAUSE_S + 1
            await kept.look()
        assert await content(store, vault) is not None, harm


async def content_or_none(store: BlobStore, vault: FileVault) -> state.Content | None:
    try:
        return await content(store, vault)
    except IntegrityError:
        return None


async def test_of_two_over_one_database_the_one_that_read_an_older_one_puts_nothing_over_the_newer(
    db: Database,
    config: ConfigServerConfig,
    store: BlobStore,
    vault: FileVault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it has put nothing yet, so that it has seen no ETag."""
    slow, quick = [await keeping_of(db, config, store, vault) for _ in range(2)]
    real, gathered, go_on = state.gathered, asyncio.Event(), asyncio.Event()

    async def held(*arguments: Any) -> Any:
        found = await real(*arguments)
        gathered.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(state, "gathered", held)
    putting = asyncio.create_task(slow.look())
    await gathered.wait()
    monkeypatch.setattr(state, "gathered", real)
    await db.run(lambda opened: inventory.ensure_machine(opened, "web9", 1))
    await quick.look()
    newest = await puts(store)
    go_on.set()
    await putting
    assert await puts(store) == newest
    found = await content(store, vault)
    assert found is not None
    assert found.machines == ["web9"]


async def test_a_vault_that_lacks_a_key_puts_nothing_over_a_state_that_has_it(
    config: ConfigServerConfig, store: BlobStore, vault: FileVault, tmp_path: Path, db: Database
) -> None:
    older = tmp_path / "older.json"
    older.write_bytes(vault.path.read_bytes())
    older.chmod(0o600)
    add(vault.path, FileVault.create(tmp_path / "more.json").path)
    newer = FileVault(vault.path)
    await RecordedVault(newer, lambda: MachineStorage(store)).check()
    kept = await keeping_of(db, config, store, newer)
    await kept.look()
    good = await puts(store)
    config.vault_file = older
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    assert await puts(store) == good


async def test_what_is_changed_last_is_in_storage_when_the_server_has_ended(
    config: ConfigServerConfig, store: BlobStore, vault: FileVault
) -> None:
    async with running(config) as server:

        async def is_there() -> bool:
            return await content(store, vault) is not None

        await until(is_there)
        async with server.operator() as operator:
            await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
    found = await content(store, vault)
    assert found is not None
    assert found.machines == ["web1"]


async def test_an_end_waits_for_storage_for_a_few_seconds_and_no_longer(
    db: Database,
    config: ConfigServerConfig,
    store: BlobStore,
    vault: FileVault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "LAST_S", 0.1)
    kept = await keeping_of(db, config, store, vault)

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(kept, "_put", hangs)
    await kept.last()
