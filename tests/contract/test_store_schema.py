"""The schema: what the migrations make is what schema.py says, on both databases, and what comes to it from any earlier version."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from config_server.store import (
    audit,
    certificates,
    commands,
    events,
    grants,
    incarnations,
    inventory,
    jobs,
    migrations,
    policies,
    revocation,
    schema,
    settings,
    sqlite,
    sqlite_steps,
)
from config_server.store.database import Engine
from shared.api.jobs import JobQuery
from shared.errors import ConfigError
from tests.databases import REVISIONS, begin_with

_DISKS: Final = '[{"device": "/dev/sda"}]'
_POLICY: Final = '{"point_interval_s": 60.0}'
OLDER: Final = [one.revision for one in REVISIONS.iterate_revisions("head", "base")][1:]


def differences(db: Connection) -> list[Any]:
    """What alembic would change."""

    def is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
        return not (db.dialect.name == "sqlite" and kind == "column" and name == schema.IMPLICIT)

    compared = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
    return [*compare_metadata(MigrationContext.configure(db, opts=compared), schema.METADATA)]


def test_the_newest_revision_is_the_one_that_the_program_looks_for() -> None:
    assert REVISIONS.get_heads() == [migrations.NEWEST]


def test_what_the_migrations_make_is_the_schema(engine: Engine) -> None:
    assert engine.transact(differences, vital=False) == []


@pytest.mark.parametrize("version", range(len(sqlite_steps.MIGRATIONS) + 1))
def test_a_file_of_any_version_before_alembic_keeps_its_rows_and_gets_the_schema(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        for step in sqlite_steps.MIGRATIONS[:version]:
            old.executescript(step)
        old.execute(f"PRAGMA user_version = {version}")
        had = {table: fill(old, table, version) for table in tables(old)}
    with contextlib.closing(sqlite.connect(path)) as db:
        # SQLite lets a primary key be NULL where nobody said otherwise; nothing of ours ever was.
        others = [change for change in differences(db) if not is_of_a_key(change)]
        assert others == []
        raw = sqlite.raw_of(db)
        for table in had:
            [[count]] = raw.execute(f'SELECT count(*) FROM "{table}"')
            assert count == (1 if table != "settings" else count), table
        if version:
            assert everything(db) == (1, 1, 1, 1)
        assert len(incarnations.history(db)) == 1
        assert sqlite_steps.version(raw) == len(sqlite_steps.MIGRATIONS), "a program of that time may open it"
        db.rollback()
    with contextlib.closing(sqlite.connect(path)) as db:
        assert db.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [
            migrations.NEWEST
        ]


@pytest.mark.parametrize("revision", OLDER)
def test_a_database_of_any_older_revision_keeps_its_rows_and_gets_the_schema(
    engine: Engine, revision: str
) -> None:
    engine.transact(lambda db: begin_with(db, revision), vital=False)
    row = "INSERT INTO jobs (id, kind, machine, state, detail, args, created_ns, updated_ns)"
    engine.transact(
        lambda db: db.exec_driver_sql(f"{row} VALUES ('j1', 'restore', 'web1', 'running', '', '{{}}', 1, 1)"),
        vital=False,
    )
    engine.transact(lambda db: migrations.upgrade(db, "state.db"), vital=False)
    assert engine.transact(differences, vital=False) == []
    assert engine.transact(lambda db: jobs.running(db, "web1"), vital=False) == [("j1", "restore")]


def usable_from(revision: str) -> str:
    found: str = REVISIONS.get_revision(revision).module.usable_from
    return found


def test_no_revision_lets_in_a_program_that_the_one_before_it_refuses() -> None:
    floors = [(usable_from(one), one) for one in [*reversed(OLDER), migrations.NEWEST]]
    assert floors == sorted(floors)
    assert all(floor <= revision for floor, revision in floors)


def as_a_newer_program_left_it(usable_from: str | None) -> Callable[[Connection], None]:
    def work(db: Connection) -> None:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        db.exec_driver_sql("ALTER TABLE machines ADD COLUMN newer TEXT NOT NULL DEFAULT 'x'")
        settings.forget(db, migrations.USABLE_FROM)
        if usable_from is not None:
            settings.put(db, migrations.USABLE_FROM, usable_from)

    return work


def test_a_database_that_a_newer_program_only_added_to_is_used_as_it_is(engine: Engine) -> None:
    assert engine.transact(lambda db: settings.get(db, migrations.USABLE_FROM), vital=False) == usable_from(
        migrations.NEWEST
    )
    engine.transact(as_a_newer_program_left_it(migrations.NEWEST), vital=False)
    engine.transact(lambda db: migrations.upgrade(db, "state.db"), vital=False)
    engine.transact(lambda db: inventory.ensure_machine(db, "web1", 1), vital=False)
    [machine] = engine.transact(inventory.machines, vital=False)
    found = engine.transact(
        lambda db: db.exec_driver_sql("SELECT version_num, newer FROM alembic_version, machines").all(),
        vital=False,
    )
    assert (machine.name, [tuple(row) for row in found]) == ("web1", [("9999", "x")])


@pytest.mark.parametrize("usable_from", ["9998", "", None])
def test_a_database_from_which_a_newer_program_took_something_is_refused(
    engine: Engine, usable_from: str | None
) -> None:
    engine.transact(as_a_newer_program_left_it(usable_from), vital=False)
    with pytest.raises(ConfigError, match="has version 9999, this program knows") as caught:
        engine.transact(lambda db: migrations.upgrade(db, "state.db"), vital=False)
    assert "restore" in caught.value.action


def tables(db: sqlite3.Connection) -> list[str]:
    found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return [name for (name,) in found]


def fill(db: sqlite3.Connection, table: str, version: int) -> str:
    """A row with something in each column."""
    said: dict[tuple[str, str], object] = {
        ("machines", "disks"): _DISKS if version > 15 else '["/dev/sda"]',
        ("machines", "dropped"): _DISKS,
        ("machines", "policy"): _POLICY,
        ("machines", "policy_name"): None,
        ("machines", "wish"): None,
        ("machines", "deletion"): None,
        ("policies", "body"): _POLICY,
        ("policies", "name"): "gold",
        ("settings", "name"): "default-policy" if version < 13 else "lasting",
        ("settings", "value"): _POLICY,
        ("commands", "kind"): "mark",
        ("commands", "state"): "pending",
        ("commands", "args"): "{}",
        ("commands", "result"): "{}",
        ("events", "kind"): "problem",
        ("events", "severity"): "error",
        ("jobs", "state"): "running",
        ("jobs", "args"): "{}",
        ("jobs", "result"): "{}",
        ("jobs", "error"): None,
        ("audit", "detail"): "{}",
        ("certificates", "renews"): "",
    }
    by_type = {"TEXT": "agent", "INTEGER": 1, "BLOB": b"x", "REAL": 0.5}
    columns = [(name, kind) for _, name, kind, *_ in db.execute(f'PRAGMA table_info("{table}")')]
    values = [said.get((table, name), by_type[kind]) for name, kind in columns]
    names = ", ".join(f'"{name}"' for name, _ in columns)
    db.execute(f'INSERT INTO "{table}" ({names}) VALUES ({", ".join("?" * len(values))})', values)
    return table


def everything(db: Connection) -> tuple[int, ...]:
    """What is kept can be read: how many of some."""
    assert [machine.policy.point_interval_s for machine in inventory.machines(db)] == [60.0]
    assert policies.views(db)
    assert jobs.newest(db, JobQuery(limit=10))
    assert commands.pending(db, "agent", 1) != []
    grants.newest(db, "agent", 10)
    revocation.current(db)
    return (
        len(audit.newest(db, 10)),
        len(events.find(db, "", False, 10)),
        len(inventory.reports(db)),
        len(certificates.newest(db, 10)),
    )


def is_of_a_key(change: Any) -> bool:
    [(kind, _, table, column, *_)] = change if isinstance(change, list) else [change]
    return bool(kind == "modify_nullable" and schema.METADATA.tables[table].c[column].primary_key)
