"""A config server of an older program, which shares its database with nobody, and those that do share theirs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from config_server import background, service
from config_server.store import audit, migrations, older_servers, replicas, restored, tokens
from config_server.store.config import DatabaseConfig
from config_server.store.postgresql import Postgresql
from shared import api
from shared.api.route import Page
from shared.control import enrol
from shared.errors import DataFolderInUseError
from tests.config_parts import config_for, running, until
from tests.postgres import Postgres

NOW = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long for a lock that another one has."""
    monkeypatch.setitem(older_servers._SETTINGS, "lock_timeout", "50ms")


@pytest.fixture
def first(database_config: DatabaseConfig) -> Iterator[Postgresql]:
    opened = Postgresql(database_config).open()
    yield opened
    opened.close()


class Older:
    """What a server of before does: a lock for itself, and its mark."""

    def __init__(self, config: DatabaseConfig) -> None:
        self.session: psycopg.Connection[Any] = psycopg.connect(
            config.url, autocommit=True, application_name="understudy-0123456789abcdef old-host"
        )

    def take(self) -> bool:
        row = self.session.execute("SELECT pg_try_advisory_lock(%s)", [older_servers._KEY]).fetchone()
        is_held = row is not None and bool(row[0])
        if is_held:
            self.session.execute(
                "INSERT INTO settings VALUES ('used-by', 'mine') ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            )
        return is_held


@pytest.fixture
def older(database_config: DatabaseConfig) -> Iterator[Older]:
    made = Older(database_config)
    with contextlib.closing(made.session):
        yield made


def note(db: Connection) -> None:
    audit.add(db, "operator:admin", "x", "", {}, NOW)


def noted(engine: Postgresql) -> int:
    return len(engine.transact(lambda db: audit.newest(db, 100), vital=False))


def cut_locks(postgres: Postgres) -> None:
    """The sessions of ours that hold such a lock are gone, and nothing else is."""
    with postgres.admin() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'understudy-%' AND application_name NOT LIKE '%old-host'"
        )


# ---- starting


def test_servers_of_this_version_start_beside_each_other_and_an_older_one_does_not(
    first: Postgresql, older: Older, database_config: DatabaseConfig
) -> None:
    second = Postgresql(database_config).open()
    second.transact(note, vital=False)
    assert noted(first) == 1
    first.close()
    assert not older.take(), "the second one has it still"
    second.close()
    ends_s = time.monotonic() + 30
    while not older.take():  # PostgreSQL notices a moment later
        assert time.monotonic() < ends_s


async def test_beside_an_older_server_none_starts_and_it_is_told_where_that_one_is(
    tmp_path: Path, older: Older, database_config: DatabaseConfig
) -> None:
    assert older.take()
    with pytest.raises(
        DataFolderInUseError,
        match="older version uses it, which shares it with nobody: on old-host, since 20",
    ):
        async with running(config_for(tmp_path, database=database_config)):
            pass
    older.session.close()
    async with running(config_for(tmp_path, database=database_config)):
        pass


