"""Certificates that are refused although the CA signed them, and servers of another role than theirs: at the config server's port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import api, enrol, identity, tls
from shared.errors import CertificateRevokedError, NotFoundError, TokenUnknownError, WrongRoleError
from shared.messages import CertificateView, Limit, Nothing, RenewRequest, RevokeRequest, StatusReply
from shared.rest import RestClient
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.impostor import answering


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


async def revoke(server: ConfigServer, certificate: str) -> list[CertificateView]:
    async with server.operator() as operator:
        body = RevokeRequest(certificate=certificate, reason="stolen")
        return (await operator.call(api.CERTIFICATE_REVOKE, body)).certificates


def serial(files: tls.TlsFiles) -> str:
    return f"{identity.only_certificate(files.cert.read_text()).serial_number:x}"


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
    (view,) = await revoke(server, serial(old).upper())
    assert (view.name, view.serial, view.reason) == ("agent:web1", serial(old), "stolen")
    assert view.revoked
    await refused(server, old)
    await admitted(server, new)
    async with server.operator() as operator:
        listed = (await operator.call(api.CERTIFICATES, Limit())).certificates
        log = (await operator.call(api.AUDIT, Limit(limit=1))).entries
    assert {c.serial: bool(c.revoked) for c in listed} == {serial(old): True, serial(new): False}
    assert [(e.action, e.object, e.detail) for e in log] == [
        ("certificate.revoke", serial(old).upper(), {"reason": "stolen"})
    ]


async def test_an_identity_is_refused_with_all_it_has_until_it_enrols_with_a_token_made_afterwards(
    server: ConfigServer, tmp_path: Path
) -> None:
    first = await server.enrolled("agent", "web1", tmp_path / "first")
    second = await server.enrolled("agent", "web1", tmp_path / "second")
    other = await server.enrolled("agent", "web10", tmp_path / "other")
    before = (await server.token("agent", "web1")).token
    assert len(await revoke(server, "agent:web1")) == 2
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
        await revoke(first, "agent:web1")
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
        await revoke(server, "agent:web1")
        with pytest.raises(CertificateRevokedError):
            await held


async def test_what_was_never_issued_cannot_be_revoked(server: ConfigServer) -> None:
    for name in ("agent:nobody", "abc123", ""):
        with pytest.raises(NotFoundError, match="none was ever issued"):
            await revoke(server, name)


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
