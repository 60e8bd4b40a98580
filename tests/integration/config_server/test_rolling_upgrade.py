"""One server brings the database up while others serve, and an older program starts behind a newer one. Real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from config_server.store import inventory, migrations, postgresql
from config_server.store.config import DatabaseConfig
from config_server.store.postgresql import Postgresql
from shared import api
from shared.api.protection import Protection
from shared.api.route import Nothing
from tests import next_program
from tests.databases import REVISIONS, begin_with
from tests.postgres import Postgres
from tests.replicas import Replica

[BEFORE] = [one.revision for one in REVISIONS.iterate_revisions(migrations.NEWEST, "base")][1:2]


@pytest.fixture
def of_before(database_config: DatabaseConfig) -> DatabaseConfig:
    """A database that lacks the newest revision."""
    opened = Postgresql(database_config).open()
    opened.transact(lambda db: begin_with(db, BEFORE), vital=False)
    opened.close()
    return database_config


@contextlib.contextmanager
def reading(config: DatabaseConfig) -> Iterator[psycopg.Connection[Any]]:
    """Somebody who has read a table that a revision changes, and has not ended his transaction."""
    with psycopg.connect(config.url) as session:
        session.execute("SELECT count(*) FROM jobs")
        yield session


def test_who_serves_does_not_wait_behind_a_migration_that_waits(
    of_before: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = threading.Event()

    def told(event: str, **_: object) -> None:
        if event == "the schema is not brought up yet":
            again.set()

    monkeypatch.setattr(postgresql._log, "info", told)
    newer = Postgresql(of_before)
    opening = threading.Thread(target=newer.open)
    with reading(of_before) as reader, psycopg.connect(of_before.url, autocommit=True) as serving:
        opening.start()
        assert again.wait(30), "it lets go of what it has, and tries again"
        # It wants the table that the migration wants: as long as that waits, and no longer.
        serving.execute(f"SET lock_timeout = '{postgresql._TABLE_S * 3}s'")
        for _ in range(3):
            serving.execute("SELECT count(*) FROM jobs")
        reader.rollback()
    opening.join(30)
    assert not opening.is_alive()
    newer.transact(lambda db: inventory.ensure_machine(db, "web1", 1), vital=False)
    newer.close()


def test_two_that_bring_it_up_at_once_do_it_once(of_before: DatabaseConfig) -> None:
    both = [Postgresql(of_before) for _ in range(2)]
    threads = [threading.Thread(target=one.open) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in both:
        one.transact(lambda db: inventory.ensure_machine(db, "web1", 1), vital=False)
        one.close()


async def test_the_older_server_goes_on_and_starts_again_behind_the_newer(
    postgres: Postgres, database_config: DatabaseConfig, tmp_path: Path
) -> None:
    older, newer = (Replica(tmp_path / name, database_config.url, name) for name in ("older", "newer"))
    newer.program = await asyncio.to_thread(next_program.make, tmp_path / "next")
    async with contextlib.AsyncExitStack() as stack:
        for one in (older, newer):
            stack.push_async_callback(one.end)
        await older.start()
        newer.join(older)
        await protect(older, "web1")
        await newer.start()
        await protect(older, "web2")
        await older.end()
        await older.start()
        await protect(older, "web3")
        for one in (older, newer):
            async with one.server.operator() as client:
                machines = (await client.call(api.MACHINES, Nothing())).machines
                assert [machine.name for machine in machines] == ["web1", "web2", "web3"]
        async with newer.server.operator() as client:
            assert (await client.call(api.HEALTH, Nothing())).version == next_program.VERSION
    with psycopg.connect(database_config.url) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [(next_program.REVISION,)]
        assert set(db.execute("SELECT newer FROM jobs").fetchall()) == {("none",)}, "also of the older one's"


async def protect(server: Replica, name: str) -> None:
    async with server.server.operator() as client:
        await client.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine=name)
