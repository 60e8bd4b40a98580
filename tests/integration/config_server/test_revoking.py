"""Revocations in two places, of which one may fail, or be set back: the database and storage. With real files, disks and blobs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from config_server.identity.ca import CertificateAuthority
from config_server.identity.revocation_record import encode
from config_server.operations import revoking
from config_server.operations.control import Control
from config_server.operations.revoking import Revoking
from config_server.rules.revocations import Record
from config_server.storage.account import Storage
from config_server.store import restored, revocation
from config_server.store.database import Connection, Database
from config_server.store.files import DATABASE_FILE
from shared import api
from shared.api.audit import AuditView
from shared.api.certificates import RenewRequest
from shared.api.events import EventQuery, EventView
from shared.api.route import Page
from shared.blob import BlobConfig, BlobStore
from shared.control import enrol
from shared.errors import (
    CertificateRevokedError,
    DatabaseError,
    KeyRevokedError,
    RenewalPutOffError,
    RevocationUnrecordedError,
    TokenUnknownError,
)
from shared.trust import identity
from shared.trust.tls import TlsFiles
from tests import databases
from tests.azurite import Azurite
from tests.config_parts import ConfigServer, config_for, daemon, running, serial, until
from tests.failing_disks import FAILING
from tests.storage_faults import Answer, FaultProxy


async def is_refused(server: ConfigServer, files: TlsFiles) -> bool:
    async with daemon(server, files) as client:
        try:
            await client.report({"state": "ordered"})
        except CertificateRevokedError:
            return True
    return False


async def renew(server: ConfigServer, files: TlsFiles) -> None:
    async with daemon(server, files) as client:
        await client._client.call(api.RENEW, RenewRequest(csr=identity.request_of(files)))


async def taken_in(server: ConfigServer) -> tuple[list[AuditView], list[EventView]]:
    async with server.operator() as operator:
        entries = (await operator.call(api.AUDIT, Page())).entries
        events = (await operator.call(api.EVENTS, EventQuery())).events
    return (
        [entry for entry in entries if entry.action == "certificate.revoke.recovered"],
        [event for event in events if event.kind == "revocation"],
    )


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    """To storage."""
    with FaultProxy(azurite) as made:
        yield made


@pytest.fixture
def storage(proxy: FaultProxy, blob_config: BlobConfig) -> BlobConfig:
    """Behind the proxy."""
    return proxy.config(blob_config.container)


@pytest.fixture
def config(storage: BlobConfig, tmp_path: Path) -> ConfigServerConfig:
    return config_for(tmp_path, blob=storage)


@pytest.fixture
def tries_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking, "_AGAIN_S", 0.1)


def refuse_all(proxy: FaultProxy) -> None:
    """Storage is away, until `proxy.clear()`."""
    proxy.add(Answer(403, "AuthorizationFailure"), times=None)


async def records(store: BlobStore) -> list[str]:
    return [blob.name async for blob in store.list("revoked/")]


async def until_recorded(store: BlobStore, number: int) -> None:
    """So much of web1."""

    async def are_there() -> bool:
        return len([name for name in await records(store) if "agent/web1/" in name]) >= number

    await until(are_there)


@contextlib.contextmanager
def restored_afterwards(
    config: ConfigServerConfig, tmp_path: Path, *, is_marked: bool = False
) -> Iterator[None]:
    """The data folder as it is now, again after the block; marked, where the server's own command puts it back."""
    shutil.copytree(config.data_dir, tmp_path / "backup")
    yield
    shutil.rmtree(config.data_dir)
    (tmp_path / "backup").rename(config.data_dir)
    if is_marked:
        with databases.opened(config.data_dir / DATABASE_FILE) as db:
            restored.prepare(db, time.time_ns())


