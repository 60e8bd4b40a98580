"""What each client says of a server whose certificate it does not take: wrong clocks, expiry, another CA, another name."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from agent.stream.link import Link
from shared import api
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore, Retry
from shared.control.rest import RestClient
from shared.errors import (
    CertificateExpiredError,
    HostClockError,
    ServerCertificateExpiredError,
    StorageCertificateError,
    StorageClockError,
    UnderstudyError,
    UnknownAuthorityError,
    WrongHostError,
)
from shared.http import clock_evidence
from shared.trust import tls
from tests.pki import TestCa

YEARS: Final = dt.timedelta(days=3 * 365)
NONE: Final = dt.timedelta(0)
Client = Callable[[int, tls.TlsFiles], Awaitable[object]]


async def asks_config_server(port: int, files: tls.TlsFiles) -> object:
    async with RestClient(f"https://127.0.0.1:{port}", tls.client_context(files)) as client:
        return await client.call(api.HEALTH, Nothing())


async def asks_storage(port: int, files: tls.TlsFiles) -> object:
    key = files.ca.with_name("account.key")
    key.write_text("a2V5")
    config = BlobConfig(url=f"https://127.0.0.1:{port}/acct", account_key_file=key, ca_file=files.ca)
    store = BlobStore.connect(config).with_retry(Retry(deadline_s=0.0))
    try:
        return await store.read("x")
    finally:
        await store.close()


async def asks_process_server(port: int, files: tls.TlsFiles) -> object:
    await Link(("127.0.0.1", port)).connect(tls.client_context(files))
    return None


async def asks_process_server_and_knows_a_config_server(port: int, files: tls.TlsFiles) -> object:
    """Any server will do whose answer says what time it is."""
    await Link(("127.0.0.1", port), ("127.0.0.1", port)).connect(tls.client_context(files))
    return None


@contextlib.asynccontextmanager
async def server(files: tls.TlsFiles, off: dt.timedelta) -> AsyncIterator[int]:
    """A web server whose clock is so far off."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def answer(_request: web.Request) -> web.Response:
        date = format_datetime(dt.datetime.now(dt.UTC) + off, usegmt=True)
        return web.Response(status=404, headers={"Date": date})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


CASES: Final = {
    # how far the other clock, and with it its certificate, is off, as seen from here → codes of the four clients
    "clock ahead": (
        -YEARS,
        False,
        (HostClockError, StorageClockError, CertificateExpiredError, HostClockError),
    ),
    "clock behind": (YEARS, False, (HostClockError, StorageClockError, HostClockError, HostClockError)),
    "expired": (
        NONE,
        True,
        (
            ServerCertificateExpiredError,
            StorageCertificateError,
            CertificateExpiredError,
            ServerCertificateExpiredError,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_certificate_out_of_date_is_told_with_the_clocks_and_the_advice_that_helps(
    tmp_path: Path, case: str
) -> None:
    off, expired, kinds = CASES[case]
    ca = TestCa(tmp_path)
    mine = ca.issue("agent:web1")
    async with server(ca.issue("config-server:cs1", shift=off, expired=expired), off) as port:
        clients = asks_config_server, asks_storage, asks_process_server
        for ask, kind in zip((*clients, asks_process_server_and_knows_a_config_server), kinds, strict=True):
            error = await failure(ask, port, mine)
            assert type(error) is kind, (ask, error)
            assert ("the config server's" in error.cause) == (ask not in clients)
            assert "clock shows a time in the hour from" in error.cause
            assert "ca_file" not in error.action
            assert ("timedatectl" in error.action) == (not expired or ask is asks_process_server)


@pytest.mark.parametrize("wrong", ["CA", "name"])
async def test_another_ca_and_another_name_are_no_matter_of_clocks(tmp_path: Path, wrong: str) -> None:
    ca = TestCa(tmp_path)
    mine = ca.issue("agent:web1")
    theirs = (
        TestCa(tmp_path, "other CA").issue("config-server:cs1")
        if wrong == "CA"
        else ca.issue("config-server:cs1", host="127.0.0.2")
    )
    peer = UnknownAuthorityError if wrong == "CA" else WrongHostError
    kinds = (peer, StorageCertificateError, peer)
    async with server(theirs, NONE) as port:
        for ask, kind in zip((asks_config_server, asks_storage, asks_process_server), kinds, strict=True):
            error = await failure(ask, port, mine)
            assert type(error) is kind, (ask, error)
            assert "clock" not in f"{error}"


async def failure(ask: Client, port: int, files: tls.TlsFiles) -> UnderstudyError:
    with pytest.raises(UnderstudyError) as caught:
        await ask(port, files)
    return caught.value


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"y" * (40 << 10),
        b"Date: Thu, 01 Jan 99999999999999999999 00:00:00 GMT",
        b"Date: Thu, 01 Jan 2026 00:00:00 +99999999999999",
    ],
    ids=["long", "year", "zone"],
)
async def test_whatever_answers_there_a_look_raises_nothing(tmp_path: Path, head: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        writer.transport.close()

    files = TestCa(tmp_path).issue("config-server:cs1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as listening:
        seen = await clock_evidence.look("127.0.0.1", listening.sockets[0].getsockname()[1], web=True)
    assert seen.ends_s is not None
    assert seen.theirs_s is None
