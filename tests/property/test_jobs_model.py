"""Jobs, whatever happens to those who drive them: the world is as after one run of each, or as if it had never been.

Two config servers on one database; at each transaction and each request the test decides who goes on. Servers are killed, stand still for
longer than their lease and come back, requests land after their senders are gone, somebody cancels, twice, the database is put back from a
backup. The program's own runner, janitor and journal do the work, on a real database.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from config_server.jobs.janitor import Janitor
from config_server.jobs.runner import Runner
from config_server.rules.clock import SECOND_NS
from config_server.store import journal, sqlite
from config_server.store.database import Database
from config_server.store.schema import jobs
from shared.api.jobs import JobState
from shared.errors import LaneTakenError
from tests.databases import copied
from tests.jobs_world import FOREIGN, Place, World, kind_of

STEPS = ("a", "b", "c")
OFTEN = ("go", "go", "go", "run", "look", "janitor", "clock")
RARE = (
    "kill", "cancel", "begin", "land", "late", "waits", "fail", "mend", "foreign", "back-up", "restore", "again",
)  # fmt: skip


class Model:
    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self.now_ns = 1_000_000 * SECOND_NS
        self.world = World()
        self.db = self._of(sqlite.connect(":memory:"))
        self.saved: Connection | None = None
        self.places: list[tuple[Place, Runner, Janitor]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.is_late = False
        self.is_waiting = False
        self.foreign: set[str] = set()
        for _ in range(2):
            self._start()

    def _of(self, db: Connection) -> Connection:
        sqlite.raw_of(db).create_function("clock_ns", 0, lambda: self.now_ns)
        db.commit()
        return db

    def transact(self, work: Callable[[Connection], Any]) -> Any:
        self.db.rollback()
        with self.db.begin():
            return work(self.db)

    def _start(self) -> None:
        place = Place(self.world, self.transact)
        kinds = kind_of(place, self.world, lambda: self.is_late, lambda: self.is_waiting)
        database = cast("Database", place)
        self.places.append(
            (
                place,
                Runner(database, kinds, f"cs{len(self.places)}", lambda: self.now_ns),
                Janitor(database, kinds, lambda: self.now_ns),
            )
        )

    async def settle(self) -> None:
        """Until everybody waits for the test."""
        for _ in range(6):
            await asyncio.sleep(0)

    async def do(self, action: str) -> None:
        match action:
            case "begin":
                with contextlib.suppress(LaneTakenError):
                    self.transact(self._create)
            case "go":
                gates = [gate for place, *_ in self.places for gate in place.waiting if not gate.done()]
                if gates:
                    gates[self._choose(len(gates))].set_result(None)
            case "run":
                place, *_ = self.places[self._choose(len(self.places))]
                for _ in range(self._choose(40)):
                    for gate in place.waiting[-3:]:
                        if not gate.done():
                            gate.set_result(None)
                    await self.settle()
                return
            case "look" | "janitor":
                _, runner, janitor = self.places[self._choose(len(self.places))]
                self._run(runner.look() if action == "look" else janitor.look())
            case "kill":
                place, *_ = self.places.pop(self._choose(len(self.places)))
                place.is_dead = True
                for gate in place.waiting:
                    if not gate.done():
                        gate.set_result(None)
                self._start()
            case "clock":
                self.now_ns += 40 * SECOND_NS
                self.world.later(40)
            case "cancel" | "again":
                if known := self.ids():
                    act = (
                        journal.again
                        if action == "again"
                        else lambda db, id_: journal.cancel(db, id_, "operator:o", self.now_ns)
                    )
                    self.transact(lambda db: act(db, known[self._choose(len(known))]))
            case "land":
                if self.world.on_their_way:
                    self.world.on_their_way.pop(self._choose(len(self.world.on_their_way)))[1]()
            case "late":
                self.is_late = not self.is_late
            case "waits":
                self.is_waiting = not self.is_waiting
            case "fail":
                self.world.failing.add(STEPS[self._choose(3)])
            case "mend":
                self.world.failing.clear()
            case "foreign":
                if known := self.ids():
                    name = f"{known[self._choose(len(known))]}/{STEPS[self._choose(3)]}"
                    if name not in self.world.things:
                        self.world.things[name] = FOREIGN
                        self.foreign.add(name)
            case "back-up":
                self.saved = copied(self.db)
            case "restore":
                if self.saved is not None:
                    self.db = self._of(copied(self.saved))
                    self.transact(lambda db: journal.hold_unended(db, "the database was put back"))
        await self.settle()

    def _create(self, db: Connection) -> str:
        return journal.create(
            db,
            kind="made",
            version=1,
            machine="web1",
            lane="life",
            who="operator:o",
            args={},
            now_ns=self.now_ns,
        )

    def _run(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    def ids(self) -> list[str]:
        return list(self.states())

    def states(self) -> dict[str, JobState]:
        rows = self.transact(
            lambda db: db.execute(select(jobs.c.id, jobs.c.state).order_by(jobs.c.rowid)).all()
        )
        return {id_: JobState(state) for id_, state in rows}

    async def drain(self) -> None:
        """Nothing goes wrong any more, and nobody is killed: until nothing is left to be done."""
        self.is_late = self.is_waiting = False
        self.world.failing.clear()
        for _ in range(60):
            self.now_ns += 800 * SECOND_NS
            self.world.later(800)
            for id_ in self.ids():
                self.transact(lambda db, id_=id_: journal.again(db, id_))  # type: ignore[misc]
            for _place, runner, janitor in self.places:
                self._run(runner.look())
                self._run(janitor.look())
            await self.settle()
            while gates := [gate for place, *_ in self.places for gate in place.waiting if not gate.done()]:
                for gate in gates:
                    gate.set_result(None)
                await self.settle()
            if JobState.RUNNING not in self.states().values() and not self.transact(journal.undone):
                return
        pytest.fail(f"it never ends: {self.states()}")

    def check(self) -> None:
        for id_, state in self.states().items():
            made = {name for name in STEPS if self.world.things.get(f"{id_}/{name}") == id_}
            assert made == (set(STEPS) if state is JobState.DONE else set()), (id_, state)
        assert self.foreign <= {name for name, whose in self.world.things.items() if whose == FOREIGN}

    async def close(self) -> None:
        for place, runner, _ in self.places:
            place.is_dead = True
            for gate in place.waiting:
                if not gate.done():
                    gate.set_result(None)
            await self.settle()
            await runner.stop()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def live(seed: int) -> None:
    chance = random.Random(seed)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of those who were killed
    model = Model(chance.randrange)
    # Lives differ in what is frequent in them: where all happens alike, nothing gets far.
    weights = [1e-9 + chance.choice((0, 1, 4)) for _ in RARE]
    try:
        await model.do("begin")
        for _ in range(chance.randrange(20, 250)):
            often = chance.random() < 0.8
            await model.do(chance.choice(OFTEN) if often else chance.choices(RARE, weights)[0])
        await model.drain()
        model.check()
    finally:
        await model.close()


@given(st.integers(0, 1 << 32))
def test_the_world_is_as_after_one_run_or_as_if_it_had_never_been(seed: int) -> None:
    asyncio.run(live(seed))
