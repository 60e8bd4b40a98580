"""A client that is refused in the handshake learns why. Real sockets: TLS 1.3 lets it finish first."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import tls
from shared.errors import CertificateExpiredError, CertificateMissingError, PeerError, UnknownAuthorityError
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
