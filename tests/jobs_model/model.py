"""Lives of jobs: who goes on, and what goes wrong, by chance alone (`lived(seed, …)`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, cast

from sqlalchemy import Connection

from config_server.jobs.janitor import Janitor
from config_server.jobs.runner import Runner
from config_server.rules.clock import SECOND_NS
from config_server.store import journal
from config_server.store.database import Database
from shared.api.jobs import JobState
from shared.errors import DatabaseError, LaneTakenError, RequestError, UnreachableError
from tests.jobs_model.databases import Store
from tests.jobs_model.host import Ask, Host, Killed, Still
from tests.jobs_model.watch import PUT_BACK, Watch
from tests.jobs_model.world import FENCED, FOREIGN, PLAIN, STEPS, STILL_S, World, kinds_of

OFTEN: Final = ("go", "go", "go", "run", "run", "look", "janitor", "tick", "tick", "clock")
RARE: Final = (
    "kill", "still", "wake", "cancel", "begin", "land", "late", "waits", "refuse", "mend", "foreign", "sick", "holds",
    "back-up", "restore", "again", "abandon", "nap",
)  # fmt: skip
MACHINES: Final = ("web1", "web2")


class Model:
    def __init__(self, store: Store, chance: random.Random) -> None:
        self.chance = chance
        self.store = store
        self.watch = Watch(store.read, lambda: store.now_ns)
        self.world = World(lambda: store.now_ns / SECOND_NS, chance)
        store.begin(chance, self._committed)
        self.foreign: dict[str, str] = {"web1/a": FOREIGN, "0123456789abcdef/a": "0123456789abcdef"}
        self.world.things |= self.foreign
        self.hosts: list[Host] = []
        self._programs: dict[Host, tuple[Runner, Janitor]] = {}
        self._names = 0
        self.people = Host("people", store, chance, lambda: store.now_ns)
        for _ in range(2 if store.is_shared else 1):
            self._start()

    def _committed(self) -> None:
        self.watch.committed()

    def _start(self) -> None:
        self._names += 1
        host = Host(f"cs{self._names}", self.store, self.chance, lambda: self.store.now_ns)
        database = cast("Database", host)
        self.hosts.append(host)
        self._programs[host] = (
            Runner(database, kinds_of(host, self.world, self.watch, "runner"), host.name, host.now_ns),
            Janitor(database, kinds_of(host, self.world, self.watch, "janitor"), host.now_ns),
        )
        self.store.started()

    # ---- one after the other

    def asks(self, host: Host | None = None) -> list[tuple[Host, Ask]]:
        hosts = [*self.hosts, self.people] if host is None else [host]
        return [(each, ask) for each in hosts if each.still is None for ask in each.asks]

    def pick(self, found: list[Any]) -> Any:
        return found[self.chance.randrange(len(found))]

    def go(self, host: Host | None = None) -> bool:
        asks = self.asks(host)
        if asks:
            where, ask = self.pick(asks)
            where.advance(ask)
            self._failures()
        return bool(asks)

    def _failures(self) -> None:
        for host in [*self.hosts, self.people]:
            for exc in host.failures():
                if not isinstance(exc, (DatabaseError, LaneTakenError, Killed)):
                    self.watch.says(f"{host.name}: {exc!r}")

    def later(self, seconds: float) -> None:
        self.store.later(seconds)
        for host in list(self.hosts):
            host.later(seconds)
            if host.stood_s > STILL_S:
                self._end(host)
        self.world.later()
        self._failures()

    def _end(self, host: Host) -> None:
        self.hosts.remove(host)
        host.kill()
        self.watch.met["kills"] += 1
        self._start()

    def said(self, work: Callable[[Connection], Any]) -> None:
        """By somebody, to whichever server answers."""
        self.people.begin(self.people.run(work))
        for _ in range(self.chance.choice((0, 3, 40))):
            if not self.go(self.people):
                break

    def of_a_job(self, act: Callable[[Connection, str], Any]) -> None:
        if self.watch.rows:
            id_ = self.pick(list(self.watch.rows))
            self.said(lambda db: act(db, id_))

    # ---- what happens

    def do(self, action: str) -> None:
        getattr(self, "_" + action.replace("-", "_"))()

    def _go(self) -> None:
        self.go()

    def _run(self) -> None:
        host = self.pick(self.hosts)
        for _ in range(self.chance.randrange(60)):
            if not self.go(host):
                break

    def _look(self) -> None:
        host = self.pick(self.hosts)
        host.begin(self._programs[host][0].look())

    def _janitor(self) -> None:
        host = self.pick(self.hosts)
        host.begin(self._programs[host][1].look())

    def _tick(self) -> None:
        self.later(self.pick([0.5, 4.0, 9.0]))

    def _clock(self) -> None:
        self.later(self.pick([20.0, 40.0, 90.0]))

    def _nap(self) -> None:
        """Of all."""
        self.later(240.0)

    def _kill(self) -> None:
        self._end(self.pick(self.hosts))

    def _still(self) -> None:
        host = self.pick(self.hosts)
        if host.still is None:
            host.stand_still(self.pick(list(Still)))
            self.watch.met["hosts that stood still"] += 1

    def _wake(self) -> None:
        still = [host for host in self.hosts if host.still is not None]
        if still:
            self.pick(still).wake()
            self._failures()

    def _cancel(self) -> None:
        self.of_a_job(self._cancelled)
        self.watch.met["cancels"] += 1

    def _cancelled(self, db: Connection, id_: str) -> bool:
        return journal.cancel(db, id_, self.pick(["operator:a", "operator:b"]), self.store.now_ns)

    def _again(self) -> None:
        self.of_a_job(self._woken)

    def _woken(self, db: Connection, id_: str) -> bool:
        return journal.again(db, id_)

    def _abandon(self) -> None:
        self.of_a_job(self._abandoned)

    def _begin(self) -> None:
        kind, machine, now_ns = self.pick([PLAIN, FENCED]), self.pick(list(MACHINES)), self.store.now_ns
        self.said(
            lambda db: journal.create(
                db, kind=kind, version=1, machine=machine, lane="life", who="operator:o", args={}, now_ns=now_ns
            )
        )

    def _land(self) -> None:
        if self.world.on_their_way:
            self.world.land(self.chance.randrange(len(self.world.on_their_way)))

    def _late(self) -> None:
        self.world.is_late = not self.world.is_late

    def _waits(self) -> None:
        self.world.is_waiting = not self.world.is_waiting

    def _holds(self) -> None:
        self.world.holds = not self.world.holds

    def _sick(self) -> None:
        self.store.is_sick = not self.store.is_sick

    def _refuse(self) -> None:
        what = f"{self.pick(['put', 'put', 'delete'])} {self.pick(list(STEPS))}"
        self.world.refused[what] = self.pick([RequestError, UnreachableError])

    def _mend(self) -> None:
        self.world.refused.clear()

    def _foreign(self) -> None:
        """Somebody takes a name that nobody has, and nobody is about to use."""
        if self.watch.rows:
            name = f"{self.pick(list(self.watch.rows))}/{self.pick(list(STEPS))}"
            if name not in self.world.things and not self.world.is_spoken_of(name):
                self.world.things[name] = self.foreign[name] = FOREIGN

    def _back_up(self) -> None:
        self.store.save()

    def _restore(self) -> None:
        if not self.store.is_saved:
            return
        for host in list(self.hosts):
            if not self.store.is_shared or self.watch.is_removing(host):
                self._end(host)
            else:
                host.stops += 1
        self.world.land_removals()
        self.watch.was_put_back()
        self.store.put_back(lambda db: journal.hold_unended(db, PUT_BACK))

    # ---- the end

    def drain(self) -> None:
        """Nothing goes wrong any more: each job ends, or names whom it waits for, and is then gone on with or given up."""
        self.world.is_late = self.world.is_waiting = self.store.is_sick = False
        if self.chance.randrange(3):
            self.world.refused.clear()
        else:  # what cannot be removed is a person's then
            self.world.refused = {
                what: RequestError for what in self.world.refused if what.startswith("delete")
            }
        for host in list(self.hosts):
            if host.still is not None:
                host.wake()
        for number in range(60):
            self.later(100.0)
            self._everybody()
            standing = [row for row in self.watch.rows.values() if row.is_active]
            if all(row.attention for row in standing):
                if not standing and not self._is_looked_for():
                    break
                for row in standing:
                    acts = [self._woken, self._abandoned if self.world.refused else self._cancelled]
                    self.said(lambda db, act=self.pick(acts), id_=row.id: act(db, id_))
                if number > 40:
                    self.world.refused.clear()
            if not number % 8:
                self.later(700.0)
        self.world.later()
        self.watch.committed()
        self.watch.at_the_end(self.world.things, self.foreign)

    def _abandoned(self, db: Connection, id_: str) -> bool:
        return journal.abandon(db, id_, self.store.now_ns)

    def _is_looked_for(self) -> bool:
        ended = [id_ for id_, row in self.watch.rows.items() if row.state in (JobState.CANCELLED, JobState.FAILED)]
        return any("undone" in self.watch.states[id_].values() for id_ in ended) or bool(self.world.on_their_way)

    def _everybody(self) -> None:
        for host in self.hosts:
            for program in self._programs[host]:
                host.begin(program.look())
        while self.go() or self.store.wait():
            pass

    def close(self) -> None:
        for host in [*self.hosts, self.people]:
            host.kill()


def lived(seed: int, store: Store) -> Watch:
    chance = random.Random(seed)
    model = Model(store, chance)
    # Lives differ in what is frequent in them: where all happens alike, nothing gets far.
    weights = [1e-9 + chance.choice((0, 1, 4, 8)) for _ in RARE]
    often = chance.choice((0.6, 0.8, 0.9))
    try:
        model.do("begin")
        for _ in range(chance.randrange(20, 250)):
            model.do(chance.choice(OFTEN) if chance.random() < often else chance.choices(RARE, weights)[0])
            if model.watch.problems:
                return model.watch
        model.drain()
    finally:
        model.close()
    return model.watch
