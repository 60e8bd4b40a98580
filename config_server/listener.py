"""Accepts TLS connections for the API, and says why one was refused.

aiohttp's own sites drop a connection whose handshake fails without a word; here a foreign or expired
certificate, or something that is not TLS, is a log line with address and reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final, Self

from aiohttp import web

from shared import logging, tls
from shared.errors import ListenError

_log = logging.get()
_HANDSHAKE_S: Final = 10.0
_HANDSHAKES: Final = 256
"""So many at a time; more wait in the kernel's queue."""


class Listener:
    """A listening port in front of an aiohttp server."""

    def __init__(self, sock: socket.socket, server: web.Server, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._server = server
        self._context = context
        self._slots = asyncio.Semaphore(_HANDSHAKES)
        self._handshakes: set[asyncio.Task[None]] = set()

    @classmethod
    def open(cls, host: str, port: int, server: web.Server, context: ssl.SSLContext) -> Self:
        """Raises ListenError."""
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            sock = socket.create_server((host, port), family=family, backlog=256)
        except OSError as exc:
            raise ListenError(
                f"The config server could not listen on {host}:{port}", cause=exc.strerror or str(exc)
            ) from exc
        sock.setblocking(False)
        return cls(sock, server, context)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    async def run(self) -> None:
        """Accept until cancelled; closes the port."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._slots.acquire()
                try:
                    accepted, address = await loop.sock_accept(self._sock)
                except OSError as exc:
                    # Out of file descriptors, or the peer is gone again: neither ends the service.
                    _log.warning("a connection could not be accepted", cause=exc.strerror or str(exc))
                    self._slots.release()
                    await asyncio.sleep(0.1)
                    continue
                task = asyncio.create_task(self._handshake(accepted, str(address[0])), name="handshake")
                self._handshakes.add(task)
                task.add_done_callback(self._ended)
        finally:
            self._sock.close()
            for task in self._handshakes:
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._slots.release()

    async def _handshake(self, accepted: socket.socket, address: str) -> None:
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, accepted, ssl=self._context, ssl_handshake_timeout=_HANDSHAKE_S
            )
        except (OSError, TimeoutError) as exc:
            error = tls.translate(exc, f"A connection from {address} was refused")
            _log.warning("connection refused", remote=address, **error.as_dict())
            with contextlib.suppress(OSError):
                accepted.close()
