"""One at a time, also of two config servers on one PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from sqlalchemy import text

from config_server.operations import turns
from config_server.operations.turns import Turns
from config_server.store.config import DatabaseConfig
from config_server.store.database import Database
from config_server.store.postgresql import Postgresql
from shared.errors import DeadlineError

WHAT = "grants of c1"


class Pair(NamedTuple):
    db: Database
    a: Turns
    b: Turns


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TERM_S", 1.0)
    monkeypatch.setattr(turns, "_RENEW_S", 0.2)
    monkeypatch.setattr(turns, "_LOOK_S", 0.02)


@pytest.fixture
async def pair(database_config: DatabaseConfig) -> AsyncIterator[Pair]:
    db, other = [await Database.over(Postgresql(database_config)) for _ in range(2)]
    yield Pair(
        db,
        Turns(db, lambda: SimpleNamespace(id="a")),
        Turns(other, lambda: SimpleNamespace(id="b")),
    )
    await other.close()
    await db.close()


async def begun(server: Turns, said: list[str], name: str, ends: asyncio.Event) -> asyncio.Task[None]:
    """At work until `ends`."""
    is_begun = asyncio.Event()

    async def work() -> None:
        async with server.of(WHAT):
            said.append(f"{name} begins")
            is_begun.set()
            await ends.wait()
            said.append(f"{name} ends")

    task = asyncio.create_task(work())
    await asyncio.wait(
        [task, asyncio.create_task(is_begun.wait())], return_when=asyncio.FIRST_COMPLETED, timeout=2.5
    )
    return task


async def steal(db: Database) -> None:
    """As if the first had stood still, and the other one had taken it."""
    await db.run(
        lambda each: each.execute(text("UPDATE leases SET owner = 'b', until_ns = until_ns + 60000000000"))
    )


async def test_another_server_waits_for_its_turn_however_long_the_first_takes(pair: Pair) -> None:
    said: list[str] = []
    first_ends, second_ends = asyncio.Event(), asyncio.Event()
    second_ends.set()
    first = await begun(pair.a, said, "a", first_ends)
    second = await begun(pair.b, said, "b", second_ends)  # longer than a term
    assert said == ["a begins"]
    first_ends.set()
    await asyncio.gather(first, second)
    assert said == ["a begins", "a ends", "b begins", "b ends"]
    assert await pair.db.run(lambda db: db.scalar(text("SELECT count(*) FROM leases"))) == 0


async def test_behind_a_server_that_was_killed_another_one_waits_for_a_term(pair: Pair) -> None:
    said: list[str] = []
    ends = asyncio.Event()
    await pair.db.run(
        lambda db: db.execute(
            text("INSERT INTO leases VALUES (:name, 'killed', 1, :until)"),
            {"name": WHAT, "until": time.time_ns() + 10**9},
        )
    )
    ends.set()
    await (await begun(pair.b, said, "b", ends))
    assert said == ["b begins", "b ends"]


async def test_who_stood_still_while_another_one_took_it_is_cut_off_and_his_transactions_refuse(
    pair: Pair,
) -> None:
    with pytest.raises(DeadlineError, match="not seen to its end"):
        async with pair.a.of(WHAT):
            await pair.db.run(lambda db: pair.a.check(db, WHAT))
            await steal(pair.db)
            with pytest.raises(DeadlineError):
                await pair.db.run(lambda db: pair.a.check(db, WHAT))
            await asyncio.sleep(30)


async def test_nobody_waits_for_ever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE_S", 0.3)
    ends = asyncio.Event()
    first = await begun(pair.a, [], "a", ends)
    with pytest.raises(DeadlineError, match="Nothing was changed in the grants of c1"):
        async with pair.b.of(WHAT):
            pass
    ends.set()
    await first


async def test_a_failure_of_the_work_is_its_own_and_frees_the_turn(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        async with pair.a.of(WHAT):
            raise TimeoutError
    async with pair.b.of(WHAT):
        pass


async def test_alone_one_waits_for_the_other_here(pair: Pair) -> None:
    server = Turns(pair.db, lambda: None)
    said: list[str] = []
    ends = asyncio.Event()
    first = await begun(server, said, "one", ends)
    second = asyncio.create_task(begun(server, said, "two", ends))
    await asyncio.sleep(0)
    ends.set()
    await first
    await (await second)
    assert said == ["one begins", "one ends", "two begins", "two ends"]
    await pair.db.run(lambda db: server.check(db, WHAT))
