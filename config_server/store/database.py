"""The database as the rest of the config server knows it: work in transactions.

Work is given as plain functions of a connection (`tokens.redeem`, `jobs.get`, …), which nobody else's work comes between: each runs in one
transaction, which is committed when it returns and rolled back when it raises. It may be run more than once before that (with the room of a
reserve; or since another server was in its way), so it changes nothing but the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self, TypeVar

from sqlalchemy import (
    Connection as Connection,  # of a transaction, for those who know nothing else of SQLAlchemy
)

from config_server.store.config import DatabaseConfig
from config_server.store.sqlite import Sqlite
from shared.daemon.threads import Threads, in_thread
from shared.errors import ConfigError, DatabaseError

_T = TypeVar("_T")


class Engine(Protocol):
    """Of one kind of database. All methods block."""

    trouble: DatabaseError | None
    """Why it cannot be used just now: from the first transaction that fails until one has written again."""

    is_shared: bool
    """Whether other config servers may use it, too."""

    @property
    def workers(self) -> int:
        """How many transactions there may be at a time; where it is shared, one that is urgent besides."""

    def open(self) -> object:
        """Once, before all others. Raises ConfigError, DatabaseError, DataFolderInUseError."""

    def close(self) -> None: ...

    def transact(self, work: Callable[[Connection], _T], *, vital: bool, urgent: bool = False) -> _T:
        """See Database.run."""

    def aside(self, work: Callable[[Connection], _T]) -> _T:
        """See Database.aside. For a thread of its own."""


class Database:
    """An open database; all work is done in its own threads."""

    def __init__(self, engine: Engine, threads: Threads) -> None:
        self._engine = engine
        self._threads = threads
        self._urgent = _threads(1) if engine.is_shared else threads
        """Of a file everything is done in one thread."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """SQLite's. Raises ConfigError, DatabaseError."""
        return await cls.over(Sqlite(path))

    @classmethod
    async def configured(cls, config: DatabaseConfig, path: Path) -> Self:
        """That of the configuration; `path` is that of the file. Raises ConfigError, DatabaseError; DataFolderInUseError where another
        server uses it."""
        if config.is_file:
            return await cls.open(path)
        try:
            from config_server.store.postgresql import Postgresql
        except ImportError as exc:
            raise ConfigError(
                "PostgreSQL cannot be used",
                cause=f"its driver is not installed ({exc})",
                action="Install Understudy with the extra `postgresql`: pip install 'understudy[config-server,postgresql]'.",
            ) from exc
        return await cls.over(Postgresql(config))

    @classmethod
    async def over(cls, engine: Engine) -> Self:
        """Raises ConfigError, DatabaseError."""
        threads = _threads(engine.workers)
        try:
            await asyncio.get_running_loop().run_in_executor(threads, engine.open)
        except BaseException:
            threads.shutdown(wait=False)
            raise
        return cls(engine, threads)

    @property
    def is_shared(self) -> bool:
        """Whether other config servers may use it, too."""
        return self._engine.is_shared

    @property
    def trouble(self) -> DatabaseError | None:
        """Why it cannot be used just now: from the first transaction that fails until one has written again."""
        return self._engine.trouble

    async def run(self, work: Callable[[Connection], _T], *, urgent: bool = False, vital: bool = False) -> _T:
        """The result of `work` in a transaction. Raises what it raises, and DatabaseError for the database's own errors;
        DataFolderInUseError, from then on always, if another server has used the database since: this one has to end. What is `urgent`
        does not wait behind others' work where the database is shared: somebody may have locked a table, and all may wait for that; should
        it be one that it needs itself, it waits for two seconds at most, since there is one thread for all that is urgent.
        `vital` work is urgent, and done a second time, with the reserve's room, when it could not be written.

        The transaction runs to its end even when the caller is cancelled.
        """
        transact, urgent = self._engine.transact, urgent or vital
        threads = self._urgent if urgent else self._threads
        return await asyncio.get_running_loop().run_in_executor(
            threads, lambda: transact(work, vital=vital, urgent=urgent)
        )

    async def aside(self, work: Callable[[Connection], _T]) -> _T:
        """The result of `work`, which reads one state of the whole database, however long that takes: no transaction waits for it. Raises
        what it raises, and DatabaseError. A caller that is cancelled goes on when it is done."""
        return await in_thread(self._engine.aside, work)

    async def close(self) -> None:
        # What runs still ends first: it would leave its connection open, or make another one.
        self._threads.shutdown()
        self._urgent.shutdown()
        self._engine.close()


def _threads(most: int) -> Threads:
    return Threads(max_workers=most, thread_name_prefix="database")
