"""A database under the model: its transactions go on when the model says so, it goes back to a backup, and its clock is the model's. Here
SQLite; PostgreSQL is in served.py."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS
from config_server.store import journal, sqlite
from shared.errors import DatabaseError, OutcomeUnknownError, UnderstudyError
from tests.databases import copied
from tests.jobs_model.host import Ask, Host, Said

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
        self._empty: Connection | None = None

    def begin(self, chance: random.Random, committed: Callable[[], None]) -> None:
        self.chance, self.committed = chance, committed
        self.now_ns = START_NS
        self.is_sick = False
        if self._empty is None:
            self._empty = sqlite.connect(":memory:")
        self._db = self._of(copied(self._empty))
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
