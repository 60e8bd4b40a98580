"""One server brings the database up while others serve, and an older program starts behind a newer one. Real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, select, text

from config_server.store import (
    audit,
    events,
    impatient,
    inventory,
    migrations,
    postgresql,
    replicas,
    schema,
    settings,
)
from config_server.store.config import DatabaseConfig
from config_server.store.inventory import StoredReport
from config_server.store.postgresql import Postgresql
from shared import api
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.errors import DatabaseError
from shared.status import Problem
from shared.vocabulary import Role
from tests import next_program
from tests.databases import REVISIONS, begin_with, opened
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


def revision(db: psycopg.Connection[Any]) -> str:
    [(found,)] = db.execute("SELECT version_num FROM alembic_version").fetchall()
    db.rollback()
    return str(found)


def test_a_migration_may_take_longer_than_other_statements_and_a_second_server_waits_for_it(
    of_before: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("statement_timeout", "lock_timeout"):
        monkeypatch.setitem(postgresql._OPTIONS, name, "200ms")
    monkeypatch.setattr(impatient, "STILL_S", 0.5)
    upgrade, ran = migrations.upgrade, []

    def slow(db: Connection, *args: Any, **more: Any) -> None:
        ran.append(db.scalar(text("SELECT version_num FROM alembic_version")))
        if ran[-1] == BEFORE:
            db.execute(text("SELECT pg_sleep(1.5)"))
        upgrade(db, *args, **more)

    monkeypatch.setattr(migrations, "upgrade", slow)
    with ThreadPoolExecutor(2) as threads:
        both = [*threads.map(lambda _: Postgresql(of_before).open(), range(2))]
    assert ran == [BEFORE, migrations.NEWEST]
    for one in both:
        with pytest.raises(DatabaseError, match="statement timeout"):
            one.transact(lambda db: db.execute(text("SELECT pg_sleep(1.5)")), vital=False)
        one.close()


_STANDS_IN_THE_MIDDLE: Final = """
import sys
from config_server.store import migrations, postgresql
from config_server.store.config import DatabaseConfig

upgrade = migrations.upgrade

def stands(*args, **more):
    upgrade(*args, **more)
    print("all but committed", flush=True)
    sys.stdin.read()

migrations.upgrade = stands
postgresql._OPTIONS["idle_in_transaction_session_timeout"] = "2s"
postgresql.Postgresql(DatabaseConfig(url=sys.argv[1])).open()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_of_a_server_that_is_killed_or_stopped_in_the_middle_of_a_migration_nothing_stays(
    of_before: DatabaseConfig, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", _STANDS_IN_THE_MIDDLE, of_before.url]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first,
        psycopg.connect(of_before.url) as beside,
    ):
        try:
            assert first.stdout is not None
            assert "all but committed\n" in iter(first.stdout.readline, "")
            first.send_signal(how)
            assert revision(beside) == BEFORE
            second = Postgresql(of_before).open()
            assert revision(beside) == migrations.NEWEST
            second.transact(lambda db: inventory.ensure_machine(db, "web1", 1), vital=False)
            second.close()
        finally:
            first.kill()


def test_what_a_server_has_prepared_goes_on_when_columns_are_added_under_it(
    database_config: DatabaseConfig,
) -> None:
    """psycopg prepares what runs more than five times; PostgreSQL refuses such a statement once its columns are others, so none of ours
    says `*`."""
    server = Postgresql(database_config).open()
    every = [select(table) for table in schema.METADATA.sorted_tables]

    def read(db: Connection) -> None:
        for statement in every:
            db.execute(statement).all()

    def write(number: int) -> Callable[[Connection], None]:
        def work(db: Connection) -> None:
            inventory.ensure_machine(db, f"web{number}", 1)
            inventory.save_report(db, StoredReport(Role.AGENT, "web1", number, b"{}"))
            events.reconcile(
                db, "agent:web1", [Problem(code="US410", what=f"{number}", object="web1")], number
            )
            settings.put(db, "x", str(number))
            audit.add(db, "operator:admin", "x", "", {}, number)
            replicas.write(db, "cs1", str(number), [StoredReport(Role.AGENT, "web2", number, b"{}")], ["x"])
            replicas.read(db, "cs2", {})
            replicas.hold(db, "sweep", "cs1", 1)

        return work

    server.transact(lambda db: replicas.join(db, "cs1", "cs1"), vital=False)
    for number in range(8):
        server.transact(read, vital=False)
        server.transact(write(number), vital=False)
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql"
    assert server.transact(lambda db: db.scalar(text(prepared)), vital=False) > len(every) + 10
    star = text("SELECT * FROM settings")
    for _ in range(8):
        server.transact(lambda db: db.execute(star).all(), vital=False)
    with psycopg.connect(database_config.url, autocommit=True) as newer:
        for table in schema.METADATA.sorted_tables:
            newer.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN newer TEXT NOT NULL DEFAULT 'x'").format(
                    sql.Identifier(table.name)
                )
            )
    for number in range(8, 16):
        server.transact(read, vital=False)
        server.transact(write(number), vital=False)
    assert server.trouble is None
    with pytest.raises(DatabaseError, match="cached plan must not change result type"):
        server.transact(lambda db: db.execute(star).all(), vital=False)
    server.close()


def test_a_file_that_the_next_program_has_used_is_this_one_s_still(tmp_path: Path) -> None:
    """And the other way round, as often as somebody pleases."""
    following, path = next_program.make(tmp_path / "next"), tmp_path / "state.db"
    theirs = (
        "import sys; from config_server.store import inventory, sqlite; db = sqlite.connect(sys.argv[1])\n"
        "with db.begin(): inventory.ensure_machine(db, sys.argv[2], 1)"
    )
    for number in (1, 3):
        subprocess.run([sys.executable, "-c", theirs, path, f"web{number}"], cwd=following, check=True)
        with opened(path) as db:
            inventory.ensure_machine(db, f"web{number + 1}", 1)
            found = db.scalar(text("SELECT version_num FROM alembic_version"))
            names = [machine.name for machine in inventory.machines(db)]
        assert (found, len(names)) == (next_program.REVISION, number + 1)


async def test_a_contract_waits_until_no_older_server_runs_and_then_keeps_it_out(
    database_config: DatabaseConfig, tmp_path: Path
) -> None:
    older, newer = (Replica(tmp_path / name, database_config.url, name) for name in ("older", "newer"))
    newer.program = await asyncio.to_thread(next_program.make, tmp_path / "next", next_program.REVISION)
    async with contextlib.AsyncExitStack() as stack:
        for one in (older, newer):
            stack.push_async_callback(one.end)
        await older.start()
        newer.join(older)
        with pytest.raises(
            AssertionError, match=r"(?s)US552.*one of an older version runs, which could not use"
        ):
            await newer.start()
        await protect(older, "web1")
        older.send(signal.SIGSTOP)
        with pytest.raises(AssertionError, match="US552"):
            await newer.start()
        await older.end()
        await newer.start()
        with pytest.raises(
            AssertionError, match=rf"(?s)US101.*programs from {next_program.REVISION} on can use it"
        ):
            await older.start()
        await protect(newer, "web2")


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
