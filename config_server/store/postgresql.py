"""The database in PostgreSQL, which other config servers use, too.

**Every transaction is SERIALIZABLE**: what several did at the same time is what they would have done one after the other, in some order, or
PostgreSQL refuses one of them, which then runs again (`_MOST` times, and then is an error). So whatever reads and then writes, here and
in operations/, is right with any number of servers where it is right alone, as SQLite runs it: a token is looked at and used up; a
machine's wish is numbered above the last one; a policy is deleted that no machine has; a deletion goes on from the stage in which it was
seen; an event is opened that is not open. Nothing of that has to be argued for itself, and nothing new can forget to lock. Row locks, the
other way, would have to be taken in one order by each of these, and none is there to take for what does not exist yet: a machine
that nobody has heard of, an event that is not open, a policy that is given to a machine while it is deleted. (Each of them against what
would be in its way, interleaved at every statement: tests/contract/test_store_two_servers.py.) A time is never compared between servers
but as a value that one of them wrote.

It costs that a transaction may run more than once. So it changes nothing but the database (database.py): what it means for this process
is in its result.

**What became of it** is always known, or said to be unknown:

    before COMMIT was sent      it was not committed; where another one was in its way, or the connection was lost, it runs again
    COMMIT was refused          the same: PostgreSQL answered
    COMMIT without an answer    nobody knows: OutcomeUnknownError, and nothing is tried again

A transaction in which an error was passed over is not committed: PostgreSQL would answer such a COMMIT with a rollback, and no error.

Every statement has a time-out, and so has a connection that says nothing in a transaction: a server that is stopped in the middle of one
stands in nobody's way for longer. Who waits for an answer gives up, too (impatient.py). While the database cannot be reached, work is
refused at once, and once a second somebody tries it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, text
from sqlalchemy.exc import DBAPIError

from config_server.store import migrations
from config_server.store.config import DatabaseConfig
from config_server.store.impatient import Impatient, StillError
from config_server.store.older_servers import OlderServers
from shared.daemon import logging
from shared.errors import ConfigError, DatabaseError, OutcomeUnknownError, cause_of

_log = logging.get()
_T = TypeVar("_T")

OLDEST: Final = 15
"""The version of PostgreSQL that is needed."""
_ISOLATION: Final = "SERIALIZABLE"
_CONNECT_S: Final = 4
_STATEMENT_S: Final = 6
_URGENT_S: Final = 2
"""How long what is urgent waits for a lock: what else is urgent waits for it."""
_IDLE_S: Final = 15
"""How long a transaction may say nothing: its server is stopped, or gone without a word."""
_OPTIONS: Final = {
    # A table that is read as a whole is in the way of whoever writes into it: so indexes, also of small ones.
    "random_page_cost": "1",
    "cpu_tuple_cost": "1",
    "statement_timeout": f"{_STATEMENT_S}s",
    "lock_timeout": f"{_STATEMENT_S}s",
    "idle_in_transaction_session_timeout": f"{_IDLE_S}s",
}
_NETWORK: Final = {
    # A host that is gone says nothing; without these one would wait for minutes.
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_MOST: Final = 20
"""So many times a transaction is run, at most."""
_PAUSE_S: Final = 0.005
"""Before the second time, and longer each time: with chance, or two would meet again."""
_LONGEST_S: Final = 0.25
_AGAIN_S: Final = 1.0
"""While it cannot be reached: how long nobody tries it."""
_MIGRATING: Final = 0x756E6465
"""The lock of whoever brings the schema up: two servers may start at once."""
_TABLE_S: Final = 1
"""How long a migration waits for a table, or for another server's migration, before it lets go of all and tries again, ..."""
_MIGRATING_S: Final = 60
"""... how long each of its statements may take (who wants the table meanwhile is refused), ..."""
_MOST_OFTEN: Final = 2 * _MIGRATING_S
"""... and how many times it tries, at most: another server's may take as long."""
_NO_LOCK: Final = "55P03"
_IN_THE_WAY: Final = ("40001", "40P01")
"""Serialization failure, and deadlock. (That a row is there already is no such thing: who looked for it first is told the former.)"""
_NO_ROOM: Final = "53200"
"""Out of shared memory: with transactions that are serializable, of predicate locks."""
_FEW_LOCKS: Final = 256
"""`max_pred_locks_per_transaction` from which on nobody is warned."""
_LOCKS_ACTION: Final = (
    "Some session of this PostgreSQL, maybe in another database, has left a SERIALIZABLE transaction open: end it (the oldest of"
    " pg_stat_activity with state 'idle in transaction'). A larger max_pred_locks_per_transaction gives more time for that."
)
_ACTION: Final = "See that PostgreSQL runs, is reachable and has room; its log says more. It is tried again."


