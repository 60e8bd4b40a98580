"""The listening end: connections in, a session for each, and their end.

Input: TLS connections on port 9443. Output: a `Session` per connection, which admission.py lets feed the machine's log, or does not.
Nothing here blocks: handshakes are tasks.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import ssl
from typing import Final

from process_server.reception import admission
from process_server.reception.admission import Admission, certificate_refused
from process_server.reception.session import Session
from shared import logging, tls
from shared.errors import ListenError, StoppingError, cause_of
from shared.messages import Revocations
from shared.wire.transport import HANDSHAKE_S, Channel

_log = logging.get()

REFRESH_S: Final = 0.25
"""How often free space and credit are looked at when nothing else makes them move."""
MAX_HANDSHAKES: Final = 256
STOP_S: Final = 20.0
"""How long batches in flight may take at a stop; what is not durable then was not acknowledged."""


class Receiver:
    """`start`, then `stop`; both once."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, admission: Admission) -> None:
        self._address = address
        self._context = context
        self._admission = admission
        self._listener: socket.socket | None = None
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_HANDSHAKES)
        self._loop_tasks: list[asyncio.Task[None]] = []
        self._ids = itertools.count(1)
        self._run_id = secrets.token_hex(3)
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that it really listens on (the configured one may be 0)."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        """Bind and begin to accept. Raises ListenError."""
        host, port = self._address
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=256)
        except OSError as exc:
            raise ListenError(
                f"The process server cannot listen on {host}:{port}", cause=cause_of(exc)
            ) from exc
        self._listener.setblocking(False)
        await self._admission.recall()
        self._loop_tasks = [
            asyncio.create_task(self._accept(self._listener), name="accept"),
            asyncio.create_task(self._refresh_regularly(), name="refresh"),
            asyncio.create_task(self._check_sides_regularly(), name="sides"),
        ]
        _log.info("listening", host=host, port=self.port)

    async def watch(self) -> None:
        """Never returns; raises when one of the loops has failed, which is a bug."""
        await asyncio.gather(*self._loop_tasks)

    async def stop(self) -> None:
        """Accept nothing more, make durable and acknowledge what came, close every session."""
        self._stopping = True
        for task in self._loop_tasks:
            task.cancel()
        await asyncio.gather(*self._loop_tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        stops = [asyncio.create_task(session.stop(), name=f"stop {session.id}") for session in self._sessions]
        if stops:
            _, late = await asyncio.wait(stops, timeout=STOP_S)
            for task in late:
                _log.warning("a session did not drain in time", task=task.get_name())
                task.cancel()
        for session in list(self._sessions):
            session.channel.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*stops, *self._tasks, return_exceptions=True)

    def revoke(self, revoked: Revocations) -> None:
        """Admit these no more, and end their sessions. What they had sent stays: it was theirs to send."""
        self._admission.revoked = revoked
        for session in list(self._sessions):
            if self._admission.is_revoked(session):
                session.fail(certificate_refused(session))

    # ---- inside ----

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as exc:
                self._slots.release()
                _log.error("connections cannot be accepted", cause=cause_of(exc))
                await asyncio.sleep(1.0)  # out of file descriptors, say: trying at once would only spin
                continue
            except BaseException:
                self._slots.release()
                raise
            name = f"{address[0]}:{address[1]}"
            task = asyncio.create_task(self._admit(sock, name), name=f"connection {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, sock: socket.socket, address: str) -> None:
        """The handshake, then the life of the session."""
        session = Session(self._admission, f"{self._run_id}-{next(self._ids)}", address)
        try:
            await self._handshake(sock, session.channel)
        except (OSError, TimeoutError) as exc:
            sock.close()
            error = tls.translate(exc, f"A connection from {address} was refused")
            _log.warning("connection refused", address=address, **error.as_dict())
            return
        finally:
            self._slots.release()
        self._sessions.add(session)
        try:
            if self._stopping:
                session.fail(StoppingError("The process server takes no session"))
            await session.channel.closed.wait()
            await session.settled()
        finally:
            self._sessions.discard(session)

    async def _handshake(self, sock: socket.socket, channel: Channel) -> None:
        await tls.accept(lambda: channel, sock, self._context, HANDSHAKE_S)

    async def _refresh_regularly(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            self._admission.refresh()

    async def _check_sides_regularly(self) -> None:
        while True:
            await asyncio.sleep(admission.CHECK_SIDES_S)
            await self._admission.check_sides()
