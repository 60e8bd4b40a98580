"""The CA is renewed: nobody is locked out, no session ends, and whoever is not there holds it."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from pathlib import Path

import msgspec
import pytest

from config_server.data_folder import backup, restoring
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.recovery import keeping, sealed, state
from config_server.recovery.generation import state_blob
from shared import api
from shared.api.jobs import JobAct, JobState
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.control import enrol
from shared.control.rest import RestClient
from shared.errors import JobActError, LaneTakenError, PeerError
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from shared.trust import anchors, identity
from shared.trust.pointer import opened as opened_pointer
from shared.vocabulary import Role
from tests import config_parts
from tests.ca_renewals import Daemon, hurry, installed, no_hold, renew, sessions, there, until
from tests.config_parts import config_for, running
from tests.process_server_site import free_port


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


async def test_all_go_over_to_another_ca_while_sessions_go_on_and_nothing_of_the_old_one_is_left(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path)) as server:
        folder = server.config.data_dir
        old = CertificateAuthority.read(folder)
        daemons = await installed(server, tmp_path)
        unused = await server.token("agent", "web2")
        web1 = daemons[1]
        async with sessions(daemons), there(daemons):
            async with server.operator() as operator:
                begun = await renew(operator)
                with pytest.raises(LaneTakenError):
                    await renew(operator)
            done = await until(server, begun.id, JobState.DONE)
        new = CertificateAuthority.read(folder)
        assert done.result == {"ca": anchors.fingerprint(new.certificate)}
        assert new.certificate != old.certificate
        for daemon in daemons:
            assert daemon.trusted == new.pem
            own = identity.only_certificate(daemon.files.cert.read_text())
            assert anchors.issuer_of(own, [new.certificate])
        assert [key.public_key() for key in new.keys] == [new.certificate.public_key()]
        assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
        # The CLI's way in, a token of before, and one of now, also over the folder of who was enrolled with the old CA.
        async with server.operator() as operator:
            assert (await operator.call(api.CA, Nothing())).pem == new.pem
        with pytest.raises(PeerError):
            await enrol.enrol(server.url, unused.token, tmp_path / "web2")
        of_old = identity.files_in(tmp_path / "again")
        (tmp_path / "again").mkdir()
        lost = old.issue(identity.key_of(web1.files).public_key(), *_of(Role.AGENT, "web3"))
        of_old.cert.write_bytes(identity.pem_of(lost))
        files = await server.enrolled("agent", "web3", tmp_path / "again")
        assert anchors.of_file(files.ca) == (new.certificate,)
        # Who has a certificate of the old one is nobody any more.
        of_old.cert.write_bytes(identity.pem_of(lost))
        stranger = ssl.create_default_context(cafile=folder / "ca.pem")
        stranger.load_cert_chain(_put(tmp_path / "lost.pem", identity.pem_of(lost)), web1.files.key)
        assert await _refused(server.url, stranger)
    async with (
        running(server.config) as again,
        again.operator() as operator,
    ):  # with files and database of now
        assert (await operator.call(api.CA, Nothing())).pem == new.pem


def _of(role: Role, name: str) -> tuple[Role, str, list[str], dt.timedelta, dt.datetime]:
    return role, name, [], dt.timedelta(days=1), dt.datetime.now(dt.UTC)


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


async def _refused(url: str, context: ssl.SSLContext) -> bool:
    async with RestClient(url, context) as client:
        with pytest.raises(PeerError):
            await client.call(api.CA, Nothing())
    return True


async def test_whoever_is_away_or_too_old_holds_it_and_is_named_until_he_comes_or_is_revoked(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path)) as server:
        daemons = await installed(server, tmp_path)
        old = daemons[1].trusted
        await server.enrolled("agent", "gone", tmp_path / "gone")  # never seen since
        older = Daemon(server.url, await server.enrolled("agent", "older", tmp_path / "older"))
        older.says = {}
        async with there([daemons[0], daemons[2]]):
            async with server.operator() as operator:
                begun = await renew(operator)
            async with older.there():
                waits = (
                    "2 of 5 trust the new CA; not yet: agent:gone (has not reported),"
                    " agent:older (an earlier version: upgrade it), agent:web1 (has not reported)"
                )
                found = await until(server, begun.id, waits=waits)
            assert found.progress == pytest.approx(2 / 5)
            now = CertificateAuthority.read(server.config.data_dir)
            assert now.pem == old, "the old one signs as long as anybody would not know the other"
            await server.revoke("agent:gone", "it is gone")
            await server.revoke("agent:older", "it will not be upgraded")
            await until(server, begun.id, waits="3 trust the new CA; not yet: agent:web1")
            async with daemons[1].there():
                await until(server, begun.id, JobState.DONE)
        assert daemons[1].trusted != old


async def test_whoever_goes_away_behind_the_switch_finds_back_and_holds_the_end(tmp_path: Path) -> None:
    async with running(config_for(tmp_path, port=free_port())) as server:
        daemons = await installed(server, tmp_path)
        async with there([daemons[0], daemons[2]]):
            async with daemons[1].there(), server.operator() as operator:
                begun = await renew(operator, hold_s=3600)
                await until(server, begun.id, waits="operators")
            folder = server.config.data_dir
            both = anchors.of_file(folder / "ca.pem")
            id_ = begun.id
        # Its time comes while the agent is away.
        no_hold(server, id_)
        async with there([daemons[0], daemons[2]]):
            await until(server, id_, waits="have a certificate of the new CA; not yet: agent:web1")
            assert CertificateAuthority.read(folder).certificate == both[1]
            assert set(anchors.of_file(folder / "ca.pem")) == set(both), "it would be refused otherwise"
            async with server.operator() as operator:
                with pytest.raises(JobActError, match="signs already"):
                    await operator.call(api.JOB_CANCEL, Nothing(), id=id_)
                assert JobAct.CANCEL not in (await operator.call(api.JOB, Nothing(), id=id_)).allowed
            async with daemons[1].there():
                await until(server, id_, JobState.DONE)
            assert {daemon.trusted for daemon in daemons} == {CertificateAuthority.read(folder).pem}


async def test_a_server_starts_also_where_the_last_certificate_is_of_the_old_ca(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        await server.enrolled("agent", "gone", tmp_path / "gone")
        await server.revoke("agent:gone", "it is gone")
        async with server.operator() as operator:
            begun = await renew(operator)
        await until(server, begun.id, JobState.DONE)
    backup.backup(server.config, tmp_path / "after.tar")
    async with running(server.config) as again, again.operator() as operator:
        assert (await operator.call(api.CA, Nothing())).former


async def test_cancelled_before_the_switch_it_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        daemons = await installed(server, tmp_path)
        folder = server.config.data_dir
        before = [(folder / name).read_bytes() for name in ("ca.key", "ca.pem")]
        async with sessions(daemons), there(daemons):
            async with server.operator() as operator:
                begun = await renew(operator, hold_s=3600)
                await until(server, begun.id, waits="operators")
                assert len(anchors.of_file(daemons[1].files.ca)) == 2
                await operator.call(api.JOB_CANCEL, Nothing(), id=begun.id)
                await until(server, begun.id, JobState.CANCELLED)
                again = await renew(operator)
            await until(server, again.id, JobState.DONE)
        assert [(folder / name).read_bytes() for name in ("ca.key", "ca.pem")] != before
        assert {daemon.trusted for daemon in daemons} == {CertificateAuthority.read(folder).pem}


async def test_what_was_put_back_in_the_middle_of_it_goes_on_when_a_person_says_so(tmp_path: Path) -> None:
    config = config_for(tmp_path, port=free_port())
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        async with there(daemons):
            async with server.operator() as operator:
                begun = await renew(operator, hold_s=3600)
            await until(server, begun.id, waits="operators")
            backup.backup(config, tmp_path / "middle.tar")
            no_hold(server, begun.id)
            await until(server, begun.id, JobState.DONE)
    # The host is lost, and all that is left is from before the switch: the new CA's key is in it.
    restoring.restore(config, tmp_path / "middle.tar")
    async with running(config) as server, there(daemons):
        await until(server, begun.id, JobState.ATTENTION)
        async with server.operator() as operator:
            no_hold(server, begun.id)
            await operator.call(api.JOB_RETRY, Nothing(), id=begun.id)
        await until(server, begun.id, JobState.DONE)
        assert {daemon.trusted for daemon in daemons} == {CertificateAuthority.read(config.data_dir).pem}


async def test_whoever_begins_from_storage_behind_the_switch_is_trusted_and_ends_it(
    tmp_path: Path, blob_config: BlobConfig, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.background.KEEP_S", 0.1)
    monkeypatch.setattr("config_server.background.FORCE_S", 0.05)
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(
        tmp_path, blob=blob_config, vault_file=vault.path, hosts=["127.0.0.1"], port=free_port()
    )
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        await server.revoke("agent:web9", "by the old CA")
        async with there([daemons[0], daemons[2]]):
            async with daemons[1].there(), server.operator() as operator:
                begun = await renew(operator, hold_s=3600)
                await until(server, begun.id, waits="operators")
            no_hold(server, begun.id)
            await until(server, begun.id, waits="have a certificate of the new CA; not yet: agent:web1")
    data = await store.read(state_blob(1))
    kept = state.content(sealed.opened(data, vault, "blob").parts, "blob")
    other = msgspec.structs.replace(config, data_dir=tmp_path / "other")
    restoring.restore_parts(other, kept.folder, "It was not put back", recovered_from="storage")
    async with running(other) as server, there(daemons):
        await until(server, begun.id, JobState.ATTENTION)
        async with server.operator() as operator:
            await operator.call(api.JOB_RETRY, Nothing(), id=begun.id)
        await until(server, begun.id, JobState.DONE)
        new = CertificateAuthority.read(other.data_dir)
        assert {daemon.trusted for daemon in daemons} == {new.pem}
        assert ca_note.noted(vault.path) == enrol.fingerprint(new.der).hex()
    async with (
        running(other) as server,
        server.operator() as operator,
    ):  # which reads revocations of the old CA
        assert (await operator.call(api.CA, Nothing())).former


async def test_where_the_config_server_is_stays_known_to_who_trusts_only_the_new_ca(
    tmp_path: Path, blob_config: BlobConfig, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.background.KEEP_S", 0.1)
    monkeypatch.setattr("config_server.background.FORCE_S", 0.05)
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(
        tmp_path, blob=blob_config, vault_file=vault.path, hosts=["127.0.0.1"], port=free_port()
    )

    async def is_known() -> bool:
        return opened_pointer(await MachineStorage(store).pointer(), config.data_dir / "ca.pem") is not None

    async with running(config) as server, server.operator() as operator:
        await config_parts.until(is_known)
        begun = await renew(operator)
        await until(server, begun.id, JobState.DONE)
        await config_parts.until(is_known)


async def test_before_the_switch_storage_has_both_keys(
    tmp_path: Path, blob_config: BlobConfig, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.background.FORCE_S", 0.05)
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(tmp_path, blob=blob_config, vault_file=vault.path)
    monkeypatch.setattr("config_server.background.KEEP_S", 3600.0)
    async with running(config) as server, server.operator() as operator:
        begun = await renew(operator)
        await until(server, begun.id, waits="the control state in storage")
        ca = CertificateAuthority.read(config.data_dir)
        assert ca.certificate == ca.trusted[0]
