"""The two databases under the model: whose transactions go on when the model says so, which go back to a backup, and whose clock it sets.

On PostgreSQL each transaction is a thread, which is held before each of its statements and before its commit. Its clock is taken for the
program's by the search path: `clock_timestamp()` is found in `public` first, and reads a sequence, which no transaction holds.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import psycopg
from sqlalchemy import Connection, event

from config_server.rules.clock import SECOND_NS
from config_server.store import journal, schema, sqlite
from config_server.store.postgresql import Postgresql
from shared.errors import DatabaseError, OutcomeUnknownError, UnderstudyError
from tests.databases import copied
from tests.jobs_model.host import Ask, Host, Killed, Said
from tests.postgres import Postgres

Work = Callable[[Connection], Any]
START_NS: Final = 1_000_000 * SECOND_NS


class Store(Protocol):
    """A database of the model."""

    is_shared: bool
    """Two hosts may use it at once."""
    now_ns: int
    is_sick: bool

    @property
    def is_saved(self) -> bool: ...

    def begin(self, chance: random.Random, committed: Callable[[], None]) -> None:
        """Anew, with nothing in it. `committed`: is called behind each transaction."""

    def ask(self, host: Host, work: Work) -> tuple[Ask, asyncio.Future[Any]]: ...

    def later(self, seconds: float) -> None: ...

    def started(self) -> None:
        """A host was started on it."""

    def read(self, query: str) -> Sequence[Sequence[Any]]:
        """What is committed."""

    def save(self) -> None: ...

    def put_back(self, work: Work) -> None:
        """As it was saved, with `work` done to it."""

    def wait(self) -> bool:
        """For what waits for a lock, where nobody else can go on. Whether something did."""


class Sqlite:
    """One transaction after the other."""

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared

    def begin(self, chance: random.Random, committed: Callable[[], None]) -> None:
        self.chance, self.committed = chance, committed
        self.now_ns = START_NS
        self.is_sick = False
        self._db = self._of(sqlite.connect(":memory:"))
        self._saved: Connection | None = None

    def _of(self, db: Connection) -> Connection:
        sqlite.raw_of(db).create_function("clock_ns", 0, lambda: self.now_ns)
        db.commit()
        return db

    def ask(self, host: Host, work: Work) -> tuple[Ask, asyncio.Future[Any]]:
        ask = _InTurn(host, self, work)
        return ask, ask.said.future

    def transact(self, work: Work) -> Any:
        with self._db.begin():
            result = work(self._db)
        self.committed()
        return result

    def later(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)

    def started(self) -> None:
        if not self.is_shared:
            self.transact(journal.free_all)

    def read(self, query: str) -> Sequence[Sequence[Any]]:
        return sqlite.raw_of(self._db).execute(query).fetchall()

    def save(self) -> None:
        self._saved = copied(self._db)

    @property
    def is_saved(self) -> bool:
        return self._saved is not None

    def put_back(self, work: Work) -> None:
        assert self._saved is not None
        self._db = self._of(copied(self._saved))
        self.transact(work)

    def wait(self) -> bool:
        return False


class _InTurn:
    """Ask."""

    def __init__(self, host: Host, store: Sqlite, work: Work) -> None:
        self.said = Said(host)
        self._store = store
        self._work = work

    def advance(self) -> bool:
        if self.said.outcome is not None:
            self.said.tell()
            return True
        if self.said.future.done() and self._store.chance.random() < 0.5:
            return True  # whoever asked for it was cut off before it began
        sick = self._store.is_sick and self._store.chance.randrange(3)
        if sick == 1:
            self.said.raised(DatabaseError("it is full", cause="it is full"))
            return False
        try:
            self.said.returned(self._store.transact(self._work))
        except UnderstudyError as exc:
            self.said.raised(exc)
        if sick == 2:
            self.said.raised(OutcomeUnknownError("it is not known", cause="no answer"))
        return False

    def drop(self) -> None:
        pass


_CLOCK: Final = """
CREATE SEQUENCE public.model_clock;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT to_timestamp(last_value / 1000000000.0) FROM public.model_clock';
ALTER DATABASE {name} SET search_path = public, pg_catalog;
"""
_TABLES: Final = [table.name for table in schema.METADATA.sorted_tables]
_IDLE_S: Final = 15.0
"""PostgreSQL ends a transaction that says nothing for so long."""


class Served:
    """A database in PostgreSQL, for many lives, one after the other."""

    is_shared = True

    def __init__(self, server: Postgres) -> None:
        self.name = server.made()
        self._config = server.config(self.name)
        self._admin = psycopg.connect(self._config.url, autocommit=True)
        self._admin.execute("SET search_path = pg_catalog, public")
        self._admin.execute(_CLOCK.format(name=self.name))
        self._free: list[Postgresql] = []
        self.local = threading.local()
        self._saved: dict[str, bytes] | None = None
        self.running: list[_InSteps] = []

    def close(self) -> None:
        for engine in self._free:
            engine.close()
        self._admin.close()

    # ---- engines, one for each host

    def taken(self) -> Postgresql:
        if self._free:
            return self._free.pop()
        engine = Postgresql(self._config, is_alone=False).open()
        event.listen(engine.engine, "before_cursor_execute", self._at_statement)
        event.listen(engine.engine, "commit", self._at_commit)
        return engine

    def given_back(self, engine: Postgresql) -> None:
        engine.trouble = None
        self._free.append(engine)

    def _at_statement(self, db: Connection, *_: object) -> None:
        raw: Any = db.connection.dbapi_connection
        self.local.ask.hold(getattr(raw, "driver_connection", raw).info.backend_pid)

    def _at_commit(self, db: Connection) -> None:
        self._at_statement(db)

    # ---- Store

    def begin(self, chance: random.Random, committed: Callable[[], None]) -> None:
        self.chance, self.committed = chance, committed
        self.is_sick = False
        self._saved = None
        self.now_ns = START_NS
        self._set_clock()
        self._admin.execute(f"TRUNCATE {', '.join(_TABLES)}")

    def _set_clock(self) -> None:
        self._admin.execute("SELECT setval('public.model_clock', %s)", [self.now_ns])

    def ask(self, host: Host, work: Work) -> tuple[Ask, asyncio.Future[Any]]:
        ask = _InSteps(host, self, work)
        return ask, ask.said.future

    def later(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)
        self._set_clock()
        if seconds > _IDLE_S:
            self.end_sessions([ask.pid for ask in self.running if not ask.waits_for_a_lock])

    def end_sessions(self, pids: list[int]) -> None:
        if pids:
            self._admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS pid", [pids])
            self.look_again()

    def started(self) -> None:
        pass

    def read(self, query: str) -> Sequence[Sequence[Any]]:
        return self._admin.execute(query.encode()).fetchall()

    def save(self) -> None:
        """As pg_dump does: all of one moment."""
        self._saved = {}
        with self._admin.transaction():
            self._admin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for table in _TABLES:
                with self._admin.cursor().copy(f"COPY {table} TO STDOUT") as out:
                    self._saved[table] = b"".join(bytes(piece) for piece in out)

    @property
    def is_saved(self) -> bool:
        return self._saved is not None

    def put_back(self, work: Work) -> None:
        assert self._saved is not None
        sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        self.end_sessions([pid for (pid,) in self._admin.execute(sessions)])
        with self._admin.transaction():
            self._admin.execute(f"TRUNCATE {', '.join(_TABLES)}")
            for table, rows in self._saved.items():
                columns = self._admin.execute(f"SELECT * FROM {table} LIMIT 0").description
                names = ", ".join(f'"{column.name}"' for column in columns or ())
                with self._admin.cursor().copy(f"COPY {table} ({names}) FROM STDIN") as into:
                    into.write(rows)
        self.at_once(work)

    def at_once(self, work: Work) -> None:
        """Nobody is held."""
        engine = self.taken()
        self.local.ask = _Nobody()
        try:
            engine.transact(work, vital=False)
        finally:
            self.given_back(engine)
        self.committed()

    # ---- what runs

    def waiting(self, pid: int) -> bool:
        """For another one's lock."""
        found = self._admin.execute("SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted", [pid])
        return bool((found.fetchone() or (0,))[0])

    def look_again(self) -> None:
        """At those that waited for a lock: it may have come free."""
        for ask in list(self.running):
            if ask.waits_for_a_lock and ask in self.running:
                ask.arrive()

    def wait(self) -> bool:
        for ask in list(self.running):
            if ask.waits_for_a_lock:
                ask.arrive(patiently=True)
                return True
        return False


