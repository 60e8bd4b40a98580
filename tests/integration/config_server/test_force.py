"""Two config servers of one installation: one is in force, and the other changes nothing, whoever asks it, and says why."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, restoring
from config_server.jobs.kinds import Kind, Kinds
from config_server.jobs.runner import Runner
from config_server.recovery import generation
from config_server.recovery.generation import BLOB, Force
from config_server.rules.force import Generation
from config_server.store import force, jobs, journal, settings
from config_server.store.database import Database
from config_server.store.files import DATABASE_FILE
from config_server.store.journal import Job
from shared import api
from shared.api.certificates import RenewRequest, RevokeRequest
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.desired import Desired
from shared.errors import IntegrityError, ServerNotReadyError, ServerSupersededError, VaultMisfitError
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from shared.status import AgentReport
from shared.trust import identity
from shared.trust.tls import TlsFiles
from tests.azurite import Azurite
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.storage_faults import Answer, FaultProxy


@pytest.fixture
def config(blob_config: BlobConfig, tmp_path: Path) -> ConfigServerConfig:
    FileVault.create(tmp_path / "vault.json")
    return config_for(tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config_server.background.FORCE_S", 0.05)


async def said(store: BlobStore) -> Generation:
    found = await generation.read(store)
    assert found is not None
    return found[0]


async def put_back(config: ConfigServerConfig, folder: Path) -> ConfigServerConfig:
    """A backup of it, on another host."""
    backup.backup(config, folder.with_suffix(".tar"))
    other = msgspec.structs.replace(config, data_dir=folder, hosts=["second.example.com"])
    restoring.restore(other, folder.with_suffix(".tar"))
    return other


async def protect(server: ConfigServer, name: str) -> None:
    async with server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine=name)


async def is_superseded(server: ConfigServer) -> bool:
    try:
        await protect(server, "web9")
    except ServerSupersededError:
        return True
    return False


async def test_the_first_start_makes_it_and_the_next_ones_find_it(
    config: ConfigServerConfig, store: BlobStore
) -> None:
    async with running(config) as server:
        first = await said(store)
        assert (first.generation, len(first.holder)) == (1, 32)
        await protect(server, "web1")
    async with running(config) as server:
        assert await said(store) == first
        await protect(server, "web2")


async def test_a_database_that_was_put_back_takes_over_and_the_old_server_is_read_only_says_so_and_stays_so(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    async with running(config) as old:
        await protect(old, "web1")
        files = await old.enrolled("agent", "web1", tmp_path / "agent")
        async with running(await put_back(config, tmp_path / "second")) as new:
            await protect(new, "web2")
            await until(lambda: is_superseded(old))
            assert (await said(store)).generation == 2
            await changes_nothing(old, files)
    async with running(config) as old:  # at once
        assert await is_superseded(old)
    assert (await said(store)).generation == 2


async def changes_nothing(old: ConfigServer, files: TlsFiles) -> None:
    async with old.operator() as operator, daemon(old, files) as agent:
        with pytest.raises(
            ServerSupersededError, match=r"second\.example\.com.* is in force since .*generation 2"
        ):
            await operator.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="agent:web1"))
        with pytest.raises(ServerSupersededError):
            await old.token("agent", "web3")
        with pytest.raises(ServerSupersededError):
            await agent._client.call(api.RENEW, RenewRequest(csr=identity.request_of(files)))
        told: list[Desired] = []
        agent._on_desired = lambda desired: _noted(told, desired)
        assert await agent.report(AgentReport(machine="web1", state="ordered", epoch=1)) == []
        assert told == []
        with pytest.raises(ServerNotReadyError, match="another one is in force"):
            await operator.call(api.READY, Nothing())
        [machine] = (await operator.call(api.MACHINES, Nothing())).machines
        assert machine.name == "web1"
        assert ServerSupersededError.code in [error.code for error in machine.errors]

        async def is_told() -> bool:
            events = (await operator.call(api.EVENTS, EventQuery(open=True))).events
            return ServerSupersededError.code in [event.code for event in events]

        await until(is_told)


async def _noted(told: list[Desired], desired: Desired) -> None:
    told.append(desired)


async def test_one_that_was_superseded_knows_it_without_storage_too(
    azurite: Azurite, config: ConfigServerConfig, tmp_path: Path
) -> None:
    with FaultProxy(azurite) as proxy:
        assert config.blob is not None
        behind = msgspec.structs.replace(config, blob=proxy.config(config.blob.container))
        async with running(behind) as old, running(await put_back(config, tmp_path / "second")):
            await until(lambda: is_superseded(old))
        proxy.add(Answer(403, "AuthorizationFailure"), times=None)
        async with running(behind) as old:
            assert await is_superseded(old)


async def test_a_backup_of_the_old_one_that_is_put_back_on_it_has_it_in_force_again(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    async with running(config):
        other = await put_back(config, tmp_path / "second")
    async with running(other) as new:
        backup.backup(config, tmp_path / "again.tar")
        restoring.restore(config, tmp_path / "again.tar")
        async with running(config) as old:
            await protect(old, "web1")
            await until(lambda: is_superseded(new))
    assert (await said(store)).generation == 3


async def test_storage_that_is_away_hinders_nothing_but_what_cannot_be_taken_back(
    azurite: Azurite, config: ConfigServerConfig
) -> None:
    with FaultProxy(azurite) as proxy:
        assert config.blob is not None
        proxy.add(Answer(503, "ServerBusy"), times=None)
        behind = msgspec.structs.replace(config, blob=proxy.config(config.blob.container))
        async with running(behind) as server:
            await protect(server, "web1")
        db = await Database.open(behind.data_dir / DATABASE_FILE)
        try:
            storage = MachineStorage.connect(proxy.config(config.blob.container))
            one = Force(db, lambda: storage, "here", FileVault(config.vault_file or Path()).fingerprints)
            generation_before = await db.run(force.ours)
            assert await one.hindrance() == generation.UNKNOWN
            proxy.clear()
            one._looked_s = -1e9
            assert await one.hindrance() == ""
            assert (one.generation, generation_before.generation) == (1, 0)
            await storage.close()
        finally:
            await db.close()


async def test_two_that_are_put_back_at_once_get_two_numbers_and_one_is_in_force(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    async with running(config):
        first = await put_back(config, tmp_path / "one")
        second = await put_back(config, tmp_path / "two")
    async with running(first) as one, running(second) as two:
        await until(lambda: _either(one, two))
        servers = {True: 0, False: 0}
        for each in (one, two):
            servers[await is_superseded(each)] += 1
    assert servers == {True: 1, False: 1}
    assert (await said(store)).generation == 3


async def _either(*servers: ConfigServer) -> bool:
    return any([await is_superseded(server) for server in servers])


async def test_two_over_one_database_are_one(config: ConfigServerConfig, store: BlobStore) -> None:
    async with running(config):
        pass
    db = await Database.open(config.data_dir / DATABASE_FILE)
    try:
        storage = MachineStorage(store)
        one, two = (Force(db, lambda: storage, "host", {}) for _ in range(2))
        await asyncio.gather(one.look(), two.look())
        assert (one.error, two.error, one.generation, two.generation) == (None, None, 1, 1)
    finally:
        await db.close()


@pytest.fixture
async def db(config: ConfigServerConfig) -> AsyncIterator[Database]:
    config.data_dir.mkdir()
    opened = await Database.open(config.data_dir / DATABASE_FILE)
    yield opened
    await opened.close()


async def test_another_installation_s_server_takes_nothing_over(
    config: ConfigServerConfig, store: BlobStore, db: Database, tmp_path: Path
) -> None:
    other = config_for(tmp_path / "other", blob=config.blob, vault_file=config.vault_file)
    async with running(other):

        async def is_recorded() -> bool:
            return [info.name async for info in store.list("vault/")] != []

        await until(is_recorded)
    await db.run(force.take_over)
    foreign = FileVault.create(tmp_path / "foreign.json")
    with pytest.raises(VaultMisfitError):
        await Force(db, lambda: MachineStorage(store), "here", foreign.fingerprints).look()
    assert (await said(store)).generation == 1


async def test_a_document_that_cannot_be_read_is_not_written_over(store: BlobStore, db: Database) -> None:
    await store.create(BLOB, b"{}")
    one = Force(db, lambda: MachineStorage(store), "here", {})
    with pytest.raises(IntegrityError, match="cannot be read"):
        await one.look()
    assert await one.hindrance() == generation.UNKNOWN
    assert await store.read(BLOB) == b"{}"


async def test_a_copy_of_the_folder_that_was_not_put_back_takes_nothing_over(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    """It is the same server for storage: what tells two such apart is the lock of the folder, and what people do."""
    async with running(config):
        before = await said(store)
    shutil.copytree(config.data_dir, tmp_path / "copy")
    async with running(msgspec.structs.replace(config, data_dir=tmp_path / "copy")):
        assert await said(store) == before


async def test_what_a_database_remembers_of_it_goes_with_a_restore(db: Database) -> None:
    before = await db.run(force.ours)
    await db.run(
        lambda opened: force.lost(opened, Generation(generation=4, holder="x", host="h", since_ns=1))
    )
    await db.run(lambda opened: force.take_over(opened, "state 3"))
    after = await db.run(force.ours)
    assert (after.takes_over, after.holder != before.holder) == (True, True)
    assert await db.run(force.superseded) is None
    assert await db.run(force.recovered_from) == "state 3"
    assert await db.run(lambda opened: settings.get(opened, "control takes over")) == "1"


class Noted:
    """A step that writes down that it was done."""

    def __init__(self, name: str, done: list[str], then: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self._done = done
        self._then = then

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any:
        self._done.append(self.name)
        self._then()

    async def undo(self, job: Job) -> bool:
        self._done.append(f"not {self.name}")
        return True


async def test_while_it_may_not_act_no_job_is_claimed_and_of_one_that_was_no_step_begins(
    db: Database,
) -> None:
    said = ["storage does not say it"]
    done: list[str] = []

    async def hindrance() -> str:
        return said[-1]

    steps = [Noted("one", done, lambda: said.append("another is in force")), Noted("two", done)]
    kinds = Kinds([Kind(name="k", version=1, steps=steps, lasting_s=0.0)])
    runner = Runner(db, kinds, "cs1", time.time_ns, hindrance=hindrance)
    id_ = await db.run(
        lambda opened: journal.create(
            opened, kind="k", version=1, machine="m", lane="l", who="w", args={}, now_ns=1
        )
    )
    await runner.look()
    await runner.settled()
    assert done == []
    said.append("")
    await runner.look()
    await runner.settled()
    assert done == ["one"], "and not the second step"
    job = await db.run(lambda opened: jobs.get(opened, id_))
    assert (job.waits, [step.name for step in job.steps]) == ("another is in force", ["one"])


async def test_who_stood_still_looks_before_it_takes_what_was_sent_meanwhile(
    config: ConfigServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.background.FORCE_S", 3600.0)
    async with running(config) as old:
        await protect(old, "web1")
        async with running(await put_back(config, tmp_path / "second")) as new:
            await protect(
                old, "web2"
            )  # its next look is not due, and it says so: docs/operations/recovering.md
            monkeypatch.setattr(generation, "_OVERDUE_S", 0.0)
            assert await is_superseded(old)
            await protect(new, "web3")


async def test_who_stood_still_takes_it_where_storage_does_not_say(
    config: ConfigServerConfig, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(azurite) as proxy:
        assert config.blob is not None
        config.blob = proxy.config(config.blob.container)
        monkeypatch.setattr("config_server.background.FORCE_S", 3600.0)
        async with running(config) as server:
            rule = proxy.add(Answer(503, "ServerBusy"), blob=generation.BLOB, times=None)
            await protect(server, "web1")
            before = rule.struck
            monkeypatch.setattr(generation, "_OVERDUE_S", -1.0)
            monkeypatch.setattr(generation, "_PATIENCE_S", 0.2)
            await protect(server, "web2")
            assert rule.struck > before
