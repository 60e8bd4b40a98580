"""Enrolment, certificates and access, against a real config server over HTTPS."""

from __future__ import annotations

import asyncio
import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.identity.ca import CertificateAuthority, hosts_of, pem_of
from config_server.operations import enrolment
from shared import api
from shared.api.audit import AuditList
from shared.api.certificates import EnrolRequest, RenewRequest, RevokeRequest, TokenRequest
from shared.api.events import EventQuery
from shared.api.route import Nothing, Page
from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.errors import (
    AccessError,
    CertificateExpiredError,
    EnrolmentError,
    ListenError,
    RenewalNotDueError,
    RequestError,
    TokenExpiredError,
    TokenMalformedError,
    TokenUnknownError,
    TokenUsedError,
    UnknownAuthorityError,
    UnreachableError,
    WrongRoleError,
)
from shared.trust import identity as identity_files
from shared.trust import tls
from shared.vocabulary import Role
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.pki import TestCa


async def test_a_token_is_exchanged_for_a_certificate_that_opens_the_daemon_api(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with daemon(server, files) as client:
        assert await client.report({"machine": "web1", "state": "ordered"}) == []
    certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=agent:web1"
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600


async def test_a_token_works_only_once(server: ConfigServer, tmp_path: Path) -> None:
    token = (await server.token("agent", "web1")).token
    await enrol.enrol(server.url, token, tmp_path / "first")
    with pytest.raises(TokenUsedError, match="used before"):
        await enrol.enrol(server.url, token, tmp_path / "second")


async def test_of_simultaneous_uses_of_a_token_one_succeeds(server: ConfigServer, tmp_path: Path) -> None:
    token = (await server.token("agent", "web1")).token
    tries = [enrol.enrol(server.url, token, tmp_path / str(i)) for i in range(5)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["TlsFiles"] + ["TokenUsedError"] * 4


async def test_a_token_that_was_never_issued_is_refused(server: ConfigServer, tmp_path: Path) -> None:
    ca = CertificateAuthority.open(server.config.data_dir)
    invented, _ = enrol.new_token(ca.der)
    with pytest.raises(TokenUnknownError, match="never issued"):
        await enrol.enrol(server.url, invented, tmp_path / "agent")


async def test_refused_enrolments_are_on_record_and_a_flood_of_them_is_one_entry_each(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = (await server.token("agent", "web1")).token
    await enrol.enrol(server.url, used, tmp_path / "first")
    invented, _ = enrol.new_token(CertificateAuthority.open(server.config.data_dir).der)

    async def refused(token: str) -> None:
        with pytest.raises(EnrolmentError):
            await enrol.enrol(server.url, token, tmp_path / "second")

    for token in (used, invented, used, invented, used):
        await refused(token)
    async with server.operator() as client:
        log = (await client.call(api.AUDIT, Page())).entries
        events = (await client.call(api.EVENTS, EventQuery())).events
    assert [(e.action, e.object, e.detail["code"]) for e in log if e.who == "unknown"] == [
        ("enrol.refused", "", "US121"),
        ("enrol.refused", "agent:web1", "US122"),
    ]
    assert [(e.severity, e.object, e.code) for e in events] == [
        ("warning", "config-server", "US121"),
        ("warning", "agent:web1", "US122"),
    ]
    assert "127.0.0.1" in events[0].cause
    # Those that followed are counted in the next entry.
    monkeypatch.setattr(enrolment, "_REFUSALS_NS", 0)
    await refused(used)
    async with server.operator() as client:
        (newest,) = (await client.call(api.AUDIT, Page(limit=1))).entries
    assert newest.detail["attempts"] == 3
    secrets = [token.split(".")[1] for token in (used, invented)]
    assert not any(secret in str(entry) for secret in secrets for entry in (*log, *events))


async def test_an_expired_token_is_refused(server: ConfigServer, tmp_path: Path) -> None:
    token = await server.token("agent", "web1", ttl_s=1)
    expires = dt.datetime.fromisoformat(token.expires)
    # Real time has to pass here: the token is judged by the server's clock.
    await asyncio.sleep((expires - dt.datetime.now(dt.UTC)).total_seconds() + 0.01)
    with pytest.raises(TokenExpiredError, match="expired"):
        await enrol.enrol(server.url, token.token, tmp_path / "agent")


@pytest.mark.parametrize("token", ["", "hello", "usy1.abc.def", "usy1.!!.??"])
async def test_what_is_no_token_is_named_as_such(server: ConfigServer, tmp_path: Path, token: str) -> None:
    with pytest.raises(TokenMalformedError):
        await enrol.enrol(server.url, token, tmp_path / "agent")


async def test_a_token_of_another_installation_stops_the_enrolment_before_it_is_sent(
    server: ConfigServer, tmp_path: Path
) -> None:
    async with running(config_for(tmp_path / "other")) as other:
        token = (await other.token("agent", "web1")).token
        with pytest.raises(UnknownAuthorityError, match="not the one that the token belongs to"):
            await enrol.enrol(server.url, token, tmp_path / "agent")
        # It was not used up: it still works where it belongs.
        await enrol.enrol(other.url, token, tmp_path / "agent")


async def test_a_bad_certificate_request_does_not_use_up_the_token(
    server: ConfigServer, tmp_path: Path
) -> None:
    token = (await server.token("agent", "web1")).token
    async with RestClient(server.url, server.anonymous_context()) as client:
        with pytest.raises(RequestError, match="certificate request"):
            await client.call(api.ENROL, EnrolRequest(token=token, csr="nonsense"))
    await enrol.enrol(server.url, token, tmp_path / "agent")


async def test_without_a_certificate_there_is_no_daemon_api(server: ConfigServer) -> None:
    async with RestClient(server.url, server.anonymous_context(), token=server.operator_token) as client:
        with pytest.raises(AccessError, match="without a certificate"):
            await client.call_plain(api.STATUS, {"state": "ordered"}, {}, 0)


async def test_a_certificate_of_a_foreign_ca_gets_nowhere(server: ConfigServer, tmp_path: Path) -> None:
    foreign = TestCa(tmp_path, "foreign").issue("agent:web1")
    files = tls.TlsFiles(cert=foreign.cert, key=foreign.key, ca=server.config.data_dir / "ca.pem")
    async with daemon(server, files) as client:
        with pytest.raises(UnknownAuthorityError, match="did not sign it"):
            await client.report({"state": "ordered"})


async def test_an_expired_certificate_gets_nowhere(server: ConfigServer, tmp_path: Path) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    expired = CertificateAuthority.open(server.config.data_dir).issue(
        key.public_key(), Role.AGENT, "web1", [], dt.timedelta(hours=-1), dt.datetime.now(dt.UTC)
    )
    files.cert.write_text(pem_of(expired))
    async with daemon(server, files) as client:
        with pytest.raises(CertificateExpiredError):
            await client.report({"state": "ordered"})


async def test_a_server_of_a_foreign_ca_is_not_trusted(server: ConfigServer, tmp_path: Path) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with running(config_for(tmp_path / "other")) as other, daemon(other, files) as client:
        with pytest.raises(UnknownAuthorityError):
            await client.report({"state": "ordered"})


async def test_a_role_that_has_no_status_is_refused(server: ConfigServer, tmp_path: Path) -> None:
    files = await server.enrolled("storage", "azurite", tmp_path / "azurite")
    async with daemon(server, files) as client:
        with pytest.raises(WrongRoleError, match="storage:azurite"):
            await client.report({"state": "running"})


async def test_a_certificate_is_no_operator_token(server: ConfigServer, tmp_path: Path) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with RestClient(server.url, tls.client_context(files)) as client:
        with pytest.raises(AccessError, match="none was sent"):
            await client.call(api.MACHINES, Nothing())


async def test_a_wrong_operator_token_is_refused(server: ConfigServer) -> None:
    wrong = server.operator_token[:-4] + "AAAA"
    async with RestClient(server.url, server.anonymous_context(), token=wrong) as client:
        with pytest.raises(AccessError, match="not valid"):
            await client.call(api.MACHINES, Nothing())


def due(server: ConfigServer, files: tls.TlsFiles, role: str, name: str) -> None:
    """Another certificate of the same key, of whose life more than two thirds are over: it began five minutes ago."""
    ca = CertificateAuthority.open(server.config.data_dir)
    key = identity_files.key_of(files).public_key()
    hosts = hosts_of(identity_files.only_certificate(files.cert.read_text()))
    soon = ca.issue(key, Role(role), name, hosts, dt.timedelta(seconds=100), dt.datetime.now(dt.UTC))
    files.cert.write_text(pem_of(soon))


async def renewed(server: ConfigServer, files: tls.TlsFiles, csr: str = "") -> str:
    async with RestClient(server.url, tls.client_context(files)) as client:
        request = RenewRequest(csr=csr or identity_files.request_of(files))
        return (await client.call(api.RENEW, request)).certificate


async def test_a_renewal_that_is_repeated_gets_the_same_answer_and_what_it_got_is_not_renewed_at_once(
    tmp_path: Path,
) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        with pytest.raises(RenewalNotDueError):
            await renewed(server, files)
    async with running(config_for(tmp_path)) as server:  # no restart changes that
        with pytest.raises(RenewalNotDueError):
            await renewed(server, files)
        due(server, files, "agent", "web1")
        first = await renewed(server, files)
        assert await renewed(server, files) == first
    async with running(config_for(tmp_path)) as server:
        assert await renewed(server, files) == first
        files.cert.write_text(first)
        with pytest.raises(RenewalNotDueError):
            await renewed(server, files)


async def test_a_certificate_is_renewed_for_its_own_key_only(server: ConfigServer, tmp_path: Path) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    other = await server.enrolled("agent", "web2", tmp_path / "other")
    due(server, files, "agent", "web1")
    with pytest.raises(RequestError, match="another key"):
        await renewed(server, files, identity_files.request_of(other))


async def test_a_lost_answer_to_an_enrolment_is_given_again_to_the_same_key_and_to_no_other(
    server: ConfigServer, tmp_path: Path
) -> None:
    token = (await server.token("agent", "web1")).token
    files = await enrol.enrol(server.url, token, tmp_path / "agent")
    first = files.cert.read_bytes()
    files.cert.unlink()
    assert (await enrol.enrol(server.url, token, tmp_path / "agent")).cert.read_bytes() == first
    with pytest.raises(TokenUsedError):
        await enrol.enrol(server.url, token, tmp_path / "other")
    async with server.operator() as client:
        await client.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="agent:web1"))
    with pytest.raises(TokenUnknownError):
        await enrol.enrol(server.url, token, tmp_path / "agent")


async def test_bytes_that_are_no_text_are_nobodys_token_and_nothings_name(server: ConfigServer) -> None:
    for head, status in (
        (b"GET /v1/machines HTTP/1.1\r\nAuthorization: Bearer \xff\xfe", b"401"),
        (b"GET /v1/machines/%ff HTTP/1.1\r\nAuthorization: Bearer " + server.operator_token.encode(), b"4"),
        (b"GET /v1/nothing/\xff HTTP/1.1", b"4"),
        (
            b"GET /v1/events?object=%ff HTTP/1.1\r\nAuthorization: Bearer " + server.operator_token.encode(),
            b"",
        ),
    ):
        context = server.anonymous_context()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
        writer.write(head + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.split(b" ")[1].startswith(status), head
        assert b"US000" not in answer
        assert b" 500 " not in answer


async def test_a_certificate_is_renewed_with_the_same_name_and_hosts(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps")
    due(server, files, "process-server", "ps1")
    before = x509.load_pem_x509_certificate(files.cert.read_bytes())
    async with RestClient(server.url, tls.client_context(files)) as client:
        answer = await client.call(api.RENEW, RenewRequest(csr=identity_files.request_of(files)))
    after = x509.load_pem_x509_certificate(answer.certificate.encode())
    assert answer.name == "process-server:ps1"
    assert after.serial_number != before.serial_number
    wanted = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == wanted


async def test_a_daemon_renews_by_itself_when_a_third_of_the_life_is_left(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        due(server, files, "agent", "web1")
        renewed: list[bool] = []
        client = ControlClient(server.url, files, on_renewed=lambda _chain: renewed.append(True))
        assert await client.renew_if_due()
        assert not await client.renew_if_due()
        assert renewed == [True]
        assert await client.report({"state": "ordered"}) == []
        await client.close()


async def test_only_known_roles_and_plain_names_get_tokens(server: ConfigServer) -> None:
    async with server.operator() as client:
        for role, name in [("admin", "x"), ("config-server", "cs2"), ("agent", "../x"), ("agent", "")]:
            with pytest.raises(RequestError):
                await client.call(api.TOKEN_CREATE, TokenRequest(role=role, name=name))
        for role in ("process-server", "storage"):
            with pytest.raises(RequestError, match="under which names"):
                await client.call(api.TOKEN_CREATE, TokenRequest(role=role, name="a"))
        with pytest.raises(RequestError, match="host name"):
            await client.call(api.TOKEN_CREATE, TokenRequest(role="agent", name="a", hosts=["a b"]))


async def test_enrolment_is_audited_and_no_secret_is_stored(server: ConfigServer, tmp_path: Path) -> None:
    token = (await server.token("agent", "web1")).token
    await enrol.enrol(server.url, token, tmp_path / "agent")
    async with server.operator() as client:
        log: AuditList = await client.call(api.AUDIT, Page())
    assert [(e.who, e.action, e.object) for e in log.entries[:2]] == [
        ("agent:web1", "enrol", "agent:web1"),
        ("operator:admin", "token.create", "agent:web1"),
    ]
    secret = token.split(".")[1].encode()
    for file in server.config.data_dir.glob("state.db*"):
        content = file.read_bytes()
        assert secret not in content
        assert server.operator_token.encode() not in content


async def test_the_operator_token_survives_a_restart_and_a_deleted_one_is_replaced(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config) as first:
        token = first.operator_token
    async with running(config) as second:
        assert second.operator_token == token
        async with second.operator() as client:
            await client.call(api.MACHINES, Nothing())
    (config.data_dir / "operator.token").unlink()
    async with running(config) as third:
        assert third.operator_token != token
        assert stat.S_IMODE((config.data_dir / "operator.token").stat().st_mode) == 0o600
        async with RestClient(third.url, third.anonymous_context(), token=token) as client:
            with pytest.raises(AccessError):
                await client.call(api.MACHINES, Nothing())


async def test_a_port_in_use_is_named(server: ConfigServer, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=str(server.port)):
        async with running(config_for(tmp_path / "second", port=server.port)):
            pass


async def test_a_config_server_that_is_away_is_an_unreachable_peer(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with daemon(server, files) as client:
        with pytest.raises(UnreachableError, match=str(server.port)):
            await client.report({"state": "ordered"})


async def test_a_name_that_no_certificate_can_carry_is_refused_before_there_is_a_token(
    server: ConfigServer,
) -> None:
    for role, most in (("agent", 58), ("process-server", 49), ("master-target", 50)):
        with pytest.raises(RequestError, match=f"at most {most} characters"):
            await server.token(role, "x" * (most + 1))
        await server.token(role, "x" * most)
