"""A listening port under whoever reaches it: accepts, shakes hands, and gives up those that do not get on.

The same for every daemon that others connect to. Nothing is waited for before the next connection is accepted; which ones are closed when
there are too many is decided in `connections`. A foreign or expired certificate, or something that is not TLS, is a log line with
address and reason, of each address and reason the first of many (`refusals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Self

from shared.daemon import logging
from shared.errors import AcceptError, cause_of
from shared.serving.connections import Connections, origin, unmapped
from shared.serving.listening import listening_socket, shown
from shared.serving.refusals import Refusals
from shared.trust import tls

_log = logging.get()
HANDSHAKE_S: Final = 10.0
_DESCRIPTORS: Final = 65_536
_PAUSE_S: Final = 0.1
"""Before the next try, when one behind another failed."""


class Peer:
    """The other end of one connection. Equal to itself alone: the same address and port may come again before the end of the connection
    that had them is noticed, and that must not be taken for this one's."""

    def __init__(self, host: str, port: int) -> None:
        self.host: Final = unmapped(host)
        self.port: Final = port

    def __str__(self) -> str:
        return f"{shown(self.host)}:{self.port}"


Visit = tuple[asyncio.BaseProtocol, Callable[[asyncio.Transport], None]]
"""The protocol of a connection, and who is told when its handshake is done."""


class Door:
    """Whoever has `run` it says `asked` of each connection that has said what it wants, and `lost` of each that is over."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.refusals: Final = Refusals()
        self._sock = sock
        self._context = context
        self._connections: Connections[Peer] = Connections()
        self._closers: dict[Peer, Callable[[], object]] = {}
        self._handshakes: dict[Peer, asyncio.Task[None]] = {}

    @classmethod
    def open(cls, host: str, port: int, context: ssl.SSLContext, who: str) -> Self:
        """`who` listens. Raises ListenError."""
        _raise_descriptor_limit()
        return cls(listening_socket(host, port, who), context)

    def close(self) -> None:
        """Listen no more; for whoever has not come to `run` it."""
        self._sock.close()

    @property
    def port(self) -> int:
        """The port that it really listens on (the configured one may be 0)."""
        return int(self._sock.getsockname()[1])

    async def run(self, visit: Callable[[Peer], Visit]) -> None:
        """Accept until cancelled; closes the port. Connections that are open then stay so."""
        failed = False
        try:
            while True:
                try:
                    accepted, (host, port, *_) = self._sock.accept()
                except BlockingIOError:
                    await self._until_somebody_comes()
                    continue
                except OSError as exc:
                    self._not_accepted(exc)
                    # One may be its peer's, who is gone again. Another behind it is this host's: no descriptors, no memory, or accepting
                    # is forbidden (SELinux); it is so at the next try, too, and sessions that are open want their turn.
                    await asyncio.sleep(_PAUSE_S if failed else 0)
                    failed = True
                    continue
                failed = False
                self._begin(accepted, Peer(host, port), visit)
                await asyncio.sleep(0)  # accepting never yields while there is a queue
        finally:
            self._sock.close()
            handshakes = [*self._handshakes.values()]
            for peer in [*self._handshakes]:
                self._cut(peer)
            await asyncio.gather(*handshakes, return_exceptions=True)  # or transports would outlive the loop

    def asked(self, peer: Peer, *, proved: bool) -> None:
        """It has said what it wants; `proved`: and who it is."""
        self._close(self._connections.asked(peer, proved=proved))

    def is_unproved(self, peer: Peer) -> bool:
        return self._connections.is_unproved(peer)

    def lost(self, peer: Peer) -> None:
        """It is over, whoever closed it."""
        self._connections.closed(peer)
        self._closers.pop(peer, None)

    def give_up(self, peer: Peer) -> None:
        self._close([peer])

    # ---- inside ----

    async def _until_somebody_comes(self) -> None:
        """asyncio's sock_accept takes the connection before it is looked whether somebody still waits: one that comes as the port closes
        would be lost, and named a bug."""
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(self._sock, came.set)
        try:
            await came.wait()
        finally:
            loop.remove_reader(self._sock)

    def _not_accepted(self, exc: OSError) -> None:
        """Whatever it is, it does not end the service."""
        error = AcceptError("A connection could not be accepted", cause=cause_of(exc))
        self.refusals.note("", "connection not accepted", **error.as_dict())

    def _begin(self, accepted: socket.socket, peer: Peer, visit: Callable[[Peer], Visit]) -> None:
        self._closers[peer] = partial(_shut_down, accepted)

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # maybe before it had begun
                self._cut(peer)
            accepted.close()
            del self._handshakes[peer]

        task = asyncio.create_task(self._handshake(accepted, peer, visit), name=f"handshake {peer}")
        self._handshakes[peer] = task
        task.add_done_callback(ended)
        self._close(self._connections.opened(peer, origin(peer.host)))

    async def _handshake(self, accepted: socket.socket, peer: Peer, visit: Callable[[Peer], Visit]) -> None:
        """Whoever gives it up shuts its socket down, and then it ends like that of a peer who went away; no task is cancelled for it."""
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol, opened = visit(peer)
            transport, _ = await tls.accept(lambda: protocol, accepted, self._context, HANDSHAKE_S)
            opened(transport)
        except OSError as exc:  # TimeoutError is one
            if peer in self._closers:
                error = tls.translate(exc, f"A connection from {peer.host} was refused")
                self._refused(peer, "connection refused", **error.as_dict())
            self.lost(peer)
        except Exception as exc:  # noqa: BLE001 - it costs this connection, and nothing else
            _log.error("connection failed: this is a bug", address=str(peer), exc_info=exc)
            self._cut(peer)
        else:
            if peer in self._closers:
                self._closers[peer] = transport.abort
            else:
                transport.abort()  # it was given up, or lost, in the very turn of the loop in which it was done

    def _close(self, peers: Iterable[Peer]) -> None:
        for peer in peers:
            self._cut(peer)
            self._refused(peer, "connection given up", cause="it did not get on, or too many were open")

    def _cut(self, peer: Peer) -> None:
        close = self._closers.get(peer)
        self.lost(peer)
        if close is not None:
            close()

    def _refused(self, peer: Peer, event: str, **fields: str) -> None:
        kind = fields.get("code", event)
        self.refusals.note(f"{origin(peer.host)} {kind}", event, address=str(peer), **fields)


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is over already
        sock.shutdown(socket.SHUT_RDWR)


def _raise_descriptor_limit() -> None:
    """A connection is a descriptor, and the usual soft limit of 1024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # forbidden to a service: fewer are served then
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
