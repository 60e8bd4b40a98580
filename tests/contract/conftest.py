"""The databases of the store's contract: each of its tests runs over both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from config_server.store import sqlite
from config_server.store.database import Engine
from config_server.store.sqlite import Sqlite


@pytest.fixture(params=["sqlite"])
def db() -> Iterator[Connection]:
    """In a transaction that is never committed; with the schema, and nothing in it."""
    connection = sqlite.connect(":memory:")
    yield connection
    connection.rollback()
    connection.close()


@pytest.fixture(params=["sqlite"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Open, with a database of its own."""
    opened = Sqlite(request.getfixturevalue("tmp_path") / "state.db").open()
    yield opened
    opened.close()
