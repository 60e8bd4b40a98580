"""Certificates that are refused although the CA signed them, and servers of another role than theirs: at the config server's port."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from config_server.operations.control import Control
from config_server.rules import renewals
from config_server.rules.certificates import BACKDATED
from shared import api
from shared.api.certificates import RenewRequest
from shared.api.daemons import StatusReply
from shared.api.route import Nothing, Page
from shared.control import enrol
from shared.control.rest import RestClient
from shared.errors import (
    CertificateRevokedError,
    KeyRevokedError,
    RequestError,
    TokenUnknownError,
    WrongRoleError,
)
from shared.trust import identity, tls
from tests.config_parts import ConfigServer, config_for, daemon, running, serial
from tests.impostor import answering


async def refused(server: ConfigServer, files: tls.TlsFiles) -> None:
    async with daemon(server, files) as client:
        with pytest.raises(CertificateRevokedError):
            await client.report({"state": "ordered"})
    async with RestClient(server.url, tls.client_context(files)) as client:
        with pytest.raises(CertificateRevokedError):
            await client.call(api.RENEW, RenewRequest(csr=identity.request_of(files)))


async def admitted(server: ConfigServer, files: tls.TlsFiles) -> None:
    async with daemon(server, files) as client:
        assert await client.report({"state": "ordered"}) == []


async def test_a_revoked_certificate_neither_reports_nor_renews_and_others_do(
    server: ConfigServer, tmp_path: Path
) -> None:
    old = await server.enrolled("agent", "web1", tmp_path / "old")
    new = await server.enrolled("agent", "web1", tmp_path / "new")
    (view,) = (await server.revoke(serial(old).upper())).certificates
    assert (view.name, view.serial, view.reason) == ("agent:web1", serial(old), "stolen")
    assert view.revoked
    await refused(server, old)
    await admitted(server, new)
    async with server.operator() as operator:
        listed = (await operator.call(api.CERTIFICATES, Page())).certificates
        log = (await operator.call(api.AUDIT, Page(limit=1))).entries
    assert {c.serial: bool(c.revoked) for c in listed} == {serial(old): True, serial(new): False}
    assert [(e.action, e.object, e.detail) for e in log] == [
        ("certificate.revoke", serial(old), {"reason": "stolen"})
    ]


async def test_an_identity_is_refused_with_all_it_has_until_it_enrols_with_a_token_made_afterwards(
    server: ConfigServer, tmp_path: Path
) -> None:
    first = await server.enrolled("agent", "web1", tmp_path / "first")
    second = await server.enrolled("agent", "web1", tmp_path / "second")
    other = await server.enrolled("agent", "web10", tmp_path / "other")
    before = (await server.token("agent", "web1")).token
    assert len((await server.revoke("agent:web1")).certificates) == 2
    await refused(server, first)
    await refused(server, second)
    await admitted(server, other)
    with pytest.raises(TokenUnknownError):
        await enrol.enrol(server.url, before, tmp_path / "third")
    third = await server.enrolled("agent", "web1", tmp_path / "third")
    await admitted(server, third)
    await refused(server, first)


async def test_revocations_survive_a_restart(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as first:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        await first.revoke("agent:web1")
    async with running(config_for(tmp_path)) as second:
        await refused(second, files)


async def test_a_report_that_is_held_is_refused_when_its_certificate_is_revoked_meanwhile(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with daemon(server, files) as client:
        await client.report({"state": "ordered"})
        held = asyncio.create_task(client.report({"state": "bitmap"}, wait_s=30))
        async with server.operator() as operator:
            while (await operator.call(api.DAEMONS, Nothing())).daemons[0].state != "bitmap":
                pass  # until the held one has been taken
        await server.revoke("agent:web1")
        with pytest.raises(CertificateRevokedError):
            await held


async def test_what_is_neither_a_name_nor_a_serial_number_cannot_be_revoked(server: ConfigServer) -> None:
    for name in ("", "0", "xyz", "agent:", "agent:../x", "nobody:web1", "config-server:cs1", "f" * 41):
        with pytest.raises(RequestError, match="neither a serial number"):
            await server.revoke(name)


def restored(data_dir: Path) -> None:
    """As from a backup of before the certificates."""
    with contextlib.closing(sqlite3.connect(data_dir / "state.db")) as db:
        db.execute("DELETE FROM certificates")
        db.commit()


async def test_a_name_is_revoked_with_its_tokens_also_when_nothing_of_it_is_known(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        other = await server.enrolled("agent", "web2", tmp_path / "other")
        leaked = (await server.token("agent", "web3")).token
    restored(config.data_dir)
    async with running(config) as server:
        assert (await server.revoke("agent:web1")).certificates == []
        assert (await server.revoke(serial(other))).certificates == []
        assert (await server.revoke("agent:web3")).certificates == []
        await refused(server, files)
        await refused(server, other)
        with pytest.raises(TokenUnknownError):
            await enrol.enrol(server.url, leaked, tmp_path / "thief")


async def test_certificates_from_before_a_readmission_stay_refused_also_those_that_are_not_known(
    tmp_path: Path,
) -> None:
    config = config_for(tmp_path)
    async with running(config) as server:
        stolen = await server.enrolled("agent", "web1", tmp_path / "stolen")
        begins = identity.only_certificate(stolen.cert.read_text()).not_valid_before_utc
    restored(config.data_dir)
    async with running(config) as server:
        await server.revoke("agent:web1")
        while dt.datetime.now(dt.UTC) - BACKDATED < begins + dt.timedelta(seconds=1):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # certificates count in seconds
        again = await server.enrolled("agent", "web1", tmp_path / "again")
        await admitted(server, again)
        await refused(server, stolen)
        await server.revoke("agent:web1")
        await refused(server, again)
    async with running(config) as server:
        await refused(server, stolen)
        await admitted(server, await server.enrolled("agent", "web1", tmp_path / "third"))


async def test_a_serial_number_stands_for_its_key_and_what_was_renewed_from_it(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "_wait_s", lambda _certificate: 0.0)
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    thief = identity.files_in(tmp_path / "thief")
    shutil.copytree(files.cert.parent, thief.cert.parent)
    async with RestClient(server.url, tls.client_context(thief)) as client:
        answer = await client.call(api.RENEW, RenewRequest(csr=identity.request_of(thief)))
    thief.cert.write_text(answer.certificate)
    assert len((await server.revoke(serial(thief))).certificates) == 2
    await refused(server, thief)
    await refused(server, files)


async def test_a_serial_number_that_a_restored_database_did_not_know_stands_for_what_was_renewed_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "_wait_s", lambda _certificate: 0.0)
    config = config_for(tmp_path)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
    restored(config.data_dir)
    thief = identity.files_in(tmp_path / "thief")
    shutil.copytree(files.cert.parent, thief.cert.parent)
    async with running(config) as server:
        async with RestClient(server.url, tls.client_context(thief)) as client:
            answer = await client.call(api.RENEW, RenewRequest(csr=identity.request_of(thief)))
        thief.cert.write_text(answer.certificate)
        assert {view.name for view in (await server.revoke(serial(files))).certificates} == {"agent:web1"}
        await refused(server, files)
        await refused(server, thief)


async def test_a_certificate_that_nobody_remembers_is_not_renewed_when_its_key_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "_wait_s", lambda _certificate: 0.0)
    config = config_for(tmp_path)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        thief = identity.files_in(tmp_path / "thief")
        shutil.copytree(files.cert.parent, thief.cert.parent)
        async with RestClient(server.url, tls.client_context(thief)) as client:
            answer = await client.call(api.RENEW, RenewRequest(csr=identity.request_of(thief)))
        thief.cert.write_text(answer.certificate)
    with contextlib.closing(sqlite3.connect(config.data_dir / "state.db")) as db:  # a backup from between
        db.execute("DELETE FROM certificates WHERE serial = ?", (serial(thief),))
        db.commit()
    async with running(config) as server:
        assert len((await server.revoke(serial(files))).certificates) == 1
        async with RestClient(server.url, tls.client_context(thief)) as client:
            with pytest.raises(CertificateRevokedError, match="its key was revoked"):
                await client.call(api.RENEW, RenewRequest(csr=identity.request_of(thief)))


@pytest.mark.parametrize("what", ["serial number", "name"])
async def test_a_host_whose_key_was_stolen_enrols_in_its_folder_and_the_thief_gets_nothing(
    server: ConfigServer, tmp_path: Path, what: str
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    thief = identity.files_in(tmp_path / "thief")
    shutil.copytree(files.cert.parent, thief.cert.parent)
    await server.revoke(serial(files) if what == "serial number" else "agent:web1")
    again = await server.enrolled("agent", "web1", tmp_path / "agent")
    await admitted(server, again)
    assert again.key.read_bytes() != thief.key.read_bytes()
    await refused(server, thief)


@pytest.mark.parametrize("what", ["serial number", "name", "name, readmitted"])
async def test_no_certificate_is_issued_for_a_key_that_was_revoked_and_the_token_stays(
    server: ConfigServer, tmp_path: Path, what: str
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    await server.revoke(serial(files) if what == "serial number" else "agent:web1")
    if what == "name, readmitted":
        await server.enrolled("agent", "web1", tmp_path / "other")
    token = (await server.token("agent", "web1")).token
    files.cert.unlink()  # so the key is taken for one that was never certified
    with pytest.raises(KeyRevokedError, match="key whose certificate was revoked"):
        await enrol.enrol(server.url, token, tmp_path / "agent")
    files.key.unlink()
    await admitted(server, await enrol.enrol(server.url, token, tmp_path / "agent"))


async def test_a_clock_that_was_ahead_for_a_moment_readmits_nobody(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    await server.revoke(serial(files))
    now_ns = time.time_ns
    monkeypatch.setattr(Control, "now_ns", lambda _self: now_ns() + 10**18)
    await server.revoke("agent:web2")
    monkeypatch.undo()
    await server.revoke("agent:web3")
    await refused(server, files)


@pytest.mark.parametrize("role", ["agent", "process-server"])
async def test_a_report_whose_body_comes_after_the_revocation_is_not_taken(
    server: ConfigServer, tmp_path: Path, role: str
) -> None:
    files = await server.enrolled(role, "web1", tmp_path / "daemon")
    async with daemon(server, files) as client:
        await client.report({"state": "ordered"})
    body = b'{"state": "bitmap"}'
    context = tls.client_context(files)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(
        b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:1])
    )
    await writer.drain()
    async with server.operator() as operator:
        await server.revoke(f"{role}:web1")
        writer.write(body[1:])
        assert CertificateRevokedError.code.encode() in await reader.readuntil(b"}")
        writer.close()
        (shown,) = (await operator.call(api.DAEMONS, Nothing())).daemons
    assert shown.state == "ordered"


async def test_a_process_server_that_answers_in_the_config_servers_place_gets_no_report_and_no_token(
    server: ConfigServer, tmp_path: Path
) -> None:
    # Its certificate is genuine, and valid for this address.
    impostor = await server.enrolled("process-server", "ps1", tmp_path / "ps")
    token = (await server.token("agent", "web2")).token
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    asked: list[str] = []

    def report(_request: object) -> StatusReply:
        asked.append("report")
        return StatusReply()

    context = tls.server_context(impostor, require_client=False)
    async with RestClient(server.url, server.anonymous_context()) as anybody:
        ca = await anybody.call(api.CA, Nothing())
    answers = {"status": report, "ca": lambda _request: ca, "enrol": report}
    async with answering(context, answers) as url:
        client = ConfigServer(server.config, int(url.rsplit(":", 1)[1]))
        async with daemon(client, files) as line:
            with pytest.raises(WrongRoleError, match="process-server:ps1"):
                await line.report({"state": "ordered"})
        with pytest.raises(WrongRoleError, match="process-server:ps1"):
            await enrol.enrol(url, token, tmp_path / "second")
    assert asked == []


async def test_an_agents_certificate_is_good_for_no_server(server: ConfigServer, tmp_path: Path) -> None:
    # A token with hosts: the certificate carries the address, and only its purpose stands against it.
    agent = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with (
        answering(tls.server_context(agent, require_client=False), {}) as url,
        RestClient(url, tls.client_context(agent)) as client,
    ):
        with pytest.raises(WrongRoleError, match="no server"):
            await client.call(api.HEALTH, Nothing())