class _Nobody:
    def hold(self, pid: int) -> None:
        pass


class _InSteps:
    """Ask. A transaction in a thread."""

    def __init__(self, host: Host, store: Served, work: Work) -> None:
        self.said = Said(host)
        self.waits_for_a_lock = False
        self.pid = 0
        self._store = store
        self._work = work
        self._thread: threading.Thread | None = None
        self._go, self._arrived = threading.Semaphore(0), threading.Event()
        self._is_dropped = False
        self._result: Callable[[], None] | None = None

    # ---- in the thread

    def _run(self, engine: Postgresql) -> None:
        self._store.local.ask = self
        try:
            result = engine.transact(self._work, vital=False)
            self._result = lambda: self.said.returned(result)
        except BaseException as exc:  # noqa: BLE001 - whoever asked for it is told
            error = exc
            self._result = lambda: self.said.raised(error)
        self._arrived.set()

    def hold(self, pid: int) -> None:
        self.pid = pid
        if not self._is_dropped:
            self._arrived.set()
            self._go.acquire()
        if self._is_dropped:
            raise Killed

    # ---- the model

    def advance(self) -> bool:
        if self.said.outcome is not None:
            self.said.tell()
            return True
        if self.waits_for_a_lock:
            return False
        self._arrived.clear()
        if self._thread is None:
            if self.said.future.done() and self._store.chance.random() < 0.5:
                return True
            self._engine = self._store.taken()
            self._thread = threading.Thread(target=self._run, args=[self._engine], daemon=True)
            self._store.running.append(self)
            self._thread.start()
        else:
            self._go.release()
        self.arrive()
        self._store.look_again()
        return False

    def arrive(self, *, patiently: bool = False) -> None:
        """Wait until it is held again, or waits for another one, or has ended."""
        tries = 0
        while not self._arrived.wait(0.004):
            tries += 1
            if tries > 7000:
                raise AssertionError("a transaction is lost")
            if not patiently and self.pid and self._store.waiting(self.pid):
                self.waits_for_a_lock = True
                return
        self.waits_for_a_lock = False
        if self._result is not None:
            self._end()
            self._result()
            self._store.committed()

    def _end(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._store.running.remove(self)
        self._store.given_back(self._engine)

    def drop(self) -> None:
        self._is_dropped = True
        if self._thread is None or self.said.outcome is not None:
            return
        if self.waits_for_a_lock:
            self._store.end_sessions([self.pid])
        self._go.release()
        self._end()
        self._store.look_again()
