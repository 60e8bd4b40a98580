"""A proxy between a client and storage, as `HTTPS_PROXY` names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answers = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


async def connect_through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    host, _, port = target.rpartition(":")
    far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(b"HTTP/1.1 200 connected\r\n\r\n")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))


async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: str) -> None:
    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def proxy(answers: Answers) -> AsyncIterator[tuple[str, list[str]]]:
    """Its URL, and the targets that it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:  # somebody only looks whether it is there
            writer.close()
            return
        asked.append(head.split(" ")[1])
        await answers(reader, writer, asked[-1])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://u:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await asyncio.sleep(0)
