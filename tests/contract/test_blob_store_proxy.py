"""The blob store beside proxies in the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from shared import proxies
from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import NotStorageError, StorageError, TransientError

ONCE = Retry(deadline_s=0)
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
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split(" ")[1])
        await answers(reader, writer, asked[-1])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://u:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        await asyncio.sleep(0)


@pytest.fixture
def far(blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> BlobConfig:
    """The test's storage, taken for a server far away."""
    monkeypatch.setattr(proxies, "is_near", lambda _: False)
    return blob_config


async def test_storage_nearby_is_never_asked_for_through_a_proxy(
    blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    local = msgspec.structs.replace(blob_config, url=blob_config.url.replace("127.0.0.1", "localhost"))
    for config in (blob_config, local):
        async with BlobStore.connect(config) as store:
            await store.with_retry(ONCE).ensure_container()


async def test_storage_far_away_is_reached_through_the_proxy(
    far: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy(connect_through) as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        async with BlobStore.connect(far) as store:
            await store.ensure_container()
            await store.create("x", b"1")
            assert await store.read("x") == b"1"
    assert asked
    assert all(target in far.url for target in asked)


async def fails(config: BlobConfig, url: str, monkeypatch: pytest.MonkeyPatch) -> StorageError:
    monkeypatch.setenv("HTTPS_PROXY", url)
    async with BlobStore.connect(config) as store:
        with pytest.raises(StorageError) as caught:
            await store.with_retry(ONCE).ensure_container()
    assert url.rpartition("@")[2] in caught.value.cause
    assert "HTTPS_PROXY" in caught.value.cause
    assert "secret" not in str(caught.value)
    return caught.value


async def test_a_proxy_that_is_away_is_named(far: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    error = await fails(far, "http://u:secret@127.0.0.1:1", monkeypatch)
    assert isinstance(error, TransientError)


async def test_a_proxy_that_refuses_is_named(far: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(refuse) as (url, _):
        error = await fails(far, url, monkeypatch)
    assert type(error) is NotStorageError
    assert "407" in error.cause
    assert "NO_PROXY" in error.action
