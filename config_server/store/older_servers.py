"""No server of an older program uses the same database in PostgreSQL: it would remember for itself who is revoked, who reported, and what
waits.

Such a one holds one of PostgreSQL's advisory locks for itself alone, in a session that does nothing else. Servers that tell each other what
they know (replicas.py) hold it together: none of them starts while an older one has it, nor does an older one beside them. PostgreSQL ends
it with the session: a server that was killed leaves nothing behind, and of a host that is gone without a word PostgreSQL finds out within a
quarter of a minute.

A session can be lost while its server lives: PostgreSQL was started anew, fails over to another host, or the network was away. Then the
lock is taken again, before the next transaction. An older server writes its own mark into the database; by that it is seen whether one had
it meanwhile. A server has to start anew then, since it does not know what was said to that one. (Transactions are right in any case: they
are serializable. One that was begun before the lock was lost may end behind the other's start.)

The name of that session says which revision of the schema its program knows (migrations/). A server that brings the database to one which
such a program cannot use asks for them first, holding the lock of those who bring it up: each server has its session before it looks at the
schema, so none begins unseen. Whose session was lost sees, when he has it again, whether the database became such a one meanwhile.
"""

from __future__ import annotations

import secrets
import select
import socket
import threading
import time
from typing import Any, Final, NamedTuple, Protocol

import psycopg
from sqlalchemy import Connection

from config_server.store import migrations, settings
from shared.daemon import logging
from shared.errors import DatabaseError, DataFolderInUseError

_log = logging.get()

_KEY: Final = 0x756E6466
"""Of the lock, in its database."""
_WAIT_S: Final = 3
"""For a server that was ended just now: PostgreSQL learns of it a moment later."""
_LONGEST: Final = 63
"""Of a session's name."""
_SETTINGS: Final = {
    # It says nothing for as long as all is well.
    "idle_session_timeout": "0",
    "lock_timeout": f"{_WAIT_S}s",
    # PostgreSQL's end of what the other end has for all sessions: a host that is gone has the lock no longer than this.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
}
_TOGETHER: Final = "shared"
"""The mark of all that hold it together."""
_RUNS_ON: Final = """
SELECT application_name, host(client_addr), to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND granted AND mode = 'ShareLock' AND datname = current_database()
AND split_part(application_name, '-', 2) < %s AND pid <> pg_backend_pid()
"""
_ACTION: Final = "Stop the older one first, and bring it to this version: then both can use the database."
_HOLDER: Final = """
SELECT application_name, host(client_addr), to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = 0 AND objid = %s AND granted AND mode = 'ExclusiveLock' AND datname = current_database()
"""


class _Connect(Protocol):
    def __call__(self, name: str, more: dict[str, str]) -> psycopg.Connection[Any]:
        """A new session of this name, with these settings. Raises psycopg.Error, DatabaseError."""


class _Holder(NamedTuple):
    name: str
    """Of its session, in letters that PostgreSQL has for it; empty when it was gone before it could be asked for."""
    address: str | None
    since: str

    def in_words(self) -> str:
        """To be put behind what it does."""
        host = self.name.partition(" ")[2]
        at = f" ({self.address})" if self.address else ""
        return f": on {host}{at}, since {self.since}" if self.name else ""