class _Text(StrDumperUnknown):
    """PostgreSQL has no letter for NUL, and daemons may say anything."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd"))


class _InTheWay(Exception):
    """Nothing was committed, and another try may do it."""

    def __init__(self, error: DatabaseError, *, is_lost: bool = False) -> None:
        super().__init__()
        self.error = error
        self.is_lost = is_lost
        """The connection."""


class Postgresql:
    """Several connections, one for each thread (database.py)."""

    workers: Final = 4

    def __init__(self, config: DatabaseConfig) -> None:
        """Nothing is opened yet."""
        self.trouble: DatabaseError | None = None
        self.is_shared = True
        self._config = config
        self._away_until_s = 0.0
        self._is_still = False
        """It did not answer when it was asked last: connections tell nothing."""
        self._trial: Final = threading.Lock()
        """Of whoever finds out whether it is there again: others do not wait with him."""
        self._older: Final = OlderServers(self._session, config.place)
        self._pool: Final = QueuePool(cast("Any", self._connect), pool_size=self.workers + 1, max_overflow=0)
        self.engine: Final[Engine] = create_engine(
            "postgresql+psycopg://",
            pool=self._pool,
            isolation_level=_ISOLATION,
            use_native_hstore=False,
        )

    def open(self) -> Self:
        """Raises ConfigError, DatabaseError, DataFolderInUseError."""
        try:
            with self.engine.connect().execution_options(isolation_level="READ COMMITTED") as db:
                self._check(db)
                self._older.begin()
                self._bring_up(db)
        except (DBAPIError, psycopg.Error) as exc:
            self.close()
            raise self._translated(exc) from exc
        except BaseException:
            self.close()
            raise
        return self

    def _bring_up(self, db: Connection) -> None:
        """Others may serve meanwhile. Who waits for a table has all wait behind him who want it later: so not for long, and again."""
        for attempt in itertools.count(1):
            try:
                with db.begin(), _patient(db):
                    db.execute(text(f"SET LOCAL lock_timeout = '{_TABLE_S}s'"))
                    db.execute(text(f"SET LOCAL statement_timeout = '{_MIGRATING_S}s'"))
                    # Not serializable: who waited for the lock has to see what the other one did meanwhile.
                    db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
                    migrations.upgrade(db, self._config.place, check_older=self._older.check_none_below)
                    self._older.sign(db)
                return
            except DBAPIError as exc:
                if attempt == _MOST_OFTEN or _sqlstate(exc) not in (_NO_LOCK, *_IN_THE_WAY):
                    raise
                _log.info("the schema is not brought up yet", database=self._config.place, cause=_cause(exc))
            time.sleep(_TABLE_S * random.random())

    def close(self) -> None:
        self.engine.dispose()
        self._older.close()

    def transact(self, work: Callable[[Connection], _T], *, vital: bool, urgent: bool = False) -> _T:
        """See database.py. There is no room to keep for what is vital: that is PostgreSQL's."""
        is_lost = False
        for attempt in itertools.count(1):
            try:
                return self._once(work, urgent=urgent)
            except _InTheWay as exc:
                # A connection may have been lost long ago; one that was made for this is not tried twice.
                if attempt == _MOST or (exc.is_lost and is_lost):
                    raise self._noted(exc.error) from exc
                is_lost = exc.is_lost
            pause_s = min(_PAUSE_S * 2**attempt, _LONGEST_S)
            time.sleep(pause_s * random.random())
        raise AssertionError("it counts for ever")

    def aside(self, work: Callable[[Connection], _T]) -> _T:
        """See database.py. Read-only and deferrable, it sees what no other transaction makes untrue, and none fails for it."""
        try:
            with contextlib.closing(self._connect()) as raw:
                raw.read_only, raw.deferrable = True, True
                with self._aside(raw).connect() as db:
                    return work(db)
        except (DBAPIError, psycopg.Error) as exc:
            raise self._translated(exc) from exc

    def _aside(self, raw: psycopg.Connection[Any]) -> Engine:
        return create_engine(
            "postgresql+psycopg://",
            creator=lambda: raw,
            poolclass=NullPool,
            isolation_level=_ISOLATION,
            use_native_hstore=False,
        )

    def _once(self, work: Callable[[Connection], _T], *, urgent: bool) -> _T:
        with self._connected() as db:
            transaction = db.begin()
            raw = _raw_of(db)
            try:
                if urgent:
                    db.execute(_SOON)
                result = work(db)
                has_written = self.trouble is not None and bool(db.scalar(_HAS_WRITTEN))
            except (DBAPIError, psycopg.Error) as exc:
                self._roll_back(db)
                raise self._failed(exc, raw) from exc
            except BaseException:
                self._roll_back(db)
                raise
            if raw.info.transaction_status is TransactionStatus.INERROR:
                self._roll_back(db)
                raise self._noted(self._error("an error in a transaction was passed over"))
            try:
                transaction.commit()
            except (DBAPIError, psycopg.Error) as exc:
                if raw.closed:
                    self._stands_still(exc)
                    error = OutcomeUnknownError(
                        "It is not known whether a change was made",
                        cause=f"the connection to {self._config.place} was lost when it was to be committed: {_cause(exc)}",
                    )
                    raise self._noted(error) from exc
                self._roll_back(db)
                raise self._failed(exc, raw) from exc
        if has_written:
            _log.info("the database works again", database=self._config.place)
            self.trouble = None
        return result

    def _connected(self) -> Connection:
        trouble = self.trouble
        is_there = not self._is_still and self._pool.checkedin() and self._older.is_held
        if trouble is None or is_there:
            return self._connect_now()
        if time.monotonic() < self._away_until_s or not self._trial.acquire(blocking=False):
            raise self._error(trouble.cause)
        try:
            if self._is_still:
                self._pool.dispose()  # a new one shows whether it answers
            found = self._connect_now()
            self._is_still = False
            return found
        finally:
            self._trial.release()

    def _connect_now(self) -> Connection:
        try:
            self._older.check()
            return self.engine.connect()
        except (DBAPIError, psycopg.Error, DatabaseError) as exc:
            self._away_until_s = time.monotonic() + _AGAIN_S
            error = exc if isinstance(exc, DatabaseError) else self._translated(exc)
            raise self._noted(error) from exc

    def _connect(self) -> psycopg.Connection[Any]:
        raw = self._session("understudy", {})
        raw.adapters.register_dumper(str, _Text)
        return raw

    def _session(self, name: str, more: dict[str, str]) -> psycopg.Connection[Any]:
        options = " ".join(f"-c {name}={value}" for name, value in (_OPTIONS | more).items())
        return Impatient.connect(
            self._config.url,
            password=self._password(),
            connect_timeout=_CONNECT_S,
            options=options,
            application_name=name,
            client_encoding="utf-8",
            **_NETWORK,  # type: ignore[arg-type]  # (its stubs know no such parameter but as a word)
        )

    def _password(self) -> str | None:
        file = self._config.password_file
        if file is None:
            return None
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            cause = cause_of(exc) if isinstance(exc, OSError) else str(exc)
            raise self._error(f"its password could not be read from {file}: {cause}") from exc

    def _check(self, db: Connection) -> None:
        """Raises ConfigError for one on which nothing should be kept."""
        what = f"The database {self._config.place} cannot be used"
        version = _raw_of(db).info.server_version // 10_000
        if version < OLDEST:
            raise ConfigError(
                what, cause=f"it is PostgreSQL {version}", action=f"Use PostgreSQL {OLDEST} or newer."
            )
        names = ("server_encoding", "synchronous_commit", "max_pred_locks_per_transaction")
        found = {name: str(db.scalar(text(f"SHOW {name}"))) for name in names}
        db.rollback()
        if found["server_encoding"] != "UTF8":
            raise ConfigError(
                what,
                cause=f"its encoding is {found['server_encoding']}",
                action="Create it with ENCODING 'UTF8'.",
            )
        if found["synchronous_commit"] == "off":
            raise ConfigError(
                what,
                cause="synchronous_commit is off: a revocation that was confirmed could be lost",
                action="Set it for this user: ALTER ROLE … SET synchronous_commit = on.",
            )

        if int(found["max_pred_locks_per_transaction"]) < _FEW_LOCKS:
            _log.warning(
                "PostgreSQL has room for few predicate locks (docs/operations/database.md)",
                max_pred_locks_per_transaction=found["max_pred_locks_per_transaction"],
                advised=_FEW_LOCKS,
            )

    @staticmethod
    def _roll_back(db: Connection) -> None:
        """What became of it is known; how well a lost connection is given up, nobody needs to."""
        try:
            transaction = db.get_transaction()
            if transaction is not None:
                transaction.rollback()
        except (DBAPIError, psycopg.Error):
            db.invalidate()

    def _failed(self, exc: DBAPIError | psycopg.Error, raw: psycopg.Connection[Any]) -> Exception:
        """Of what was not committed."""
        error = self._translated(exc)
        if self._stands_still(exc):
            return self._noted(error)  # another try would wait as long
        if raw.closed:
            return _InTheWay(error, is_lost=True)
        if _sqlstate(exc) in _IN_THE_WAY:
            return _InTheWay(error)
        return self._noted(error)

    def _stands_still(self, exc: DBAPIError | psycopg.Error) -> bool:
        if not isinstance(exc.orig if isinstance(exc, DBAPIError) else exc, StillError):
            return False
        self._is_still, self._away_until_s = True, time.monotonic() + _AGAIN_S
        return True

    def _noted(self, error: DatabaseError) -> DatabaseError:
        if self.trouble is None or self.trouble.cause != error.cause:
            _log.error("the database fails", **error.as_dict())
        self.trouble = error
        return error

    def _translated(self, exc: DBAPIError | psycopg.Error) -> DatabaseError:
        return self._error(_cause(exc), _LOCKS_ACTION if _sqlstate(exc) == _NO_ROOM else _ACTION)

    def _error(self, cause: str, action: str = _ACTION) -> DatabaseError:
        return DatabaseError(
            f"The database {self._config.place} could not be used", cause=cause, action=action
        )


_SOON: Final = text(f"SET LOCAL lock_timeout = '{_URGENT_S}s'")
_HAS_WRITTEN: Final = text(
    "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
)  # no other database knows it


@contextlib.contextmanager
def _patient(db: Connection) -> Iterator[None]:
    """Its statements may take longer."""
    raw = _raw_of(db)
    assert isinstance(raw, Impatient)
    raw.more_s = _MIGRATING_S
    try:
        yield
    finally:
        raw.more_s = Impatient.more_s


def _raw_of(db: Connection) -> psycopg.Connection[Any]:
    raw = db.connection.dbapi_connection
    found = getattr(raw, "driver_connection", raw)
    assert isinstance(found, psycopg.Connection)
    return found


def _cause(exc: DBAPIError | psycopg.Error) -> str:
    """In one line."""
    said = exc.orig if isinstance(exc, DBAPIError) else exc
    return " ".join(str(said).split())


def _sqlstate(exc: DBAPIError | psycopg.Error) -> str | None:
    said = exc.orig if isinstance(exc, DBAPIError) else exc
    return said.sqlstate if isinstance(said, psycopg.Error) else None