async def test_a_restored_database_takes_in_what_was_revoked_since_and_readmits_who_was(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    config = config_for(tmp_path, blob=blob_config)
    async with running(config) as server:
        stolen, name, back = [
            await server.enrolled("agent", machine, tmp_path / machine)
            for machine in ("web1", "web2", "web3")
        ]
        token = (await server.token("agent", "web2")).token
    with restored_afterwards(config, tmp_path):
        async with running(config) as server:
            unknown = await server.enrolled("agent", "web2", tmp_path / "unknown")
            for certificate in (serial(stolen), "agent:web2", "agent:web3"):
                assert not (await server.revoke(certificate)).warning
            again = await server.enrolled("agent", "web3", tmp_path / "again")
            other = await server.enrolled("agent", "web4", tmp_path / "other")
    async with running(config) as server:
        assert [await is_refused(server, files) for files in (stolen, name, unknown, back)] == [True] * 4
        assert [await is_refused(server, files) for files in (again, other)] == [False] * 2
        # Certificates that this database did not know are known when they were shown, with their keys.
        async with server.operator() as operator:
            listed = (await operator.call(api.CERTIFICATES, Page())).certificates
        assert {serial(again), serial(other)} <= {view.serial for view in listed if view.revoked is None}
        with pytest.raises(TokenUnknownError):
            await enrol.enrol(server.url, token, tmp_path / "thief")
        entries, [event] = await taken_in(server)
        assert {serial(stolen), "agent:web2", "agent:web3"} <= {entry.object for entry in entries}
        assert {entry.detail["who"] for entry in entries} == {"operator:admin"}
        assert "taken in from storage" in event.what
    async with running(config) as server:
        assert await taken_in(server) == (entries, [event]), "once"
        assert await is_refused(server, stolen)


def unreadable(_db: Connection) -> list[Record]:
    raise sqlite3.OperationalError("disk I/O error")


async def test_what_the_database_cannot_write_is_in_force_and_in_storage_and_gets_into_the_database(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    with FAILING["Read-only file system"]() as disk:
        config = config_for(disk.where, blob=blob_config)
        async with running(config) as server:
            files = await server.enrolled("agent", "web1", tmp_path / "agent")
            backup = tmp_path / "backup"
            disk.fail()
            answer = await server.revoke(serial(files))
            assert "storage alone" in answer.warning
            assert [view.name for view in answer.certificates] == ["agent:web1"]
            assert await is_refused(server, files)
            shutil.copytree(config.data_dir, backup)
    config = config_for(tmp_path, blob=blob_config)
    backup.rename(config.data_dir)
    async with running(config) as server:
        assert await is_refused(server, files)
        assert [entry.object for entry in (await taken_in(server))[0]] == [serial(files)]


async def test_what_neither_takes_is_an_error_and_in_force(
    proxy: FaultProxy, storage: BlobConfig, tmp_path: Path
) -> None:
    with FAILING["Read-only file system"]() as disk:
        async with running(config_for(disk.where, blob=storage)) as server:
            files = await server.enrolled("agent", "web1", tmp_path / "agent")
            disk.fail()
            refuse_all(proxy)
            with pytest.raises(RevocationUnrecordedError) as failed:
                await server.revoke("agent:web1")
            assert "database" in failed.value.cause
            assert "AuthorizationFailure" in failed.value.cause
            assert await is_refused(server, files)


@pytest.mark.usefixtures("tries_again_soon")
async def test_what_storage_cannot_take_is_done_and_said_and_made_up_for(
    proxy: FaultProxy, config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        refuse_all(proxy)
        answer = await server.revoke("agent:web1")
        assert "It is in force" in answer.warning
        assert await is_refused(server, files)
        proxy.clear()
        await until_recorded(store, 1)
    assert len(await records(store)) == 1


@pytest.mark.usefixtures("tries_again_soon")
async def test_who_was_revoked_before_a_backup_and_readmitted_after_it_is_admitted_when_storage_has_told_so(
    proxy: FaultProxy, config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    """Storage is away when it is readmitted, and when the restored server starts."""

    async def is_back() -> bool:
        return not await is_refused(server, back)

    async with running(config) as server:
        lost = await server.enrolled("agent", "web1", tmp_path / "lost")
        await server.revoke("agent:web1")
    with restored_afterwards(config, tmp_path):
        async with running(config) as server:
            refuse_all(proxy)
            back = await server.enrolled("agent", "web1", tmp_path / "back")
            assert not await is_refused(server, back)
            proxy.clear()
            await until_recorded(store, 2)
    refuse_all(proxy)
    async with running(config) as server:
        assert await is_refused(server, back), "nobody can know it yet"
        proxy.clear()
        await until(is_back)
        assert await is_refused(server, lost)
        async with server.operator() as operator:
            entries = (await operator.call(api.AUDIT, Page())).entries
        assert [e.object for e in entries if e.action == "certificate.readmit.recovered"] == ["agent:web1"]


@pytest.mark.usefixtures("tries_again_soon")
async def test_a_restored_database_whose_storage_is_away_at_the_start_takes_in_what_was_revoked_later(
    proxy: FaultProxy, config: ConfigServerConfig, tmp_path: Path
) -> None:
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
    with restored_afterwards(config, tmp_path, is_marked=True):
        async with running(config) as server:
            await server.revoke("agent:web1")
    refuse_all(proxy)
    async with running(config) as server:
        assert not await is_refused(server, files), "nobody can know it yet"
        async with server.operator() as operator, asyncio.timeout(30):
            while not (  # noqa: ASYNC110 - the sweep has no event
                found := [
                    e for e in (await operator.call(api.EVENTS, EventQuery())).events if e.code == "US600"
                ]
            ):
                await asyncio.sleep(0.05)
        assert "AuthorizationFailure" in found[0].cause
        proxy.clear()
        await until(lambda: is_refused(server, files))
        assert [entry.object for entry in (await taken_in(server))[0]] == ["agent:web1"]
    with databases.opened(config.data_dir / DATABASE_FILE) as db:
        assert not restored.mark(db)


@pytest.mark.usefixtures("tries_again_soon")
async def test_a_restored_server_renews_nothing_before_it_was_compared_with_storage(
    proxy: FaultProxy, config: ConfigServerConfig, tmp_path: Path
) -> None:
    """Who was revoked since the backup would get a certificate that nobody refuses."""

    async def good_is_renewed() -> bool:
        try:
            await renew(server, good)
        except RenewalPutOffError:
            return False
        return True

    async with running(config):
        pass
    with restored_afterwards(config, tmp_path, is_marked=True):
        async with running(config) as server:
            files = await server.enrolled("agent", "web1", tmp_path / "web1")
            good = await server.enrolled("agent", "web2", tmp_path / "web2")
            await server.revoke("agent:web1")
    refuse_all(proxy)
    async with running(config) as server:
        for asks in (files, good):
            with pytest.raises(RenewalPutOffError):
                await renew(server, asks)
        proxy.clear()
        await until(good_is_renewed)
        with pytest.raises(CertificateRevokedError):
            await renew(server, files)


async def test_a_blob_that_cannot_be_read_costs_only_itself_and_what_is_told_from_it(
    proxy: FaultProxy, storage: BlobConfig, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the account's key can archive a blob, and put there what has a size that no memory has room for."""
    ca = CertificateAuthority.open(tmp_path)
    known = [
        Record(subject="agent:web1", revoked_ns=1),
        Record(subject="agent:web1", revoked_ns=2, begins_s=200),
        Record(subject="agent:web1", revoked_ns=3),
        Record(subject="agent:web2", revoked_ns=9),
        Record(subject="ab", revoked_ns=4),
    ]
    for record in known:
        await store.create(record.blob, encode(record, ca))
    large = encode(Record(subject="cd", reason="x" * (1 << 17), revoked_ns=4), ca)
    await store.create("revoked/cd.json", large)
    await store.create("revoked/0.json", b"")
    for blob in ("revoked/0.json", known[2].blob):
        proxy.add(Answer(409, "BlobArchived"), times=None, method="GET", blob=f"*{blob}")
    async with parts(tmp_path, storage) as server:
        await server._control.db.run(lambda db: restored.prepare(db, 1))
        await server.recover()
        revoked = server._control.revoked
        assert (revoked.serials, sorted(revoked.before)) == (["ab"], ["agent:web1", "agent:web2"])
        assert revoked.before["agent:web1"] != 200, "it may be told from the revocation behind it"
        problem = server.uncompared()
        assert problem is not None
        assert "revoked/0.json (and 1 more)" in problem.cause
        with pytest.raises(RenewalPutOffError):
            server.check_renewal("agent:web2")
        proxy.clear()
        with monkeypatch.context() as fails:
            fails.setattr(restored, "forget", unreadable)
            await server.make_up()
        assert server.uncompared() is None
        with pytest.raises(RenewalPutOffError):
            server.check_renewal("agent:web2")
        await server.make_up()
        assert server._control.revoked.since["agent:web1"] == 3
        server.check_renewal("agent:web2")


async def test_storage_that_is_away_at_a_start_is_a_problem_when_it_lasts_and_at_once_behind_a_restore(
    proxy: FaultProxy, storage: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parts(tmp_path, storage) as known:
        refuse_all(proxy)
        await known.recover()
        assert known.uncompared() is None
        monkeypatch.setattr(revoking, "_LASTING_S", 0.0)
        assert known.uncompared() is not None
        monkeypatch.undo()
        await known._control.db.run(lambda db: restored.prepare(db, 1))
        await known.recover()
        assert known.uncompared() is not None
        proxy.clear()
        await known.make_up()
        assert known.uncompared() is None
        await known.recover()
        assert not known._restored


async def test_a_record_that_is_not_signed_by_the_ca_revokes_nobody_and_keeps_none_from_being_made(
    blob_config: BlobConfig, store: BlobStore, tmp_path: Path
) -> None:
    """Process servers have the account's key, too."""
    config = config_for(tmp_path, blob=blob_config)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
    forger = CertificateAuthority.open(tmp_path)
    record = Record(subject=serial(files), reason="forged", revoked_ns=1)
    await store.create(record.blob, encode(record, forger))
    await store.create("revoked/agent/web1/1.json", b"{}")
    async with running(config) as server:
        assert not await is_refused(server, files)
        assert not (await server.revoke(serial(files))).warning
        await store.delete(record.blob)
    async with running(config) as server:
        assert encode(record, forger) != await store.read(record.blob), "it is written again"
        assert await is_refused(server, files)


async def test_a_key_that_was_revoked_while_the_database_failed_gets_no_certificate_when_it_works_again(
    tmp_path: Path,
) -> None:
    with FAILING["No space left on device"]() as disk:
        config = config_for(disk.where)
        async with running(config) as server:
            files = await server.enrolled("agent", "web1", tmp_path / "agent")
            token = (await server.token("agent", "web1")).token
            (config.data_dir / "reserve").unlink()
            disk.fail()
            refused: RevocationUnrecordedError | None = None
            for number in range(200):  # until what the write-ahead log already had is used up
                try:
                    await server.revoke(f"agent:other{number}")
                except RevocationUnrecordedError as exc:
                    refused = exc
                    break
            assert refused is not None
            assert "none is configured" in refused.cause
            with pytest.raises(RevocationUnrecordedError):
                await server.revoke(serial(files))
            disk.heal()
            files.cert.unlink()
            with pytest.raises(KeyRevokedError):
                await enrol.enrol(server.url, token, tmp_path / "agent")


@contextlib.asynccontextmanager
async def parts(folder: Path, blob: BlobConfig) -> AsyncIterator[Revoking]:
    ca = CertificateAuthority.open(folder)
    db = await Database.open(folder / DATABASE_FILE)
    control = Control(db, ca, Storage(blob, None), dt.timedelta(days=90))
    try:
        yield Revoking(control)
    finally:
        await control.storage.close()
        await db.close()


async def test_a_database_that_cannot_be_read_is_not_taken_for_one_without_revocations(
    proxy: FaultProxy, storage: BlobConfig, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parts(tmp_path, storage) as known:
        with monkeypatch.context() as fails:
            fails.setattr(revocation, "current", unreadable)
            with pytest.raises(DatabaseError):
                await known.recover()
        await known.recover()
        refuse_all(proxy)
        await known._control.db.run(lambda db: revocation.revoke(db, "agent:web1", "stolen", 1))
        await known.make_up()
        proxy.clear()
        assert known.problem is not None
        with monkeypatch.context() as fails:
            fails.setattr(revocation, "rows", unreadable)
            await known.make_up()
        assert known.problem is not None
        await known.make_up()
        assert known.problem is None
        assert await records(store) == ["revoked/agent/web1/1.json"]
