"""The databases of the store's contract: each of its tests runs over both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from config_server.store import sqlite
from config_server.store.database import Engine
from config_server.store.postgresql import Postgresql
from config_server.store.sqlite import Sqlite
from tests.postgres import Postgres


@pytest.fixture(scope="session")
def served(postgres: Postgres) -> Iterator[Postgresql]:
    """A database for those who leave nothing in it."""
    engine = Postgresql(postgres.config(postgres.made())).open()
    yield engine
    engine.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """In a transaction that is never committed; with the schema, and nothing in it."""
    is_file = request.param == "sqlite"
    connection = sqlite.connect(":memory:") if is_file else request.getfixturevalue("served").engine.connect()
    yield connection
    connection.rollback()
    connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Open, with a database of its own."""
    if request.param == "sqlite":
        opened: Engine = Sqlite(request.getfixturevalue("tmp_path") / "state.db").open()
    else:
        opened = Postgresql(request.getfixturevalue("database_config")).open()
    yield opened
    opened.close()
