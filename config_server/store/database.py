"""SQLite in one thread: the only writer, so that transactions never wait for each other or fail as busy.

Work is given as plain functions of a connection (`tokens.redeem`, `jobs.get`, …); each runs in one
transaction, which is committed when it returns and rolled back when it raises. With WAL and synchronous=FULL
a commit is on the disk. What is *vital* is tried again with the room of a reserve (reserve.py) when it could not be written.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

from config_server.store.reserve import FILE, Reserve
from shared import logging
from shared.errors import ConfigError, DatabaseError
from shared.threads import Threads

_log = logging.get()
_T = TypeVar("_T")
DATABASE_FILE: Final = "state.db"
"""In the data folder."""
RESTORE: Final = "python -m config_server restore --config … --from FILE"
WITHOUT_BACKUP: Final = (
    "Without a backup: move the whole data folder away, and the note of its CA, which lies beside the vault file (vault.json.ca); start,"
    " and enrol every daemon anew (with --replace); what is replicated stays in storage."
)

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE operators (name TEXT PRIMARY KEY, hash BLOB NOT NULL, created_ns INTEGER NOT NULL);
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, hosts TEXT NOT NULL,
        created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, used_ns INTEGER);
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL,
        issued_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL);
    CREATE TABLE machines (
        name TEXT PRIMARY KEY, protected INTEGER NOT NULL, disks TEXT NOT NULL, policy TEXT,
        created_ns INTEGER NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE reports (
        role TEXT NOT NULL, name TEXT NOT NULL, received_ns INTEGER NOT NULL, report TEXT NOT NULL,
        PRIMARY KEY (role, name));
    CREATE TABLE commands (
        id TEXT PRIMARY KEY, target TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL,
        created_ns INTEGER NOT NULL, state TEXT NOT NULL, result TEXT NOT NULL, done_ns INTEGER);
    CREATE INDEX commands_pending ON commands (target) WHERE state = 'pending';
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, severity TEXT NOT NULL, source TEXT NOT
        NULL, object TEXT NOT NULL, code TEXT NOT NULL, what TEXT NOT NULL, cause TEXT NOT NULL, action TEXT
        NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, count INTEGER NOT NULL, resolved_ns
        INTEGER);
    CREATE UNIQUE INDEX events_open ON events (source, object, code) WHERE resolved_ns IS NULL;
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, machine TEXT NOT NULL, state TEXT NOT NULL, progress REAL,
        detail TEXT NOT NULL, args TEXT NOT NULL, result TEXT, error TEXT,
        created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT
        NULL, object TEXT NOT NULL, detail TEXT NOT NULL);
    """,
    """
    ALTER TABLE events ADD COLUMN key TEXT NOT NULL DEFAULT '';
    DROP INDEX events_open;
    CREATE UNIQUE INDEX events_open ON events (source, object, code, key) WHERE resolved_ns IS NULL;
    """,
    """
    CREATE TABLE revocations (
        subject TEXT PRIMARY KEY, reason TEXT NOT NULL, revoked_ns INTEGER NOT NULL, expires_ns INTEGER);
    """,
    """
    CREATE TABLE grants (
        id TEXT PRIMARY KEY, machine TEXT NOT NULL, container TEXT NOT NULL, who TEXT NOT NULL, host TEXT NOT NULL,
        given_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, ended_ns INTEGER, ended_by TEXT NOT NULL DEFAULT '',
        returned INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX grants_machine ON grants (machine);
    """,
    """
    CREATE INDEX events_over ON events (source, id) WHERE resolved_ns IS NOT NULL;
    """,
    """
    ALTER TABLE revocations ADD COLUMN before_s INTEGER;
    ALTER TABLE certificates ADD COLUMN key TEXT NOT NULL DEFAULT '';
    CREATE INDEX certificates_of_key ON certificates (key);
    ALTER TABLE tokens ADD COLUMN key TEXT NOT NULL DEFAULT '';
    ALTER TABLE tokens ADD COLUMN certificate TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE certificates ADD COLUMN renews TEXT NOT NULL DEFAULT '';
    ALTER TABLE certificates ADD COLUMN pem TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE grants ADD COLUMN request TEXT NOT NULL DEFAULT '';
    CREATE UNIQUE INDEX grants_request ON grants (request) WHERE request != '';
    """,
    """
    ALTER TABLE revocations ADD COLUMN who TEXT NOT NULL DEFAULT '';
    CREATE TABLE recorded_revocations (blob TEXT PRIMARY KEY);
    """,
    """
    ALTER TABLE revocations ADD COLUMN readmitted_ns INTEGER;
    UPDATE revocations SET readmitted_ns = max(revoked_ns + 1, (before_s + 300) * 1000000000) WHERE before_s IS NOT NULL;
    """,
    """
    ALTER TABLE machines ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
    UPDATE machines SET ended = 1 WHERE protected = 0 AND disks != '[]';
    """,
    """
    ALTER TABLE revocations ADD COLUMN mark TEXT NOT NULL DEFAULT '';
    """,
    # A machine's wish begins with the next act of an operator: an upgrade orders nothing.
    """
    ALTER TABLE machines ADD COLUMN wish TEXT;
    ALTER TABLE machines ADD COLUMN wish_ns INTEGER;
    ALTER TABLE machines ADD COLUMN wish_incarnation TEXT;
    ALTER TABLE machines ADD COLUMN policy_name TEXT;
    CREATE TABLE policies (name TEXT PRIMARY KEY, body TEXT NOT NULL);
    INSERT INTO policies SELECT 'default', value FROM settings WHERE name = 'default-policy';
    DELETE FROM settings WHERE name = 'default-policy';
    INSERT INTO settings VALUES ('incarnations', json_array(lower(hex(randomblob(8)))));
    DELETE FROM commands WHERE kind IN ('protect', 'unprotect');
    """,
    # Empty: it is not known, and whoever is the machine when he reports next has it.
    """
    ALTER TABLE machines ADD COLUMN identity TEXT NOT NULL DEFAULT '';
    """,
    # Each policy had an interval, also where only a threshold was ever set; 300 is what nobody chose.
    """
    UPDATE policies SET body = json_remove(body, '$.point_interval_s') WHERE json_extract(body, '$.point_interval_s') = 300;
    UPDATE machines SET policy = json_remove(policy, '$.point_interval_s') WHERE json_extract(policy, '$.point_interval_s') = 300;
    """,
    # Disks are known by their ids, and each act says which are to go.
    """
    ALTER TABLE machines ADD COLUMN dropped TEXT NOT NULL DEFAULT '[]';
    UPDATE machines SET disks =
        (SELECT json_group_array(json_object('device', value)) FROM json_each(disks) WHERE length(value) BETWEEN 1 AND 4096);
    """,
    # Which of them somebody wants deleted.
    """
    ALTER TABLE machines ADD COLUMN deletion TEXT;
    """,
    # Acts say so, too, where they name other process servers than before.
    """
    ALTER TABLE machines ADD COLUMN moved INTEGER NOT NULL DEFAULT 0;
    """,
    # The containers that were deleted with their machines: daemons that have something of them may come later.
    """
    CREATE TABLE deleted (
        container TEXT PRIMARY KEY, machine TEXT NOT NULL, incarnation TEXT NOT NULL, deleted_ns INTEGER NOT NULL);
    """,
)
"""Schema steps. A database's `user_version` says how many it has; steps are only ever added."""


