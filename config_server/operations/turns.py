"""What goes through several transactions, and storage in between, and must not meet itself: one at a time, here and at other servers.

Here a lock sees to it, between servers a lease (store/replicas.py), which is renewed while the work goes on. Work is cut off where that
fails, and each of its transactions looks whether it has the lease still. A server that stands still between such a look and what it asks of
storage may be late all the same; what that can do is the business of whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol
from weakref import WeakValueDictionary

from config_server.rules.clock import SECOND_NS
from config_server.store import replicas
from config_server.store.database import Connection, Database
from shared.errors import DatabaseError, DataFolderInUseError, DeadlineError

TERM_S: Final = 15.0
"""Behind a server that is killed the next one waits for so long."""
_RENEW_S: Final = 5.0
_PATIENCE_S: Final = 25.0
_LOOK_S: Final = 0.25


class _Server(Protocol):
    @property
    def id(self) -> str:
        """Of this one, among those on its database."""


class Turns:
    def __init__(self, db: Database, server: Callable[[], _Server | None]) -> None:
        """`server`: None while there is no other one."""
        self._db = db
        self._server = server
        self._locks = WeakValueDictionary[str, asyncio.Lock]()

    @contextlib.asynccontextmanager
    async def of(self, what: str) -> AsyncIterator[None]:
        """`what` names it, for people too. Raises DeadlineError where another server does not end it, or takes it; DatabaseError."""
        async with self._locks.setdefault(what, asyncio.Lock()):
            server = self._server()
            if server is None:
                yield
                return
            await self._take(what, server.id)
            try:
                async with self._kept(what, server.id):
                    yield
            finally:
                with contextlib.suppress(DatabaseError):  # then it ends by itself
                    await self._db.run(lambda db: replicas.release(db, what, server.id))

    async def is_free(self, what: str) -> bool:
        """Whether nobody is at it, here or at another server. Raises DatabaseError."""
        if (lock := self._locks.get(what)) is not None and lock.locked():
            return False
        server = self._server()
        for_ns = int(TERM_S * SECOND_NS)
        return server is None or not await self._db.run(
            lambda db: replicas.is_held(db, what, server.id, for_ns)
        )

    def check(self, db: Connection, what: str) -> None:
        """In each transaction of the work, first. Raises DeadlineError where another server has it by now."""
        server = self._server()
        if server is not None and not replicas.hold(db, what, server.id, int(TERM_S * SECOND_NS)):
            raise _lost(what)

    async def _take(self, what: str, id_: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not await self._holds(what, id_):  # noqa: ASYNC110 - the other server does not tell
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError as exc:
            raise DeadlineError(
                f"Nothing was changed in the {what}",
                cause="another config server is at it, and did not end",
                action="Ask again.",
            ) from exc

    async def _holds(self, what: str, id_: str) -> bool:
        return await self._db.run(lambda db: replicas.hold(db, what, id_, int(TERM_S * SECOND_NS)))

    @contextlib.asynccontextmanager
    async def _kept(self, what: str, id_: str) -> AsyncIterator[None]:
        limit = asyncio.timeout(None)
        try:
            async with limit:
                keeper = asyncio.create_task(self._keep(what, id_, limit), name=f"turn: {what}")
                try:
                    yield
                finally:
                    keeper.cancel()
        except TimeoutError as exc:
            if limit.expired():
                raise _lost(what) from exc
            raise

    async def _keep(self, what: str, id_: str, limit: asyncio.Timeout) -> None:
        """Until it cannot be kept: then the work is cut off."""
        loop = asyncio.get_running_loop()
        renewed_s = loop.time()
        while loop.time() - renewed_s < TERM_S - _RENEW_S:
            await asyncio.sleep(_RENEW_S)
            asked_s = loop.time()
            with contextlib.suppress(DatabaseError, DataFolderInUseError):  # which say so themselves
                if not await self._holds(what, id_):
                    break
                renewed_s = asked_s
        limit.reschedule(loop.time())


def _lost(what: str) -> DeadlineError:
    return DeadlineError(
        f"What was to be changed in the {what} was not seen to its end",
        cause="this config server stood still, or could not reach its database, and another one is at it",
        action="See what is so now, and ask again.",
    )
