"""SQLite's databases of the config server without a server: in memory, copies of them, and beside one that runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection

from config_server.store import sqlite


def copied(db: Connection) -> Connection:
    """As it is now, in memory."""
    db.commit()
    return sqlite.of_bytes(sqlite.raw_of(db).serialize())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """In a transaction, which is committed at the end."""
    with contextlib.closing(sqlite.connect(path)) as db:
        yield db
        db.commit()
