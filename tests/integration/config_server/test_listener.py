"""The public port under people who connect and do not get on. Real TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from config_server.web import binding, listener
from shared import api
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.errors import AccessError
from shared.serving import door
from shared.serving.connections import UNPROVED_PER_KNOWN
from tests.config_parts import ConfigServer, config_for, running

HALF = (
    b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of a thousand connections are in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
async def server(tmp_path: Path, many_descriptors: None) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


async def answered(server: ConfigServer) -> None:
    async with server.operator() as client:
        await client.call(api.MACHINES, Nothing())


async def half_open(server: ConfigServer, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with its handshake done, which has said so much."""
    context = server.anonymous_context()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(said)
    return reader, writer


async def test_an_operator_is_answered_beside_a_thousand_connections_that_do_not_get_on(
    server: ConfigServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No deadline helps here: whoever waits for one waits for ever.
    for module, name in ((door, "HANDSHAKE_S"), (listener, "_FIRST_REQUEST_S"), (binding, "_BODY_S")):
        monkeypatch.setattr(module, name, 3600.0)
    with contextlib.ExitStack() as stack:
        loop = asyncio.get_running_loop()
        for number in range(800):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            if number % 2:
                await loop.sock_sendall(sock, b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
            if number == 400:
                await answered(server)
        writers = []
        for number in range(200):
            said = HALF if number % 2 else HALF[:30] if number % 4 else b""
            writers.append((await half_open(server, said))[1])
        await answered(server)
        for writer in writers:
            writer.transport.abort()


async def test_who_has_asked_stays_connected_while_others_crowd_in(server: ConfigServer) -> None:
    async with server.operator() as client:
        await client.call(api.MACHINES, Nothing())
        before = client._session
        with contextlib.ExitStack() as stack:
            crowd = []
            for _ in range(UNPROVED_PER_KNOWN + 1):
                crowd.append(stack.enter_context(socket.socket()))
                crowd[-1].setblocking(False)
                await asyncio.get_running_loop().sock_connect(crowd[-1], ("127.0.0.1", server.port))
            await client.call(api.MACHINES, Nothing())
            assert client._session is before
            ends = asyncio.get_running_loop().sock_recv(crowd[0], 1)  # the oldest has gone
            assert await asyncio.wait_for(ends, 20) == b""


@pytest.mark.parametrize("said", [b"", HALF[:30], HALF])
async def test_a_request_that_does_not_come_whole_in_time_ends_its_connection(
    server: ConfigServer, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(listener, "_FIRST_REQUEST_S", 0.2)
    reader, writer = await half_open(server, said)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert b"US1" not in await asyncio.wait_for(reader.read(), 20)
    writer.transport.abort()


async def test_a_body_that_does_not_come_in_time_is_refused_by_name(
    server: ConfigServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_BODY_S", 0.2)
    reader, writer = await half_open(server, HALF)
    answer = await asyncio.wait_for(reader.read(), 20)
    assert b"400" in answer.splitlines()[0]
    assert b"its body had not come within" in answer
    writer.transport.abort()


@pytest.mark.parametrize("head", [b"Content-Length: 65537", b"Transfer-Encoding: chunked"])
async def test_a_stranger_may_not_leave_a_large_body(server: ConfigServer, head: bytes) -> None:
    reader, writer = await half_open(server, b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
    if b"chunked" in head:
        writer.write(b"20000\r\n" + bytes(0x20000))  # and the chunk never ends
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
    assert b" 400 " in answer
    assert b"65536 bytes are taken" in answer
    writer.transport.abort()
    await answered(server)


async def test_a_body_that_is_aborted_is_no_bug(server: ConfigServer) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            _, writer = await half_open(server, HALF)
            await answered(server)  # the server has read what was said before this
            writer.transport.abort()
            await answered(server)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_a_flood_of_refusals_is_few_lines(server: ConfigServer) -> None:
    with capture_logs() as logs:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
        await answered(server)
    assert [line["code"] for line in logs if line["event"] == "connection refused"] == ["US461"]


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nx: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
    ids=["version", "long header", "chunk"],
)
async def test_a_flood_of_requests_that_are_no_http_is_one_line(
    server: ConfigServer, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            reader, writer = await half_open(server, said)
            assert b" 400 " in await reader.readline()
            writer.transport.abort()
        await answered(server)
    assert [line["event"] for line in logs if line["log_level"] in ("warning", "error")] == [
        "request refused"
    ]
    assert [record for record in caplog.records if record.name == "aiohttp.server"] == []


async def test_a_body_that_would_have_to_be_unpacked_is_refused(server: ConfigServer) -> None:
    packed = zlib.compress(bytes(50_000_000), 9)
    head = b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
    reader, writer = await half_open(server, head % len(packed) + packed)
    answer = await reader.readuntil(b"}")
    assert b" 400 " in answer
    assert b"compressed" in answer
    writer.close()
    await answered(server)


async def test_a_flood_of_strangers_who_are_refused_access_is_few_lines(server: ConfigServer) -> None:
    with capture_logs() as logs:
        async with RestClient(server.url, server.anonymous_context(), token="none") as stranger:
            for _ in range(50):
                with pytest.raises(AccessError):
                    await stranger.call(api.MACHINES, Nothing())
    assert len([line for line in logs if line["event"] == "access refused"]) == 1
