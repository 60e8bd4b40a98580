"""Whose token it is. While the database cannot be used, those hold that it knew when they were used last: to revoke is most urgent then.
(Nobody can take a token back meanwhile, since that is said to the database.)

They are looked for apart from others' work: that may all wait for a table that somebody has locked. Should it be this one, all that come
with one token while another look for it has not begun yet are answered by that: else a revocation would wait behind each of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final

from config_server.rules.clock import rfc3339
from config_server.store import operators
from config_server.store.database import Connection, Database
from config_server.store.operators import Owner
from shared.errors import AccessError, DatabaseError, DataFolderInUseError

_MOST: Final = 1000


class KnownOperators:
    def __init__(self, db: Database, now_ns: Callable[[], int]) -> None:
        self._db: Final = db
        self._now_ns: Final = now_ns
        self._owners: Final = dict[bytes, Owner]()
        """By the token's hash, the last used one last."""
        self._queued: Final = dict[bytes, asyncio.Task[Owner | None]]()
        """Likewise: looks that have not begun."""

    async def name(self, token: str) -> str | None:
        """Raises AccessError for a token that has expired, DatabaseError for one that was not used yet since this server began."""
        owner, now_ns = await self._owner(token), self._now_ns()
        if owner is not None and owner.expires_ns is not None and owner.expires_ns <= now_ns:
            raise AccessError(
                "The call was refused",
                cause=f"this token of operator '{owner.name}' expired at {rfc3339(owner.expires_ns)}",
                action=f"Have another one made by somebody who may: understudy operator add {owner.name}.",
            )
        return None if owner is None else owner.name

    async def _owner(self, token: str) -> Owner | None:
        key, now_ns = hashlib.sha256(token.encode(errors="surrogateescape")).digest(), self._now_ns()
        try:
            owner = await self._looked_up(key, token, now_ns)
        except DataFolderInUseError:
            raise  # what this server remembers is not all that was said
        except DatabaseError:
            if (remembered := self._owners.get(key)) is None:
                raise
            return remembered
        self._owners.pop(key, None)
        if owner is not None:
            self._owners[key] = owner
            if len(self._owners) > _MOST:
                del self._owners[next(iter(self._owners))]
        return owner

    async def _looked_up(self, key: bytes, token: str, now_ns: int) -> Owner | None:
        def work(db: Connection) -> Owner | None:
            self._queued.pop(key, None)  # who comes from here on asks anew: it may be ended meanwhile
            return operators.owner_of(db, token, now_ns)

        if (look := self._queued.get(key)) is None:
            look = asyncio.create_task(self._db.run(work, urgent=True), name="operator's token")
            look.add_done_callback(partial(self._ended, key))
            self._queued[key] = look
        return await asyncio.shield(look)  # others may wait for it, too

    def _ended(self, key: bytes, look: asyncio.Task[Owner | None]) -> None:
        if self._queued.get(key) is look:
            del self._queued[key]
        if not look.cancelled():
            look.exception()  # whoever asked may be gone
