"""The listening end: connections in, a session for each, and their end.

Input: TLS connections on port 9443, behind a `Door`, which gives up what does not get on (shared/serving/door.py). Output: a `Session` per
connection, which admission.py lets feed the machine's log, or does not. Nothing here blocks.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
from typing import Final

from process_server.reception import admission
from process_server.reception.admission import Admission, certificate_refused
from process_server.reception.session import Session
from shared.api.certificates import Revocations
from shared.daemon import logging
from shared.errors import StoppingError
from shared.serving.door import Door, Peer, Visit

_log = logging.get()

REFRESH_S: Final = 0.25
"""How often free space and credit are looked at when nothing else makes them move."""
STOP_S: Final = 20.0
"""How long batches in flight may take at a stop; what is not durable then was not acknowledged."""


class Receiver:
    """`start`, then `stop`; both once."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, admission: Admission) -> None:
        self._address = address
        self._context = context
        self._admission = admission
        self._door: Door | None = None
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop_tasks: list[asyncio.Task[None]] = []
        self._ids = itertools.count(1)
        self._run_id = secrets.token_hex(3)
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that it really listens on (the configured one may be 0)."""
        assert self._door is not None
        return self._door.port

    async def start(self) -> None:
        """Bind and begin to accept. Raises ListenError."""
        await self._admission.recall()
        host, port = self._address
        door = self._door = Door.open(host, port, self._context, "The process server")
        self._loop_tasks = [
            asyncio.create_task(door.run(lambda peer: self._visit(door, peer)), name="accept"),
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
        if self._door is not None:
            self._door.close()  # cancelled before it began, `run` does not
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

    async def tell(self, control: bytes) -> None:
        """Where the config server is now: agents are told where their sessions begin, so these are begun anew, one after the other."""
        self._admission.control = control
        for session in list(self._sessions):
            await session.stop()

    # ---- inside ----

    def _visit(self, door: Door, peer: Peer) -> Visit:
        session = Session(
            self._admission,
            f"{self._run_id}-{next(self._ids)}",
            str(peer),
            lambda: door.asked(peer, proved=True),
        )

        def opened(_transport: asyncio.Transport) -> None:
            self._sessions.add(session)
            task = asyncio.create_task(
                self._attend(session, door, peer), name=f"connection {session.address}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return session.channel, opened

    async def _attend(self, session: Session, door: Door, peer: Peer) -> None:
        """The life of the session."""
        try:
            if self._stopping:
                session.fail(StoppingError("The process server takes no session"))
            await session.channel.closed.wait()
            door.lost(peer)
            await session.appended()
        finally:
            self._sessions.discard(session)

    async def _refresh_regularly(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            self._admission.refresh()

    async def _check_sides_regularly(self) -> None:
        while True:
            await asyncio.sleep(admission.CHECK_SIDES_S)
            await self._admission.check_sides()
