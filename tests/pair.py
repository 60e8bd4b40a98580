"""Two config servers on one PostgreSQL, in this process."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import psycopg

from config_server.config import ConfigServerConfig
from config_server.store.config import DatabaseConfig
from shared.control.rest import RestClient
from tests.config_parts import ConfigServer, config_for, running
from tests.replicas import PARTS


class Pair(NamedTuple):
    a: ConfigServer
    b: ConfigServer
    at_a: RestClient
    at_b: RestClient


def join(config: ConfigServerConfig, other: ConfigServerConfig) -> None:
    """The other one's files come to this one's host, as a person brings them."""
    config.data_dir.mkdir(parents=True)
    for name in PARTS:
        shutil.copy2(other.data_dir / name, config.data_dir / name)


def end_lease(database: DatabaseConfig, job: str) -> str:
    """Of the server that has the job, and stands still in it: whose name this is. PostgreSQL ends a transaction that says nothing for so
    long, and then the lease is over."""
    with psycopg.connect(database.url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state = 'idle in transaction'"
        )
        [[owner]] = db.execute("UPDATE jobs SET lease_ns = 0 WHERE id = %s RETURNING owner", [job]).fetchall()
    return str(owner)


@contextlib.asynccontextmanager
async def running_pair(folder: Path, database: DatabaseConfig) -> AsyncIterator[Pair]:
    first = config_for(folder / "a", database=database, name="cs-a")
    second = config_for(folder / "b", database=database, name="cs-b")
    async with running(first) as a:
        join(second, first)
        async with running(second) as b, a.operator() as at_a, b.operator() as at_b:
            yield Pair(a, b, at_a, at_b)
