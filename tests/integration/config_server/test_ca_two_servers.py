"""The CA is renewed by two config servers on one PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from sqlalchemy import Connection

from config_server import background
from config_server.identity import own_certificate
from config_server.identity.ca import CertificateAuthority
from config_server.recovery import keeping, sealed, state
from config_server.recovery.generation import state_blob
from config_server.store import ca as stored
from config_server.store.config import DatabaseConfig
from config_server.store.database import Database
from shared import api
from shared.api.jobs import JobState
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.control.rest import RestClient
from shared.errors import CaFilesError, ConfigError, IdentityFileError, PeerError, ServerNotReadyError
from shared.keys.vault import FileVault
from shared.trust import anchors, identity, tls
from tests import config_parts
from tests.ca_renewals import Daemon, hurry, renew, until
from tests.config_parts import ConfigServer, config_for, running
from tests.pair import Pair, end_lease, join, running_pair
from tests.replicas import PARTS


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def give(of: ConfigServer, to: ConfigServer) -> None:
    """As a person does."""
    for name in ("ca.key", "ca.pem"):
        (to.config.data_dir / name).write_bytes((of.config.data_dir / name).read_bytes())


async def test_who_takes_the_job_makes_no_other_ca_since_he_has_not_heard_yet_of_who_made_one(
    tmp_path: Path, database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "BEAT_S", 3600.0)  # nobody hears of the others but at his start
    monkeypatch.setattr(background, "_BEAT_S", 3600.0)  # nor takes a job but whoever is told
    async with running_pair(tmp_path, database_config) as pair:
        begun = await renew(pair.at_b)
        await until(pair.a, begun.id, waits="cs-a (")
        before = CertificateAuthority.read(pair.a.config.data_dir)
        made = CertificateAuthority.read(pair.b.config.data_dir)
        await pair.at_a.call(api.JOB_RETRY, Nothing(), id=begun.id)
        found = await until(pair.a, begun.id, JobState.DONE, JobState.WAITING)
        assert "earlier version" not in found.waits, "who has just come says at once what he has"
        assert CertificateAuthority.read(pair.a.config.data_dir).is_as(before)
        assert CertificateAuthority.read(pair.b.config.data_dir).is_as(made)


async def given_and_held(pair: Pair, hold_s: float = 3600.0) -> tuple[str, ConfigServer]:
    """The id of a renewal that waits for its hold, and the server that was given its files."""
    begun = await renew(pair.at_a, hold_s)
    found = await until(pair.a, begun.id, waits="copy ca.key and ca.pem from")
    source, to = (pair.b, pair.a) if "of cs-b)" in found.waits else (pair.a, pair.b)
    give(source, to)
    await until(pair.a, begun.id, waits="operators")
    return begun.id, to


async def test_it_does_not_switch_while_a_server_cannot_read_the_files_that_it_was_given(pair: Pair) -> None:
    old = CertificateAuthority.read(pair.a.config.data_dir).certificate
    id_, given = await given_and_held(pair, hold_s=5)
    key_file = given.config.data_dir / "ca.key"
    key = key_file.read_bytes()
    key_file.write_bytes(key[: len(key) - 50])  # there was no room for the rest
    found = await until(pair.a, id_, waits=f"{given.config.name} (The CA's files")
    assert "could not be used" in found.waits
    other = pair.a if given is pair.b else pair.b
    assert CertificateAuthority.read(other.config.data_dir).certificate == old
    key_file.write_bytes(key)
    await until(pair.a, id_, JobState.DONE)


async def test_a_disk_that_is_full_for_a_moment_turns_nothing_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whichever server has the job just then: its own certificate is due, and cannot be written."""
    id_, _given = await given_and_held(pair, hold_s=5)
    with monkeypatch.context() as full:
        full.setattr(own_certificate, "_issued", lambda *_: False)

        def no_room(*_: object, **__: object) -> None:
            raise IdentityFileError("It could not be written", cause="No space left on device")

        full.setattr(identity, "write", no_room)
        await until(pair.a, id_, waits="No space left on device")
    await until(pair.a, id_, JobState.DONE)