def test_one_that_was_refused_leaves_no_connection(
    older: Older, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    """PostgreSQL notices a moment later."""
    assert older.take()
    ends_s = time.monotonic() + 30
    with pytest.raises(DataFolderInUseError):
        Postgresql(database_config).open()
    [name] = older.session.execute("SELECT current_database()").fetchone() or [""]
    with postgres.admin() as admin:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        while admin.execute(count, [name]).fetchone() != (1,):
            assert time.monotonic() < ends_s


def test_a_lock_that_is_let_go_in_that_moment_is_waited_for(
    older: Older, database_config: DatabaseConfig, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server that ends, while this one takes its place."""
    monkeypatch.setitem(older_servers._SETTINGS, "lock_timeout", "10s")
    assert older.take()
    second = Postgresql(database_config)
    opening = threading.Thread(target=second.open)
    opening.start()
    with postgres.admin() as admin:
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while admin.execute(waiting).fetchone() is None:
            assert opening.is_alive()
    older.session.close()
    opening.join()
    second.transact(note, vital=False)
    second.close()


# ---- the lock is lost


def test_a_lock_that_was_lost_is_taken_again_before_the_next_transaction(
    first: Postgresql, older: Older, postgres: Postgres
) -> None:
    cut_locks(postgres)
    first.transact(note, vital=False)
    assert not older.take()
    assert (noted(first), first.trouble) == (1, None)


def test_a_server_does_nothing_more_in_a_database_that_an_older_one_uses_or_has_used_since(
    first: Postgresql, older: Older, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    cut_locks(postgres)
    assert older.take()
    with pytest.raises(DataFolderInUseError, match="on old-host"):
        first.transact(note, vital=False)
    older.session.close()
    with pytest.raises(DataFolderInUseError):
        first.transact(note, vital=False)
    third = Postgresql(database_config).open()
    assert noted(third) == 0
    third.close()


def test_one_that_had_it_and_is_gone_again_was_there_all_the_same(
    first: Postgresql, older: Older, postgres: Postgres
) -> None:
    cut_locks(postgres)
    assert older.take()
    older.session.close()
    with pytest.raises(DataFolderInUseError, match="one of an older version has used it"):
        first.transact(note, vital=False)


async def test_a_config_server_whose_database_an_older_one_uses_ends(
    tmp_path: Path,
    older: Older,
    database_config: DatabaseConfig,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it remembers is not all that was said: its service manager starts it anew, which is refused while the other one runs."""
    monkeypatch.setattr(background, "_SWEEP_S", 0.05)
    started = asyncio.Event()
    config = config_for(tmp_path, database=database_config)
    server = asyncio.create_task(service.run(config, asyncio.Event(), lambda _port: started.set()))
    await started.wait()
    with pytest.raises(BaseExceptionGroup) as ended:
        # It may be the first to take the lock again, and goes on then: so it is cut until it is not.
        while not server.done():
            await asyncio.to_thread(cut_locks, postgres)
            if older.take():
                await server
        await server
    assert ended.group_contains(DataFolderInUseError)


async def test_a_config_server_under_which_the_database_is_put_back_ends(
    tmp_path: Path, database_config: DatabaseConfig, first: Postgresql
) -> None:
    """As it is here: without the row by which it is known."""
    started = asyncio.Event()
    config = config_for(tmp_path, database=database_config)
    server = asyncio.create_task(service.run(config, asyncio.Event(), lambda _port: started.set()))
    await started.wait()
    first.transact(lambda db: db.execute(text("DELETE FROM replicas")), vital=False)
    with pytest.raises(BaseExceptionGroup) as ended:
        await server
    assert ended.group_contains(DataFolderInUseError)


def has_written(db: Connection) -> bool:
    return any(batch > 1 for _, batch in replicas.batches(db).values())


def is_marked(db: Connection) -> bool:
    return restored.mark(db) is not None


async def test_a_config_server_under_which_the_database_is_set_back_marks_it_so_and_ends(
    tmp_path: Path, database_config: DatabaseConfig, first: Postgresql
) -> None:
    """A standby without the last commits took over, or a dump of a moment ago was put back: what it wrote itself is not there."""
    config = config_for(tmp_path, database=database_config)
    with pytest.raises(BaseExceptionGroup) as ended:
        async with running(config) as server:
            token = await server.token("agent", "web1")
            hash_ = enrol.token_hash(enrol.parse_token(token.token).secret)
            await until(lambda: asyncio.to_thread(first.transact, has_written, vital=False))
            first.transact(lambda db: db.execute(text("UPDATE replicas SET batch = 0")), vital=False)
            await until(lambda: asyncio.to_thread(first.transact, is_marked, vital=False))
    assert ended.group_contains(DataFolderInUseError)
    assert not first.transact(lambda db: tokens.exists(db, hash_), vital=False)
    async with running(config) as server, server.operator() as operator:
        actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
        assert "database.restored" in actions


def test_a_server_does_nothing_more_in_a_database_that_a_newer_one_made_unusable_for_it(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    """Its session was lost, or that one would have waited."""
    with psycopg.connect(database_config.url, autocommit=True) as newer:
        newer.execute("UPDATE settings SET value = '9999' WHERE name = %s", [migrations.USABLE_FROM])
        cut_locks(postgres)
        with pytest.raises(
            DataFolderInUseError, match=f"from 9999 on can, and this one knows {migrations.NEWEST}"
        ):
            first.transact(note, vital=False)
        with pytest.raises(DataFolderInUseError):
            first.transact(note, vital=False)
        assert newer.execute("SELECT count(*) FROM audit").fetchone() == (0,)


def test_servers_say_in_their_sessions_which_revision_they_know(first: Postgresql) -> None:
    first._older.check_none_below("9999")  # it does not count itself
    second = Postgresql(first._config).open()
    first._older.check_none_below(migrations.NEWEST)
    with pytest.raises(DataFolderInUseError, match="could not use any more what this one makes of it: on "):
        first._older.check_none_below("9999")
    second.close()