def connect(path: Path | str) -> sqlite3.Connection:
    """An open, migrated database. Raises ConfigError when it is damaged, or from a newer version, DatabaseError
    otherwise."""
    connection = None
    # After a kill its last commits are there. Or they are another database's, in whose place this one was copied: then tables and
    # indexes may differ without a page that is wrong by itself.
    has_log = os.path.exists(f"{path}-wal")  # noqa: PTH110 - ":memory:" is no path
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        check(connection, thoroughly=has_log)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection, path)
    except BaseException as exc:
        if connection is not None:
            connection.close()
        if isinstance(exc, sqlite3.Error):
            raise translated(exc, path) from exc
        raise
    return connection


def migrate(db: sqlite3.Connection, path: Path | str) -> None:
    """To this version's schema. Raises ConfigError when it is from a newer one."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"The database {path} could not be opened",
            cause=f"its schema has version {version}, this program knows {len(MIGRATIONS)}",
            action="Install the newer version of Understudy again, or restore a backup.",
        )
    for step in range(version, len(MIGRATIONS)):
        # One transaction per step: a database is never between two versions.
        db.executescript(f"BEGIN;{MIGRATIONS[step]};PRAGMA user_version = {step + 1};COMMIT;")


def check(db: sqlite3.Connection, *, thoroughly: bool) -> None:
    """Raises ConfigError for a damaged database: which of its tables are, is chance, and it may be the revocations. `thoroughly`: also
    where indexes say something else than their tables."""
    try:
        [found] = db.execute(f"PRAGMA {'integrity_check' if thoroughly else 'quick_check'}(1)").fetchone()
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


class Database:
    """An open database; all work is done in its one thread."""

    def __init__(
        self, path: Path, executor: Threads, connection: sqlite3.Connection, reserve: Reserve
    ) -> None:
        self.trouble: DatabaseError | None = None
        """Why it cannot be used just now: from the first transaction that fails until one has written again."""
        self._path = path
        self._executor = executor
        self._reserve = reserve
        self._connection = connection

    @classmethod
    async def open(cls, path: Path) -> Self:
        executor = Threads(max_workers=1, thread_name_prefix="database")
        reserve = Reserve(path.with_name(FILE))

        def begin() -> sqlite3.Connection:
            given_up = False
            try:
                try:
                    return connect(path)
                except DatabaseError:
                    # Opening takes a little room, too: nobody could be revoked before somebody has found what to delete.
                    given_up = reserve.give_up()
                    if not given_up:
                        raise
                    return connect(path)
            finally:
                reserve.take(everything=given_up)

        try:
            connection = await asyncio.get_running_loop().run_in_executor(executor, begin)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(path, executor, connection, reserve)

    async def run(self, work: Callable[[sqlite3.Connection], _T], *, vital: bool = False) -> _T:
        """The result of `work` in a transaction. Raises what it raises, and DatabaseError for SQLite's own
        errors. `vital` work is done a second time, with the reserve's room, when it could not be written.

        The transaction runs to its end even when the caller is cancelled.
        """
        transact = self._transact_surely if vital else self._transact
        return await asyncio.get_running_loop().run_in_executor(self._executor, transact, work)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._connection.close)
        self._executor.shutdown()

    def _transact_surely(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return self._transact(work)
        except DatabaseError:
            if not self._reserve.give_up():
                raise
        trouble = self.trouble
        try:
            result = self._transact(work)
            self.trouble = trouble  # for whoever has no reserve nothing has changed
            return result
        finally:
            self._reserve.take(everything=True)

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        changes = self._connection.total_changes
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite itself rolls back what does not fit on the disk, and then there is nothing to end.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as exc:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            error = translated(exc, self._path)
            if self.trouble is None or self.trouble.cause != error.cause:
                _log.error("the database fails", **error.as_dict())
            self.trouble = error
            raise error from exc
        # Of a disk that takes nothing SQLite still reads: only a write proves that it is over.
        if self.trouble is not None and self._connection.total_changes != changes:
            _log.info("the database works again", path=str(self._path))
            self.trouble = None
            self._reserve.take()
        return result


def translated(exc: sqlite3.Error, path: Path | str) -> DatabaseError:
    return DatabaseError(f"The database {path} could not be used", cause=str(exc))
