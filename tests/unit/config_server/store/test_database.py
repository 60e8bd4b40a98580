"""The database as a file: opened, brought up, refused; and what a transaction does that fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from config_server.rules.clock import SECOND_NS
from config_server.store import (
    audit,
    commands,
    database,
    events,
    incarnations,
    inventory,
    policies,
    sqlite,
    sqlite_steps,
    tokens,
)
from config_server.store.statements import clock_ns
from shared.api.policies import Policy
from shared.desired import WantedDisk
from shared.errors import (
    ConfigError,
    DatabaseError,
    RequestError,
    StorageError,
)
from shared.status import Problem
from shared.vocabulary import Role
from tests.databases import left_by_a_newer_program, opened
from tests.small_fs import fill, small_fs

NOW = 1_700_000_000 * SECOND_NS
GRANT = tokens.Grant(Role.AGENT, "web1", ())


def test_a_new_database_has_the_newest_schema_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for _ in range(2):
        with opened(path) as connection:
            assert sqlite_steps.version(sqlite.raw_of(connection)) == len(sqlite_steps.MIGRATIONS)
            inventory.ensure_machine(connection, "web1", NOW)


def test_a_database_of_the_first_version_is_brought_up_to_date_with_its_events(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"BEGIN;{sqlite_steps.MIGRATIONS[0]};PRAGMA user_version = 1;COMMIT;")
    connection.execute(
        "INSERT INTO events (kind, severity, source, object, code, what, cause, action, first_ns, last_ns, count)"
        " VALUES ('problem', 'error', 'agent:web1', 'web1', 'US410', 'it broke', '', '', 1, 1, 1)"
    )
    connection.close()
    with opened(path) as db:
        problems = [Problem(code=code, what="it broke", object="web1") for code in ("US410", "US411")]
        events.reconcile(db, "agent:web1", problems, NOW)
        assert [event.count for event in events.find(db, "", only_open=True, limit=10)] == [1, 1]


def test_an_upgrade_gives_no_machine_a_wish_keeps_policies_and_withdraws_commands_that_are_gone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state.db"
    steps = next(n for n, step in enumerate(sqlite_steps.MIGRATIONS) if "'incarnations'" in step)
    old = sqlite3.connect(path, isolation_level=None)
    for step in sqlite_steps.MIGRATIONS[:steps]:
        old.executescript(step)
    old.executescript(
        f"PRAGMA user_version = {steps};"
        "INSERT INTO commands VALUES ('c1', 'agent:web1', 'unprotect', '{}', 1, 'pending', '{}', NULL);"
        """INSERT INTO settings VALUES ('default-policy', '{"point_interval_s": 60.0, "rpo_threshold_s": 900.0}');"""
        "INSERT INTO machines VALUES ('web1', 1, '[\"/dev/sda\", \"\"]', '{\"point_interval_s\": 10.0}', 1, 0);"
        "INSERT INTO machines VALUES ('web2', 1, '[\"/dev/sda\"]', NULL, 1, 0);"
        """INSERT INTO machines VALUES ('web3', 1, '[]', '{"point_interval_s": 300.0, "rpo_threshold_s": 60.0}', 1, 0);"""
    )
    old.close()
    db = sqlite.connect(path)
    try:
        assert commands.pending(db, "agent:web1", 1) == []
        assert commands.expire(db, 10**18) == []
        web1, web2, web3 = inventory.machines(db)
        assert (web1.wish, web1.protected, web1.policy.point_interval_s, web1.policy_name) == (
            None, True, 10, "",
        )  # fmt: skip
        assert (web1.disks, web1.dropped, web3.disks) == ((WantedDisk("/dev/sda"),), (), ())
        assert (web2.wish, web2.policy.point_interval_s, web2.policy_name) == (None, 60, policies.DEFAULT)
        assert web3.policy == Policy(rpo_threshold_s=60), "nobody chose the interval that it had"
        [first] = incarnations.history(db)
        assert len(first) == 16
    finally:
        db.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite.connect(path)) as db:
        sqlite.raw_of(db).execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="version 99"):
        sqlite.connect(path)
    path.unlink()
    with opened(path) as db:
        left_by_a_newer_program(db)
    with pytest.raises(ConfigError, match="version 9999, this program knows 0002"):
        sqlite.connect(path)


def test_a_file_that_is_no_database_is_told_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(ConfigError, match="not a database") as told:
        sqlite.connect(path)
    assert "Restore a backup" in told.value.action


async def test_work_that_raises_changes_nothing(tmp_path: Path) -> None:
    db = await database.Database.open(tmp_path / "state.db")

    def work(connection: Connection) -> None:
        inventory.ensure_machine(connection, "web1", NOW)
        raise RequestError("no")

    with pytest.raises(RequestError):
        await db.run(work)
    assert await db.run(inventory.machines) == []
    await db.close()


async def test_what_runs_still_ends_before_the_database_is_closed() -> None:
    """Its caller may have been cancelled. It would leave its connection behind, or make another one."""
    happened: list[str] = []
    is_running = threading.Event()

    class Slow:
        is_shared = False
        workers = 2
        trouble: DatabaseError | None = None

        def open(self) -> None: ...

        def close(self) -> None:
            happened.append("closed")

        def transact(self, work: Callable[[Any], Any], *, vital: bool, urgent: bool = False) -> Any:
            return work(None)

        def aside(self, work: Callable[[Any], Any]) -> Any:
            return work(None)

    def work(_: Connection) -> None:
        is_running.set()
        threading.Event().wait(0.2)  # as long as a database that closes too early would need
        happened.append("done")

    db = await database.Database.over(Slow())
    running = asyncio.create_task(db.run(work))
    await asyncio.to_thread(is_running.wait)
    running.cancel()
    await db.close()
    assert happened == ["done", "closed"]


async def test_sqlite_errors_are_storage_errors_and_the_next_work_succeeds(tmp_path: Path) -> None:
    db = await database.Database.open(tmp_path / "state.db")
    with pytest.raises(StorageError, match="no such table"):
        await db.run(lambda connection: connection.execute(text("SELECT * FROM nowhere")))
    await db.run(lambda connection: inventory.ensure_machine(connection, "web1", NOW))
    assert [machine.name for machine in await db.run(inventory.machines)] == ["web1"]
    await db.close()


async def test_a_full_disk_is_named_also_where_sqlite_has_rolled_back_itself(tmp_path: Path) -> None:
    with small_fs(tmp_path / "small", 400 << 10) as folder:
        db = await database.Database.open(folder / "state.db")
        fill(folder)

        def much(connection: Connection) -> None:
            for _ in range(3000):  # more than SQLite keeps in memory until the end
                audit.add(connection, "operator:admin", "policy.set", "x" * 1000, {}, NOW)

        try:
            with pytest.raises(StorageError, match="disk is full"):
                await db.run(much)
            assert await db.run(lambda connection: audit.newest(connection, 10)) == []
        finally:
            await db.close()


def test_its_clock_does_not_jump_with_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    day_ns = 86_400 * SECOND_NS
    monkeypatch.setattr(time, "time_ns", lambda now_ns=time.time_ns: now_ns() - day_ns)
    with contextlib.closing(sqlite.connect(":memory:")) as db:
        monkeypatch.undo()
        assert abs(db.execute(select(clock_ns())).scalar_one() - time.time_ns()) < day_ns / 2


def test_what_is_wrong_when_it_is_opened_is_told_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path / "state.db") as db:
        left_by_a_newer_program(db)
    with pytest.raises(ConfigError):
        sqlite.connect(tmp_path / "state.db")
    gc.collect()
    assert caplog.text == ""
