"""The database as a file of this host: SQLite, in one thread, with one connection.

It is the only writer (the data folder has a lock), and a transaction takes SQLite's own lock where it begins, so transactions run one after
the other, never fail as busy, and whatever reads and then writes is right as it stands. With WAL and synchronous=FULL a commit is on the
disk. What is *vital* is tried again with the room of a reserve (reserve.py) when it could not be written.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from config_server.store import migrations, sqlite_dialect, sqlite_steps
from config_server.store.files import RESTORE, WITHOUT_BACKUP
from config_server.store.reserve import FILE, Reserve
from shared.daemon import logging
from shared.errors import ConfigError, DatabaseError

_log = logging.get()
_T = TypeVar("_T")
ERRORS: Final = (DBAPIError, sqlite3.Error)
"""What goes wrong in the database itself."""

_JOURNAL_MODE: Final = slice(18, 20)
"""In the header of a database: 2, 2 while it has a write-ahead log, which a copy has not."""

_given = threading.local()
_ENGINE: Final = create_engine(sqlite_dialect.URL, creator=lambda: _given.raw, poolclass=NullPool)
"""Of all databases that are open in this process, so that each statement is compiled once."""


_BOOTED_NS: Final = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
"""As this process has it, from its start on."""


def _clock_ns() -> int:
    """The database's clock. The time of day may be set back by hours; for one process this one only goes on, also while its host is
    suspended. (What another process wrote by its own: journal.free_all.)"""
    return _BOOTED_NS + time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def over(raw: sqlite3.Connection) -> Connection:
    """SQLAlchemy's over an open one, which has `isolation_level=None`, and which it closes."""
    raw.create_function("clock_ns", 0, _clock_ns)
    _given.raw = raw
    try:
        return _ENGINE.connect()
    finally:
        del _given.raw


def of_bytes(data: bytes) -> Connection:
    """In memory, as it was serialised. Raises sqlite3.Error."""
    raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        raw.deserialize(data)
    except BaseException:
        raw.close()
        raise
    return over(raw)


def copied(path: Path) -> sqlite3.Connection:
    """A copy in memory of the database as it is at one moment, whoever writes to it; he does not wait. Raises sqlite3.Error."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source:
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            source.backup(copy)
        except BaseException:
            copy.close()
            raise
    return copy


def serialised(raw: sqlite3.Connection) -> bytes:
    """As a file that has no log beside it."""
    found = bytearray(raw.serialize())
    found[_JOURNAL_MODE] = b"\x01\x01"
    return bytes(found)


def raw_of(db: Connection) -> sqlite3.Connection:
    raw = db.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def connect(path: Path | str) -> Connection:
    """An open, migrated database. Raises ConfigError when it is damaged, or from a newer version, DatabaseError
    otherwise."""
    raw, db = None, None
    # After a kill its last commits are there. Or they are another database's, in whose place this one was copied: then tables and
    # indexes may differ without a page that is wrong by itself.
    has_log = os.path.exists(f"{path}-wal")  # noqa: PTH110 - ":memory:" is no path
    try:
        raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        check(raw, thoroughly=has_log)
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA foreign_keys = ON")
        db = over(raw)
        migrate(db, path)
    except BaseException as exc:
        if db is not None:
            db.close()  # and `raw` with it: SQLAlchemy complains of one that was closed under it, long after
        elif raw is not None:
            raw.close()
        if isinstance(exc, ERRORS):
            raise translated(exc, path) from exc
        raise
    return db


def migrate(db: Connection, path: Path | str) -> None:
    """To this version's schema. Raises ConfigError when it is from a newer one, and what SQLite raises."""
    raw = raw_of(db)
    version, last = sqlite_steps.version(raw), len(sqlite_steps.MIGRATIONS)
    if version > last:
        raise migrations.newer(str(path), str(version), str(last))
    if version:
        sqlite_steps.bring_up(raw)
    with db.begin():
        migrations.upgrade(db, str(path), has_first=version > 0)


def check(raw: sqlite3.Connection, *, thoroughly: bool) -> None:
    """Raises ConfigError for a damaged database: which of its tables are, is chance, and it may be the revocations. `thoroughly`: also
    where indexes say something else than their tables."""
    try:
        [found] = raw.execute(f"PRAGMA {'integrity_check' if thoroughly else 'quick_check'}(1)").fetchone()
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        found = str(exc)
    if found != "ok":
        raise ConfigError(
            "The database is damaged",
            cause=f"{' '.join(found.split())} (so it looks when state.db was copied beside the state.db-wal of another one, too)",
            action=f"Restore a backup: {RESTORE}. {WITHOUT_BACKUP}",
        )


class Sqlite:
    """An open database, for one thread."""

    workers: Final = 1

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.trouble: DatabaseError | None = None
        self.is_shared = False
        self._path = path
        self._reserve = Reserve(path.with_name(FILE))
        self._db: Connection | None = None
        self._raw: sqlite3.Connection | None = None

    def open(self) -> Self:
        """Raises ConfigError, DatabaseError."""
        given_up = False
        try:
            try:
                self._db = connect(self._path)
            except DatabaseError:
                # Opening takes a little room, too: nobody could be revoked before somebody has found what to delete.
                given_up = self._reserve.give_up()
                if not given_up:
                    raise
                self._db = connect(self._path)
        finally:
            self._reserve.take(everything=given_up)
        self._raw = raw_of(self._db)
        return self

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def transact(self, work: Callable[[Connection], _T], *, vital: bool, urgent: bool = False) -> _T:
        """See database.py."""
        try:
            return self._transact(work)
        except DatabaseError:
            if not vital or not self._reserve.give_up():
                raise
        trouble = self.trouble
        try:
            result = self._transact(work)
            self.trouble = trouble  # for whoever has no reserve nothing has changed
            return result
        finally:
            self._reserve.take(everything=True)

    def aside(self, work: Callable[[Connection], _T]) -> _T:
        """See database.py. On a copy in memory, so that a long reading keeps no log from being taken into the file."""
        try:
            with contextlib.closing(over(copied(self._path))) as db:
                return work(db)
        except ERRORS as exc:
            raise translated(exc, self._path) from exc

    def _transact(self, work: Callable[[Connection], _T]) -> _T:
        raw = self._raw
        assert self._db is not None and raw is not None
        changes = raw.total_changes
        try:
            transaction = self._db.begin()
            try:
                result = work(self._db)
                transaction.commit()
            except BaseException:
                transaction.rollback()
                # That does nothing where the commit failed. (What does not fit on the disk SQLite itself has rolled back already.)
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
        except ERRORS as exc:
            error = translated(exc, self._path)
            if self.trouble is None or self.trouble.cause != error.cause:
                _log.error("the database fails", **error.as_dict())
            self.trouble = error
            raise error from exc
        # Of a disk that takes nothing SQLite still reads: only a write proves that it is over.
        if self.trouble is not None and raw.total_changes != changes:
            _log.info("the database works again", path=str(self._path))
            self.trouble = None
            self._reserve.take()
        return result


def translated(exc: Exception, path: Path | str) -> DatabaseError:
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    return DatabaseError(f"The database {path} could not be used", cause=str(cause))