class OlderServers:
    """As one server sees them, for all of its threads."""

    def __init__(self, connect: _Connect, place: str) -> None:
        """`place`: which database that is, for people."""
        self._connect = connect
        self._place = place
        host = socket.gethostname().encode("ascii", "replace").decode()  # as PostgreSQL would have it
        self._name = f"understudy-{migrations.NEWEST}-{secrets.token_hex(8)} {host}"[:_LONGEST]
        self._session: psycopg.Connection[Any] | None = None
        self._turn = threading.Lock()
        self._failed: tuple[float, str] = (0.0, "")
        self._over: DataFolderInUseError | None = None

    @property
    def is_held(self) -> bool:
        """As far as it is known."""
        return self._session is not None

    def begin(self) -> None:
        """Takes the lock. Raises DataFolderInUseError, which names the other one's host; psycopg.Error, DatabaseError."""
        holder = self._take()
        if holder is not None:
            raise DataFolderInUseError(
                f"The config server was not started on the database {self._place}",
                cause=f"one of an older version uses it, which shares it with nobody{holder.in_words()}",
                action=_ACTION,
            )

    def sign(self, db: Connection) -> None:
        """No older one uses it. In the transaction that opens it, behind `begin`."""
        if settings.get(db, settings.USED_BY) != _TOGETHER:
            settings.put(db, settings.USED_BY, _TOGETHER)

    def check_none_below(self, revision: str) -> None:
        """No server has the database open whose program does not know that one. While the schema is brought up. Raises
        DataFolderInUseError, which names its host; psycopg.Error."""
        assert self._session is not None
        found = self._session.execute(_RUNS_ON, [_KEY, revision]).fetchone()
        if found is not None:
            raise DataFolderInUseError(
                f"The config server was not started on the database {self._place}",
                cause=f"one of an older version runs, which could not use any more what this one makes of it{_Holder(*found).in_words()}",
                action=_ACTION,
            )

    def check(self) -> None:
        """Before each transaction: the lock is held, or taken again. Raises DataFolderInUseError, from then on always, if an older one has
        had the database; psycopg.Error, DatabaseError while that cannot be known."""
        asked_s = time.monotonic()
        with self._turn:
            if self._over is not None:
                raise self._over
            if self._session is not None and _lives(self._session):
                return
            failed_s, cause = self._failed
            if failed_s > asked_s:  # somebody has tried it while this one waited for his turn
                raise self._unknown(cause)
            try:
                self._hold_again()
            except (psycopg.Error, DatabaseError) as exc:
                self._failed = time.monotonic(), str(exc)
                raise

    def close(self) -> None:
        with self._turn:
            self._let_go()

    def _hold_again(self) -> None:
        self._let_go()
        holder = self._take()
        if holder is not None and not holder.name:
            raise self._unknown("the connection was lost, and somebody had its lock who has gone this moment")
        if holder is None and self._setting(settings.USED_BY) == _TOGETHER:
            self._check_schema()
            _log.info("the database's lock is held again", database=self._place)
            return
        self._let_go()
        self._over = DataFolderInUseError(
            f"The config server gives up the database {self._place}",
            cause="the connection to it was lost, and since then it was put back, or one of an older version has used it"
            + ("" if holder is None else holder.in_words()),
            action=_ACTION,
        )
        raise self._over

    def _take(self) -> _Holder | None:
        """Who has the lock for himself; None: it is held, beside others."""
        session = self._connect(self._name, _SETTINGS)
        try:
            session.autocommit = True
            try:
                session.execute("SELECT pg_advisory_lock_shared(%s)", [_KEY])
            except psycopg.errors.LockNotAvailable:
                found = session.execute(_HOLDER, [_KEY]).fetchone()
                session.close()
                return _Holder(*(found or ("", None, "")))
        except BaseException:
            session.close()
            raise
        self._session = session
        return None

    def _unknown(self, cause: str) -> DatabaseError:
        return DatabaseError(
            f"The database {self._place} could not be used", cause=cause, action="It is tried again."
        )

    def _check_schema(self) -> None:
        usable_from = self._setting(migrations.USABLE_FROM)
        if usable_from is None or migrations.is_known(usable_from):
            return
        self._let_go()
        self._over = DataFolderInUseError(
            f"The config server gives up the database {self._place}",
            cause=f"the connection to it was lost, and since then a newer one made of it what this one cannot use: programs from"
            f" {usable_from} on can, and this one knows {migrations.NEWEST}",
            action="Bring this one to the newer version, too.",
        )
        raise self._over

    def _setting(self, name: str) -> str | None:
        assert self._session is not None
        found = self._session.execute("SELECT value FROM settings WHERE name = %s", [name]).fetchone()
        return None if found is None else str(found[0])

    def _let_go(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _lives(session: psycopg.Connection[Any]) -> bool:
    """A session that is asked nothing says nothing before it ends."""
    try:
        said = select.poll()
        said.register(session.fileno(), select.POLLIN)
        return not said.poll(0)
    except psycopg.Error:
        return False
