from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest

from shared.http.connector import TlsConnector
from shared.trust import tls
from tests.pki import TestCa


async def test_a_pool_can_be_closed_after_an_answer_that_is_no_http(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"no HTTP\r\n\r\n")
        await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(
        answer, "127.0.0.1", 0, ssl=tls.server_context(ca.issue("server"), False)
    )
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        context = ssl.create_default_context(cafile=str(ca.path))
        async with aiohttp.ClientSession(connector=TlsConnector(context, 8)) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(url)
