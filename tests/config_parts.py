"""A real config server for tests: HTTPS on loopback, its own CA and database below a folder of the test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from config_server import service
from config_server.config import ConfigServerConfig
from shared import api
from shared.api.certificates import RefusedList, RevokeRequest, Token, TokenRequest
from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.trust import identity, tls


class ConfigServer:
    """A running config server and ways to talk to it."""

    def __init__(self, config: ConfigServerConfig, port: int) -> None:
        self.config = config
        self.port = port
        self.url = f"https://127.0.0.1:{port}"

    def anonymous_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.config.data_dir / "ca.pem")

    @property
    def operator_token(self) -> str:
        return (self.config.data_dir / service.TOKEN_FILE).read_text().strip()

    def operator(self) -> RestClient:
        return RestClient(self.url, self.anonymous_context(), token=self.operator_token)

    async def token(self, role: str, name: str, ttl_s: int = 600) -> Token:
        async with self.operator() as client:
            return await client.call(
                api.TOKEN_CREATE, TokenRequest(role=role, name=name, hosts=["127.0.0.1"], ttl_s=ttl_s)
            )

    async def enrolled(self, role: str, name: str, folder: Path) -> tls.TlsFiles:
        return await enrol.enrol(self.url, (await self.token(role, name)).token, folder)

    async def revoke(self, certificate: str, reason: str = "stolen") -> RefusedList:
        async with self.operator() as client:
            return await client.call(
                api.CERTIFICATE_REVOKE, RevokeRequest(certificate=certificate, reason=reason)
            )


def serial(files: tls.TlsFiles) -> str:
    """Of the certificate."""
    return f"{identity.only_certificate(files.cert.read_text()).serial_number:x}"


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await true():  # noqa: ASYNC110 - what the server does by itself tells nobody
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(config: ConfigServerConfig) -> AsyncIterator[ConfigServer]:
    """The server with this configuration, until the block ends."""
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(service.run(config, stop, port.set_result))
    started: set[asyncio.Future[Any]] = {task, port}
    await asyncio.wait(started, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield ConfigServer(config, await port)
    finally:
        stop.set()
        await task


def config_for(folder: Path, **changes: object) -> ConfigServerConfig:
    config = ConfigServerConfig(data_dir=folder / "config-server", listen="127.0.0.1", port=0)
    return msgspec.structs.replace(config, **changes)


@contextlib.asynccontextmanager
async def daemon(server: ConfigServer, files: tls.TlsFiles) -> AsyncIterator[ControlClient]:
    client = ControlClient(server.url, files)
    try:
        yield client
    finally:
        await client.close()
