"""A client that is refused in the handshake learns why. Real sockets: TLS 1.3 lets it finish first."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config_server.identity.ca import CertificateAuthority
from config_server.identity.own_certificate import OwnCertificate
from shared.control.control_client import ControlClient
from shared.errors import (
    CertificateExpiredError,
    CertificateMissingError,
    ConfigError,
    PeerError,
    UnknownAuthorityError,
)
from shared.trust import tls
from tests.config_parts import config_for
from tests.pki import TestCa


@contextlib.asynccontextmanager
async def accepting(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that takes one connection."""

    async def take(sock: socket.socket) -> None:
        accepted, _ = await asyncio.get_running_loop().sock_accept(sock)
        with accepted, pytest.raises(ssl.SSLError):
            await tls.accept(asyncio.Protocol, accepted, context, 5.0)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        taking = asyncio.create_task(take(sock))
        yield sock.getsockname()[1]
        await taking


async def refusal(port: int, context: ssl.SSLContext, said: bytes) -> PeerError:
    with pytest.raises(OSError) as caught:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(said)
            await writer.drain()
            if await reader.read() == b"":
                raise ConnectionResetError("Connection lost")
        finally:
            writer.transport.abort()
    return tls.translate(caught.value, "Talking")


@pytest.mark.parametrize("said", [b"", b"x" * 1_000_000])
async def test_a_refused_client_reads_the_reason(tmp_path: Path, said: bytes) -> None:
    ca = TestCa(tmp_path)
    foreign = TestCa(tmp_path, "foreign CA").issue("agent:lab")
    context = tls.server_context(ca.issue("process-server:ps1"))
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(ca.path)
    for client, kind in (
        (
            tls.client_context(tls.TlsFiles(cert=foreign.cert, key=foreign.key, ca=ca.path)),
            UnknownAuthorityError,
        ),
        (tls.client_context(ca.issue("agent:lab", expired=True)), CertificateExpiredError),
        (bare, CertificateMissingError),
    ):
        async with accepting(context) as port:
            error = await refusal(port, client, said)
        assert isinstance(error, kind), (kind, error)


async def test_a_context_by_which_sessions_begin_is_never_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To touch one while another thread begins a session crashes the process: OpenSSL frees what that is copying."""
    where: list[tuple[ssl.SSLContext, bool]] = []
    load = ssl.SSLContext.load_cert_chain

    def noted(context: ssl.SSLContext, *args: str) -> None:
        where.append((context, threading.current_thread() is threading.main_thread()))
        load(context, *args)

    config = config_for(tmp_path)
    config.data_dir.mkdir()
    own = OwnCertificate(config, CertificateAuthority.open(config.data_dir))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noted)
    await own.renew()
    await own.renew()  # nothing is new
    assert [is_main for _, is_main in where] == [False, True, False]
    assert own.context not in [context for context, _ in where]

    ca = TestCa(tmp_path)
    files = ca.issue("agent:lab", shift=dt.timedelta(days=1))
    seen: list[tls.Chain] = []
    client = ControlClient("https://127.0.0.1:1", files, on_renewed=seen.append)
    where.clear()
    ca.issue("agent:lab", shift=dt.timedelta(days=1))  # into the same files
    await client.renew_if_due()
    await client.close()
    assert [chain.cert for chain in seen] == [files.cert.read_bytes()]
    assert [is_main for _, is_main in where] == [False, True]  # tried on one that nobody uses, in a thread


def test_a_session_that_had_begun_goes_on_by_the_certificate_that_it_began_with(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)
    context = tls.server_context(ca.issue("process-server:ps1"))
    client = tls.client_context(ca.issue("agent:lab"))
    begun = ends(context, client)
    tls.present(context, tls.read_chain(ca.issue("process-server:ps2")))
    after = ends(context, client)
    assert [tls.peer_name(shaken(pair)) for pair in (begun, after)] == [
        "process-server:ps1",
        "process-server:ps2",
    ]


def ends(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    return (
        client.wrap_bio(back, there, server_hostname="127.0.0.1"),
        server.wrap_bio(there, back, server_side=True),
    )


def shaken(pair: tuple[ssl.SSLObject, ssl.SSLObject]) -> ssl.SSLObject:
    """The client's end."""
    for end in pair * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return pair[0]


def test_what_does_not_fit_is_refused_and_what_is_presented_stays(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)
    files, other = ca.issue("agent:a"), ca.issue("agent:b")
    files.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ConfigError, match="could not be used"):
        tls.read_chain(files)
    assert "BEGIN" not in repr(tls.read_chain(other))
