"""The database as a whole, over both: what is a change, and a copy of it in a file of SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, func, select

from config_server.rules.deletion import Deletion
from config_server.store import (
    audit,
    deletions,
    incarnations,
    inventory,
    lasting_record,
    operators,
    replicas,
    schema,
    settings,
    sqlite,
    whole,
)
from config_server.store.database import Engine
from shared.api.operators import OperatorTokenView
from shared.vocabulary import Role

DELETION = Deletion(
    id="d", incarnation="i", who="operator:admin", asked_ns=1, after_ns=9, act="a", container="c", identity="",
    counted_ns=1, points=None,
)  # fmt: skip


def fill(db: Connection) -> None:
    operators.set_first(db, "admin", "token", 1)
    inventory.ensure_machine(db, "web1", 1)
    inventory.ensure_machine(db, "web2", 1)
    deletions.put(db, "web2", DELETION)
    audit.add(db, "operator:admin", "machine.protect", "web1", {"disks": "/dev/sda \u00e4"}, 1)
    inventory.save_report(db, inventory.StoredReport(Role.AGENT, "web1", 1, b"{}"))
    settings.put(db, settings.USED_BY, "this server")
    settings.put(db, "other", "word")
    operators.give(db, "t", OperatorTokenView(id="first", created=""), "anna", 1, 9)


def rows(db: Connection) -> dict[str, list[Any]]:
    return {
        table.name: sorted(map(tuple, db.execute(select(table))), key=repr)
        for table in schema.METADATA.sorted_tables
    }


def test_a_copy_has_all_but_what_is_said_again(engine: Engine) -> None:
    engine.transact(fill, vital=False)
    engine.transact(servers, vital=False)
    data = engine.aside(whole.as_sqlite)
    assert data[18:20] == b"\1\1", "it has no log beside it"
    with contextlib.closing(sqlite.of_bytes(data)) as copy:
        sqlite.check(sqlite.raw_of(copy), thoroughly=True)
        found, there = rows(copy), engine.transact(rows, vital=False)
        copied = incarnations.history(copy)
    for again in ("reports", "replicas", "rings", "leases"):
        assert found.pop(again) == []
        assert len(there.pop(again)) == 1
    assert (settings.USED_BY, "this server") not in found.pop("settings")
    there.pop("settings")
    assert copied == engine.transact(incarnations.history, vital=False)
    assert {name: list(map(repr_of, these)) for name, these in found.items()} == {
        name: list(map(repr_of, these)) for name, these in there.items()
    }


def repr_of(row: tuple[Any, ...]) -> str:
    """SQLite has 0 and 1 for what is true or not."""
    return repr(tuple(int(value) if isinstance(value, bool) else value for value in row))


CHANGES: dict[str, Callable[[Connection], object]] = {
    "a machine": lambda db: inventory.ensure_machine(db, "web3", 1),
    "an audit entry": lambda db: audit.add(db, "a", "b", "c", {}, 1),
    "a setting": lambda db: settings.put(db, "other", "wort"),
    "a deletion's stage": lambda db: deletions.put(
        db, "web2", msgspec.structs.replace(DELETION, is_enrolled=True)
    ),
    "an operator's token": lambda db: operators.give(
        db, "u", OperatorTokenView(id="u", created=""), "anna", 1, 9
    ),
    "an operator": lambda db: operators.set_first(db, "admin", "other token", 2),
}


def servers(db: Connection) -> None:
    replicas.join(db, "a", "config1")
    replicas.write(db, "a", "", [], ["a bell"])
    replicas.hold(db, "sweep", "a", 1)


NONE: dict[str, Callable[[Connection], object]] = {
    "a report": lambda db: inventory.save_report(db, inventory.StoredReport(Role.AGENT, "web1", 2, b"[]")),
    "a deletion's delay": lambda db: deletions.put(
        db, "web2", msgspec.structs.replace(DELETION, passed_ns=5, counted_ns=7)
    ),
    "that a token was used": lambda db: operators.owner_of(db, "t", 2),
    "what config servers say to one another": servers,
    "what lasts": lambda db: lasting_record.save(db, {}),
    "which server uses it": lambda db: settings.put(db, settings.USED_BY, "another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_worth_keeping_has_another_digest(engine: Engine, change: str) -> None:
    engine.transact(fill, vital=False)
    before = engine.aside(whole.digest)
    assert engine.aside(whole.digest) == before
    engine.transact(CHANGES[change], vital=False)
    assert engine.aside(whole.digest) != before


@pytest.mark.parametrize("change", NONE)
def test_what_changes_by_itself_every_few_seconds_has_the_same(engine: Engine, change: str) -> None:
    engine.transact(fill, vital=False)
    engine.transact(lambda db: lasting_record.save(db, {"web1": {}}), vital=False)
    before = engine.aside(whole.digest)
    engine.transact(NONE[change], vital=False)
    assert engine.aside(whole.digest) == before


def test_what_is_read_aside_is_one_state_and_keeps_no_transaction_waiting(engine: Engine) -> None:
    engine.transact(fill, vital=False)

    def work(db: Connection) -> list[int]:
        counted = []
        for name in ("new1", "new2"):
            counted.append(db.scalar(select(func.count()).select_from(schema.machines)) or 0)
            engine.transact(lambda other, name=name: inventory.ensure_machine(other, name, 1), vital=False)  # type: ignore[misc]
        return counted

    assert engine.aside(work) == [2, 2]
    assert engine.transact(lambda db: len(inventory.machines(db)), vital=False) == 4


def test_several_threads_make_a_database_at_a_time() -> None:
    """As two servers in one process, which keep their states."""
    with ThreadPoolExecutor(4) as threads:
        for made in threads.map(lambda _: sqlite.connect(":memory:"), range(12)):
            made.close()
