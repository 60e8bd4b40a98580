"""Whose token it is. While the database cannot be used, those hold that it knew when they were used last: to revoke is most urgent then.
(Nobody can take a token back meanwhile, since that is said to the database.)
"""

from __future__ import annotations

import hashlib
from typing import Final

from config_server.store import operators
from config_server.store.database import Database
from shared.errors import DatabaseError, DataFolderInUseError

_MOST: Final = 1000


class KnownOperators:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._names = dict[bytes, str]()
        """By the token's hash, the last used one last."""

    async def name(self, token: str) -> str | None:
        """Raises DatabaseError for a token that was not used yet since this server began."""
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        try:
            name = await self._db.run(lambda db: operators.owner_of(db, token))
        except DataFolderInUseError:
            raise  # what this server remembers is not all that was said
        except DatabaseError:
            if (remembered := self._names.get(key)) is None:
                raise
            return remembered
        self._names.pop(key, None)
        if name is not None:
            self._names[key] = name
            if len(self._names) > _MOST:
                del self._names[next(iter(self._names))]
        return name