async def test_a_server_that_was_away_all_the_time_starts_with_the_files_that_it_is_given(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """What is noted beside its vault is the CA of before."""
    vaults = [FileVault.create(tmp_path / name).path for name in ("a.json", "b.json")]
    first, second = (
        config_for(tmp_path / name, database=database_config, name=f"cs-{name}", vault_file=vault)
        for name, vault in zip("ab", vaults, strict=True)
    )
    async with running(first) as a:
        second.data_dir.mkdir(parents=True)
        for name in PARTS:
            shutil.copy2(first.data_dir / name, second.data_dir / name)
        async with running(second):
            pass
        async with a.operator() as operator:
            begun = await renew(operator)
        await until(a, begun.id, JobState.DONE)
        await a.enrolled("agent", "web1", tmp_path / "web1")
        with pytest.raises(ConfigError, match="renewed while this one was away"):
            async with running(second):
                pass
        for name in ("ca.key", "ca.pem"):
            shutil.copy2(first.data_dir / name, second.data_dir / name)
        async with running(second) as b, b.operator() as operator:
            assert (await operator.call(api.CA, Nothing())).former
    # It is noted; with the files of another installation it does not start.
    CertificateAuthority.made().save(second.data_dir)
    with pytest.raises(ConfigError, match="not the one that this installation had"):
        async with running(second):
            pass


async def test_who_stood_still_in_a_step_and_lost_his_job_writes_nothing_over_what_came_since(
    pair: Pair, database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the transaction with which the old CA is dropped: when he goes on, another renewal is under way."""
    stands, goes_on = threading.Event(), threading.Event()
    add_former = stored.add_former

    def stand_still(db: Connection, gone: Sequence[x509.Certificate]) -> None:
        if not stands.is_set():
            stands.set()
            goes_on.wait()
        add_former(db, gone)

    monkeypatch.setattr(stored, "add_former", stand_still)
    try:
        first = await renew(pair.at_a)
        given = await until(pair.a, first.id, waits="copy ca.key and ca.pem from")
        give(*((pair.b, pair.a) if "of cs-b)" in given.waits else (pair.a, pair.b)))
        await asyncio.to_thread(stands.wait)
        end_lease(database_config, first.id)
        await until(pair.a, first.id, JobState.DONE)
        second, _ = await given_and_held(pair, hold_s=5)
    finally:
        goes_on.set()
    done = await until(pair.a, second, JobState.DONE, JobState.FAILED, JobState.ATTENTION)
    assert done.state is JobState.DONE


async def test_nobody_is_sent_to_a_server_that_lacks_the_ca_by_which_daemons_have_certificates(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """It was started in the middle of the renewal, with the files of before: whoever was renewed is refused there."""
    second = config_for(tmp_path / "b", database=database_config, name="cs-b")
    async with running(config_for(tmp_path / "a", database=database_config, name="cs-a")) as a:
        join(second, a.config)
        web1 = Daemon(a.url, await a.enrolled("agent", "web1", tmp_path / "web1"))
        async with a.operator() as operator:
            async with web1.there():
                begun = await renew(operator, 3.0)
                await until(a, begun.id, waits="operators")
            await until(a, begun.id, waits="have a certificate of the new CA")
        async with running(second) as b, b.operator() as operator:
            with pytest.raises(ServerNotReadyError):
                await operator.call(api.READY, Nothing())
            async with web1.there():
                await until(a, begun.id, waits="cs-b (copy")
                async with RestClient(b.url, tls.client_context(web1.files, tls.CONFIG_SERVER)) as client:
                    with pytest.raises(PeerError):
                        await client.call(api.CA, Nothing())
                give(a, b)
                await until(a, begun.id, JobState.DONE)
        async with running(second) as b, b.operator() as operator:
            await operator.call(api.READY, Nothing())


async def test_no_ca_is_made_by_a_server_that_does_not_know_by_which_another_one_signs(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """The database was put back from before the renewal, and one server was away in it: to copy its files to the other, as the job would
    say, is to lose the key of the CA by which daemons have certificates."""
    second = config_for(tmp_path / "b", database=database_config, name="cs-b")
    async with running(config_for(tmp_path / "a", database=database_config, name="cs-a")) as a:
        join(second, a.config)
        web1 = Daemon(a.url, await a.enrolled("agent", "web1", tmp_path / "web1"))
        async with web1.there():
            async with a.operator() as operator:
                begun = await renew(operator)
            await until(a, begun.id, JobState.DONE)
        with psycopg.connect(database_config.url) as db:
            db.execute("DELETE FROM settings WHERE name LIKE 'ca-%'")
            db.execute("DELETE FROM steps")
            db.execute("DELETE FROM jobs")
            db.execute("DELETE FROM certificates")
        async with running(second) as b, web1.there():
            async with b.operator() as operator:
                begun = await renew(operator)
            await until(a, begun.id, waits="signs by a CA that")
            give(a, b)
            found = await until(a, begun.id, waits="copy ca.key and ca.pem from")
            give(*((b, a) if "of cs-b)" in found.waits else (a, b)))
            await until(a, begun.id, JobState.DONE)
            assert web1.trusted == CertificateAuthority.read(second.data_dir).pem


async def test_what_another_host_would_begin_with_is_kept_by_no_server_that_lacks_the_ca(
    tmp_path: Path,
    database_config: DatabaseConfig,
    blob_config: BlobConfig,
    store: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files, over those of the other one in storage, would be all that is left on the worst day."""
    monkeypatch.setattr(background, "KEEP_S", 0.1)
    monkeypatch.setattr(background, "FORCE_S", 0.05)
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    vault = FileVault.create(tmp_path / "a.json")
    shutil.copy2(vault.path, tmp_path / "b.json")
    first, second = (
        config_for(
            tmp_path / name,
            database=database_config,
            name=f"cs-{name}",
            vault_file=tmp_path / f"{name}.json",
            blob=blob_config,
        )
        for name in "ab"
    )

    async def kept() -> list[str]:
        """Whom the CA in storage trusts."""
        data = await store.read(state_blob(1))
        parts = state.content(sealed.opened(data, vault, "blob").parts, "blob").folder
        ca = CertificateAuthority.loaded(parts["ca.key"], parts["ca.pem"])
        return [anchors.fingerprint(each) for each in ca.trusted]

    async def is_kept() -> bool:
        return (await kept())[0] == new

    second.data_dir.mkdir(parents=True)
    async with running(first) as a, a.operator() as operator:
        for name in PARTS:
            shutil.copy2(first.data_dir / name, second.data_dir / name)
        web1 = Daemon(a.url, await a.enrolled("agent", "web1", tmp_path / "web1"))
        async with web1.there():
            begun = await renew(operator, 3.0)
            await until(a, begun.id, waits="operators")
        await until(a, begun.id, waits="have a certificate of the new CA")
        new = anchors.fingerprint(CertificateAuthority.read(first.data_dir).certificate)
        await config_parts.until(is_kept)
        async with running(second) as b:
            for _ in range(20):
                # Something changes, which either may put there.
                await b.token("agent", "web2")
                await asyncio.sleep(0.1)
                assert new in await kept()
        # One that stood still meanwhile does not know yet that it is behind.
        db = await Database.configured(database_config, tmp_path)
        try:
            with pytest.raises(CaFilesError):
                await state.gathered(db, second, vault)
            await state.gathered(db, first, vault)
        finally:
            await db.close()
