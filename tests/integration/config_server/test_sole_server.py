"""One config server at a time on a database in PostgreSQL, also when the connection by which it says so is lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from config_server import service
from config_server.store import audit, sole_server
from config_server.store.config import DatabaseConfig
from config_server.store.postgresql import Postgresql
from shared import api
from shared.api.route import Nothing
from shared.errors import DatabaseError, DataFolderInUseError
from tests.config_parts import config_for, running
from tests.postgres import Postgres

NOW = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long for a lock that another one has."""
    monkeypatch.setitem(sole_server._SETTINGS, "lock_timeout", "50ms")


@pytest.fixture
def first(database_config: DatabaseConfig) -> Iterator[Postgresql]:
    opened = Postgresql(database_config).open()
    yield opened
    opened.close()


def note(db: Connection) -> None:
    audit.add(db, "operator:admin", "x", "", {}, NOW)


def noted(engine: Postgresql) -> int:
    return len(engine.transact(lambda db: audit.newest(db, 100), vital=False))


def cut_lock(postgres: Postgres) -> None:
    """The sessions that hold such a lock are gone, and nothing else is."""
    with postgres.admin() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'understudy-%'"
        )


# ---- starting


async def test_a_second_server_on_a_database_is_refused_and_told_where_the_first_one_is(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """Whatever data folder it has."""
    config = config_for(tmp_path, database=database_config)
    async with running(config) as server:
        with pytest.raises(
            DataFolderInUseError, match=f"another one uses it: on {socket.gethostname()}, since 20"
        ):
            async with running(config_for(tmp_path / "other", database=database_config)):
                pass
        async with server.operator() as operator:
            await operator.call(api.MACHINES, Nothing())
    async with running(config):
        pass


def test_one_that_was_refused_leaves_no_connection(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    """PostgreSQL notices a moment later."""
    ends_s = time.monotonic() + 30
    with pytest.raises(DataFolderInUseError):
        Postgresql(database_config).open()
    with postgres.admin() as admin:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        name = first.transact(lambda db: db.scalar(text("SELECT current_database()")), vital=False)
        while admin.execute(count, [name]).fetchone() != (2,):
            assert time.monotonic() < ends_s


def test_a_lock_that_is_let_go_in_that_moment_is_waited_for(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was killed and is started again at once: PostgreSQL learns of the former one's end a moment later."""
    monkeypatch.setitem(sole_server._SETTINGS, "lock_timeout", "10s")
    second = Postgresql(database_config)
    opening = threading.Thread(target=second.open)
    opening.start()
    with postgres.admin() as admin:
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while admin.execute(waiting).fetchone() is None:
            assert opening.is_alive()
    first.close()
    opening.join()
    second.transact(note, vital=False)
    second.close()


# ---- the lock is lost


def test_a_lock_that_was_lost_is_taken_again_before_the_next_transaction(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    cut_lock(postgres)
    first.transact(note, vital=False)
    with pytest.raises(DataFolderInUseError):
        Postgresql(database_config).open()
    assert (noted(first), first.trouble) == (1, None)


def test_a_server_does_nothing_more_in_a_database_that_another_one_uses_or_has_used_since(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    cut_lock(postgres)
    second = Postgresql(database_config).open()
    with pytest.raises(DataFolderInUseError, match=f"on {socket.gethostname()}"):
        first.transact(note, vital=False)
    second.close()
    with pytest.raises(DataFolderInUseError):
        first.transact(note, vital=False)
    third = Postgresql(database_config).open()
    assert noted(third) == 0
    third.close()


def test_one_that_had_it_and_is_gone_again_was_there_all_the_same(
    first: Postgresql, database_config: DatabaseConfig, postgres: Postgres
) -> None:
    cut_lock(postgres)
    Postgresql(database_config).open().close()
    with pytest.raises(DataFolderInUseError, match="another one has used it"):
        first.transact(note, vital=False)


def test_its_own_lock_of_a_connection_that_postgresql_believes_in_still_is_no_other_server(
    first: Postgresql,
) -> None:
    sole = first._sole
    assert sole is not None
    former, sole._session = sole._session, None
    assert former is not None
    with pytest.raises(DatabaseError, match="holds the former one's lock still"):
        first.transact(note, vital=False)
    former.close()
    first._away_until_s = 0.0
    first.transact(note, vital=False)
    assert (noted(first), first.trouble) == (1, None)


async def test_a_config_server_whose_database_another_one_uses_ends(
    tmp_path: Path, database_config: DatabaseConfig, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it remembers is not all that was said: its service manager starts it anew, which is refused while the other one runs."""
    monkeypatch.setattr(service, "_SWEEP_S", 0.05)
    started = asyncio.Event()
    config = config_for(tmp_path, database=database_config)
    server = asyncio.create_task(service.run(config, asyncio.Event(), lambda _port: started.set()))
    await started.wait()
    await asyncio.to_thread(cut_lock, postgres)
    with pytest.raises(BaseExceptionGroup) as ended:
        # It may be the first to take the lock again, and goes on then: so it is cut until it is not.
        while not server.done():
            try:
                second = await asyncio.to_thread(Postgresql(database_config).open)
            except DataFolderInUseError:
                await asyncio.to_thread(cut_lock, postgres)
            else:
                await server
    second.close()
    assert ended.group_contains(DataFolderInUseError)
