"""Machines are to be deleted, kept, protected, moved to other hardware and enrolled anew; their server is killed at any moment, its
database put back, its clock set; agents are away and come back, somebody reads. Never is a container deleted of which nobody has said so
in this incarnation of the database, at least the delay earlier, nor one that is another machine's by now, or while something of it runs;
and what was said is done. A request to delete may get no answer, and arrive whenever it likes.

The tables, the judgement and the handlers are the real ones. Storage is a model, and so are the agent and who revokes. Each rule is taken
away in turn, and is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from config_server.operations import deleting, deletion_sweep, desired_state
from config_server.operations.control import Control
from config_server.operations.deleting import Deleting
from config_server.operations.deletion_sweep import DeletionSweep
from config_server.operations.protecting import Protecting
from config_server.operations.sides import Sides
from config_server.rules import deletion
from config_server.rules.clock import SECOND_NS
from config_server.rules.deletion import Found
from config_server.rules.disks import Offer
from config_server.storage.deletion_note import NONE, Written
from config_server.store import deletions, grants, incarnations, inventory, restored, sqlite
from config_server.store.grants import Grant
from config_server.store.schema import audit
from shared.api.certificates import RefusedList, Revocations
from shared.api.deletion import DeletionRequest
from shared.api.points import PointList
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.desired import Verb, Wish
from shared.errors import (
    BeingDeletedError,
    ContainerMissingError,
    DeletionUnconfirmedError,
    PreconditionError,
    ToBeDeletedError,
    TransientError,
)
from shared.status import AgentDisk, AgentReport, AvailableDisk, ProcessServerReport, StreamReport
from shared.vocabulary import Role
from tests.databases import copied
from tests.marks import examples

START_NS: Final = 1_800_000_000 * SECOND_NS
YEAR_S: Final = 366 * 86_400
HOUR_S: Final = 3600
STEP_S: Final = 600
PASS_S: Final = 900
GRANT_S: Final = 3 * HOUR_S
VAULT: Final = "understudy"
AFTER_S: Final = (HOUR_S, 2 * HOUR_S)

Step = tuple[str, int]
PASSING: Final = st.tuples(st.just("pass"), st.integers(0, 9))
KINDS: Final = (
    "delete", "keep", "unprotect", "protect", "kill", "kill", "back up", "restore",
    "set the clock", "agent away", "agent back", "rebind", "deleted by hand", "enrol anew", "read", "storage away", "stand still",
    "cut off", "hold", "hold", "lands",
)  # fmt: skip
HAPPENING: Final = st.tuples(st.sampled_from(KINDS), st.integers(0, 9))
LIVES: Final = st.builds(
    lambda before, happens: [*before, ("delete", 0), *happens],
    st.lists(HAPPENING | PASSING, max_size=10),
    st.lists(PASSING | PASSING | HAPPENING, max_size=25),
)
"""One of five comes to an end: much of what happens hinders it, or takes it back."""


class Violated(AssertionError):
    pass


class Killed(BaseException):
    pass


@dataclass
class Container:
    """A life of it: one that is made anew under the same name is another one."""

    machine: str
    identity: str
    changed_s: int
    written_s: int
    noted: str = ""
    writes: int = 0
    """Of that."""
    granted_s: int = 0
    """Until when somebody may read it."""


@dataclass
class Agent:
    identity: str = "hw0"
    is_there: bool = True
    wish: Wish | None = None

    @property
    def captures(self) -> bool:
        return self.wish is None or self.wish.verb is not Verb.STOP


@dataclass
class Said:
    """That the machine is to be deleted: by a person, in this incarnation, and nothing else since."""

    at_s: int
    after_s: int
    life: Container | None
    identity: str


@dataclass
class World:
    """Time in seconds that really pass; the server's time of day is `ahead_s` ahead of it."""

    db: Connection = field(default_factory=lambda: sqlite.connect(":memory:"))
    now_s: int = 0
    ahead_s: int = 0
    agent: Agent = field(default_factory=Agent)
    containers: dict[str, Container] = field(default_factory=dict)
    registry: str = ""
    """The container that it names."""
    said: Said | None = None
    revoked: Revocations = field(default_factory=Revocations)
    copies: list[Connection] = field(default_factory=list)
    kill_in: int | None = None
    is_storage_away: bool = False
    is_held: bool = False
    """A request to delete gets no answer, and arrives later."""
    on_the_way: list[tuple[str, dt.datetime, Said | None]] = field(default_factory=list)
    """Such: which container, if it was not changed since, and by whose word."""
    has_spoken: bool = True
    """Somebody, since the database was put back or set back."""
    is_cut_off: bool = False
    """Nobody's reports arrive, and nobody learns who was revoked."""
    made: int = 0
    deleted: int = 0

    def __post_init__(self) -> None:
        self.begin_container()
        self.copies.append(self.copied())
        self.start()

    # ---- the server

    def start(self) -> None:
        """A process, which knows nothing but its database."""
        before = getattr(self, "control", None)
        control: Any = _Control(_Database(self), None, _Storage(self), dt.timedelta(days=90))  # type: ignore[arg-type]
        control.world = self
        control.revoked = self.revoked
        if before is not None:
            for seen in before.presence.all():
                raw = msgspec.json.encode(seen.report)
                control.presence.learn(
                    seen.role, seen.name, raw, seen.received_ns, seen.heard_ns, control.mono_ns()
                )
        self.control = control
        self.protecting = Protecting(control, _Sides(self))
        self.deleting = Deleting(control, self.protecting)
        self.looks = DeletionSweep(control, _Sides(self), _Revoking(self))  # type: ignore[arg-type]

    def call(self, work: Callable[[Any], Any]) -> None:
        """What an operator asks; of refusals he is told. Was it killed meanwhile, it may be done."""
        call: Any = SimpleNamespace(path={"machine": "web1"}, who="operator:admin", is_there=lambda: True)
        try:
            asyncio.run(work(call))
        except Killed:
            self.start()

    def point(self) -> None:
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                raise Killed

    def sweep(self) -> None:
        try:
            asyncio.run(self.looks.count())
            asyncio.run(self.looks.sweep())
        except Killed:
            self.start()

    def copied(self) -> Connection:
        return copied(self.db)

    # ---- what is

    def begin_container(self) -> None:
        self.made += 1
        self.registry = f"{VAULT}-{self.made:016x}"
        self.containers[self.registry] = Container("web1", self.agent.identity, self.now_s, self.now_s)

    @property
    def replicates(self) -> bool:
        return self.agent.is_there and self.agent.captures and (not self.is_refused or self.is_cut_off)

    @property
    def is_refused(self) -> bool:
        return bool(self.revoked.names)

    def say(self, *names: str) -> None:
        """Who is revoked from now on."""
        self.revoked = Revocations(
            names=[*names], since={"agent:web1": self.revoked.since.get("agent:web1", 0) + 1}
        )
        self.control.revoked = self.revoked

    def write(self) -> None:
        """What a machine that replicates does all the time."""
        if not self.replicates:
            return
        if self.registry not in self.containers:
            self.begin_container()
        self.containers[self.registry].written_s = self.now_s

    def report(self) -> None:
        """Of the process server, and of the agent, if it is there and admitted."""
        self.write()
        if self.is_cut_off:
            return
        control, now_ns = self.control, self.control.now_ns()
        served = ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=self.replicates)})
        mono_ns = control.mono_ns()
        control.presence.learn(Role.PROCESS_SERVER, "ps1", msgspec.json.encode(served), now_ns, mono_ns)
        if not self.agent.is_there or self.is_refused:
            return
        agent = self.agent
        disks = [AgentDisk(name="sda", device="/dev/sda", mode="ordered")] if agent.captures else []
        available = [AvailableDisk(device="/dev/sda", sectors=8)]
        said = AgentReport(identity=agent.identity, wish=agent.wish, disks=disks, available=available)
        control.presence.learn(Role.AGENT, "web1", msgspec.json.encode(said), now_ns, mono_ns)
        inventory.ensure_machine(self.db, "web1", now_ns)
        is_it = self.containers.get(self.registry, None)
        answer = desired_state.answer(
            self.db,
            "web1",
            agent.wish,
            now_ns,
            offer=Offer.of(said),
            identity=agent.identity,
            is_the_machine=is_it is None or is_it.identity == agent.identity,
        )
        agent.wish = answer.desired.wish or agent.wish
        machine = inventory.find(self.db, "web1")
        if machine is None or machine.wish is None or machine.wish.verb is not Verb.STOP:
            self.said = None  # somebody wants otherwise, as the agent knows

    # ---- what happens

    def do(self, what: str, number: int) -> None:
        match what:
            case "pass":
                for _ in range(number + 1):
                    self.now_s += STEP_S
                    self.report()
                    self.sweep()
            case "stand still":
                self.now_s += number * HOUR_S
                self.write()
            case "delete":
                self.delete(AFTER_S[number % 2])
            case "keep":
                self.keep()
            case "unprotect":
                if self.is_known():
                    self.call(lambda call: self.protecting.unprotect(call, Nothing()))
            case "protect":
                wanted = Protection(disks=["/dev/sda"], offline=True, force=True, fewer=True)
                with contextlib.suppress(ToBeDeletedError, BeingDeletedError):
                    self.call(lambda call: self.protecting.protect(call, wanted))
                machine = inventory.find(self.db, "web1")
                if machine is not None and machine.protected:
                    self.has_spoken, self.said = True, None
            case "kill":
                self.kill_in = number
            case "back up":
                self.copies.append(self.copied())
            case "restore":
                self.put_back(self.copies[-1 - number % len(self.copies)])
                self.db = self.copied()
                restored.prepare(self.db, self.control.now_ns())
                self.said = None
                self.start()
            case "set the clock":
                self.ahead_s += (number - 5) * YEAR_S
            case "agent away":
                self.agent.is_there = False
            case "agent back":
                self.agent.is_there = True
                self.write()
            case "rebind":
                self.rebind(f"hw{number % 3}")
            case "deleted by hand":
                self.containers.pop(self.registry, None)
                if number % 2:
                    self.registry = ""
                if number % 3 == 0:
                    self.agent = Agent(f"hw{number % 3}")
                    self.begin_container()
                self.write()
            case "enrol anew":
                with contextlib.suppress(BeingDeletedError):
                    deletions.check_not_removed(self.db, "web1", VAULT, "Enrolment was refused")
                    self.say()
                    deletions.note_enrolled(self.db, "web1")
                    self.said = None  # it is wanted again
                    self.agent = Agent(self.agent.identity)
                    self.write()
            case "hold":
                self.is_held = True
            case "lands":
                self.land()
            case "cut off":
                self.is_cut_off = not self.is_cut_off
            case "set back":
                self.put_back(self.copies[-1])
                self.db = self.copied()
                self.start()
            case "read":
                self.read()
            case "storage away":
                self.is_storage_away = not self.is_storage_away

    def land(self) -> None:
        """What is on its way arrives."""
        on_the_way, self.on_the_way = self.on_the_way, []
        for name, changed, said in on_the_way:
            life = self.containers.get(name)
            if life is not None and _at(life.changed_s) <= changed:
                self.go(name, self.said if self.has_spoken else said, is_late=True)

    def put_back(self, db: Connection) -> None:
        """Another state of the database. One that knows nothing of the deletion comes too late for what is on its way."""
        if inventory.find(db, "web1") is None or not self.standing_in(db):
            self.land()
        self.db, self.has_spoken = db, False

    def go(self, name: str, said: Said | None, *, is_late: bool = False) -> None:
        self.check_may_go(name, said, is_late=is_late)
        del self.containers[name]
        self.deleted += 1

    def is_known(self) -> bool:
        return inventory.find(self.db, "web1") is not None

    def delete(self, after_s: int) -> None:
        if not self.is_known():
            return
        life = self.containers.get(self.registry)
        identity = life.identity if life is not None else ""
        before = self.standing
        with contextlib.suppress(BeingDeletedError, TransientError, ContainerMissingError):
            self.call(lambda call: self.deleting.delete(call, DeletionRequest(after_s=after_s)))
        if self.standing not in (before, ""):
            self.has_spoken = True
            self.said = Said(self.now_s, after_s, life, identity)

    def keep(self) -> None:
        if not self.is_known():
            return
        with contextlib.suppress(BeingDeletedError, TransientError):
            self.call(lambda call: self.deleting.keep(call, Nothing()))
        if not self.standing:
            self.has_spoken = True
            self.said = None

    def rebind(self, identity: str) -> None:
        """As sides.py does: what is to be deleted is fenced."""
        life = self.containers.get(self.registry)
        try:
            deletions.check_not_removed(self.db, "web1", VAULT, "")
        except BeingDeletedError:
            return
        self.agent = Agent(identity)
        if life is not None:
            life.identity = identity
            life.changed_s += bool(self.standing)
        self.write()

    @property
    def standing(self) -> str:
        return self.standing_in(self.db)

    @staticmethod
    def standing_in(db: Connection) -> str:
        machine = inventory.find(db, "web1")
        return "" if machine is None or machine.deletion is None else machine.deletion.id

    def read(self) -> None:
        """By a grant: the row, then the policy."""
        life = self.containers.get(self.registry)
        if life is None:
            return
        now_ns = self.control.now_ns()
        end_ns = now_ns + GRANT_S * SECOND_NS
        grant = Grant(
            id=f"{self.now_s:x}-{len(self.copies)}", machine="web1", container=self.registry, who="x", host="",
            given_ns=now_ns, expires_ns=end_ns,
        )  # fmt: skip
        try:
            deletions.check_readable(self.db, "web1", VAULT)
        except BeingDeletedError:
            return
        with contextlib.suppress(IntegrityError):  # twice in one moment
            grants.add(self.db, grant)
        life.granted_s = self.now_s + GRANT_S
        life.changed_s = self.now_s

    def check_may_go(self, name: str, said: Said | None, *, is_late: bool) -> None:
        """`is_late`: who comes back in the meantime, cut off so that nobody tells him, comes too late."""
        life = self.containers[name]
        if name == VAULT or said is None:
            raise Violated(f"{name} was deleted, and nobody has said so")
        if self.now_s - said.at_s < said.after_s:
            raise Violated(f"{name} was deleted {self.now_s - said.at_s} s after somebody said so")
        if life is not said.life or life.identity != said.identity:
            raise Violated(f"{name} is {life}, and that was said of {said.life}")
        if (self.replicates and not is_late) or life.granted_s > self.now_s:
            raise Violated(f"{name} was deleted while something of it runs: {life}, {self.agent}")


class _Control(Control):
    world: World

    def now_ns(self) -> int:
        return max(0, START_NS + (self.world.now_s + self.world.ahead_s) * SECOND_NS)

    def mono_ns(self) -> int:
        return (self.world.now_s + 1) * SECOND_NS


class _Database:
    trouble = None

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, work: Callable[[Connection], Any], **_: Any) -> Any:
        self._world.point()
        db = self._world.db
        db.commit()  # what was done past the server
        with db.begin():
            result = work(db)
        self._world.point()
        return result


class _Sides(Sides):
    """Storage is the world's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._control = world.control

    async def ask(self, _machine: str) -> None:
        pass

    def bound(self, _machine: str) -> str:
        life = self._world.containers.get(self._world.registry)
        return life.identity if life is not None else ""

    def is_the_machine(self, _machine: str, identity: str) -> bool:
        life = self._world.containers.get(self._world.registry)
        return life is None or life.identity == identity

    def forget(self, _machine: str) -> None:
        pass


class _Revoking:
    def __init__(self, world: World) -> None:
        self._world = world

    async def refuse(
        self, subject: str, _reason: str, _who: str, *, still: Callable[[Connection], bool]
    ) -> RefusedList:
        self._world.point()
        if still(self._world.db):
            self._world.say(subject)
        self._world.point()
        return RefusedList(certificates=[])


class _Storage:
    """What config_server/storage/account.py, shared/machine/storage.py and removal.py give."""

    vault = SimpleNamespace(container=VAULT)
    place = VAULT

    def __init__(self, world: World) -> None:
        self._world = world

    def machines(self) -> _Storage:
        return self

    async def last_point(self, _machine: str) -> None:
        return None

    async def points(self, machine: str) -> PointList:
        return PointList(machine=machine, points=[])

    def forget(self, _machine: str) -> None:
        pass

    async def named(self, _machine: str) -> str | None:
        self._check_there()
        return self._world.registry or next(iter(self._world.containers), None)

    async def unregister(self, _machine: str, container: str) -> str:
        self._world.point()
        if self._world.registry == container:
            if container in self._world.containers:
                raise Violated(f"the entry of {container} goes before it")
            self._world.registry = ""
        self._world.point()
        return self._world.registry

    def _check_there(self) -> None:
        self._world.point()
        if self._world.is_storage_away:
            raise TransientError("Could not ask storage")


class _Removal:
    """In removal.py's place."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def look(self, storage: _Storage, machine: str, container: str) -> Found:
        named = await storage.named(machine) or ""
        life = self._world.containers.get(container)
        if life is None:
            return Found(named=named, vault=VAULT)
        now_s = self._world.now_s
        return Found(
            named=named,
            vault=VAULT,
            metadata={"machine": life.machine, "vault": VAULT},
            noted=life.noted,
            changed=_at(life.changed_s),
            identity=life.identity,
            date=_at(now_s),
            written=_at(life.written_s),
            granted="understudy-1" if life.granted_s > now_s else "",
        )

    async def remove_container(self, storage: _Storage, container: str, changed: dt.datetime) -> None:
        storage._check_there()
        life = self._world.containers.get(container)
        if life is None:
            raise ContainerMissingError("Could not delete it")
        if self._world.is_held:
            self._world.is_held = False
            self._world.on_the_way.append((container, changed, self._world.said))
            raise TransientError("No answer")
        if _at(life.changed_s) > changed:
            raise PreconditionError("Could not delete it")
        self._world.go(container, self._world.said)
        self._world.point()

    async def fence(self, storage: _Storage, container: str) -> None:
        storage._check_there()
        life = self._world.containers.get(container)
        if life is None:
            raise ContainerMissingError("Could not change it")
        life.changed_s = max(self._world.now_s, life.changed_s + 1)
        self._world.point()

    async def note(self, storage: _Storage, container: str, deletion: str) -> Written:
        return self._write(storage, container, deletion)

    async def renew(self, storage: _Storage, container: str, deletion: str) -> Written | None:
        is_it = await self.noted(storage, container) == deletion
        return self._write(storage, container, deletion) if is_it else None

    async def take_out(self, storage: _Storage, container: str, deletion: str) -> Written | None:
        is_it = await self.noted(storage, container) == deletion
        return self._write(storage, container, NONE) if is_it else None

    async def take_back(self, storage: _Storage, container: str, written: Written) -> None:
        storage._check_there()
        life = self._world.containers.get(container)
        if life is not None and written.etag == str(life.writes):
            self._write(storage, container, written.before)

    def _write(self, storage: _Storage, container: str, deletion: str) -> Written:
        storage._check_there()
        life = self._world.containers.get(container)
        if life is None:
            raise ContainerMissingError("Could not write it")
        before, life.noted, life.writes = life.noted, deletion, life.writes + 1
        self._world.point()
        return Written(before, str(life.writes))

    async def noted(self, storage: _Storage, container: str) -> str:
        storage._check_there()
        life = self._world.containers.get(container)
        if life is None:
            raise ContainerMissingError("Could not read it")
        return life.noted

    async def others(self, storage: _Storage, machine: str, container: str) -> list[str]:
        return []

    async def is_gone(self, storage: _Storage, container: str) -> bool:
        storage._check_there()
        return container not in self._world.containers


def _at(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(START_NS // SECOND_NS + second, dt.UTC)


def lived(steps: list[Step]) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deletion_sweep, "PASS_S", PASS_S)
        world = World()
        for user in (deleting, deletion_sweep):
            patch.setattr(user, "removal", _Removal(world))
        for what, number in steps:
            # Looked up when it is needed: a restart makes another.
            world.do(what, number)
        return world


@settings(max_examples=examples(200), deadline=None)
@given(LIVES)
@example([("pass", 0), ("delete", 0), ("pass", 9)])
@example(
    [("pass", 0), ("agent away", 0), ("delete", 0), ("back up", 0), ("pass", 9), ("restore", 0), ("pass", 9)]
)
@example(
    [("pass", 0), ("delete", 1), ("pass", 2), ("set the clock", 9), ("pass", 3), ("keep", 0), ("pass", 9)]
)
def test_nothing_is_deleted_of_which_nobody_says_so_or_too_early_or_in_use(steps: list[Step]) -> None:
    world = lived(steps)
    assert sqlite.raw_of(world.db).execute("PRAGMA integrity_check").fetchone()[0] == "ok"


GOES: Final = [("pass", 0), ("delete", 0), ("pass", 9), ("pass", 2)]


def test_what_was_said_is_done_and_leaves_nothing_but_what_happened() -> None:
    world = lived(GOES)
    assert (world.containers, world.registry, world.deleted) == ({}, "", 1)
    assert not world.is_known()
    assert world.revoked.names == ["agent:web1"]
    said = [*world.db.scalars(select(audit.c.action).order_by(audit.c.id))]
    assert said[-3:] == ["machine.unprotect", "machine.delete", "machine.deleted"]


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_wherever_it_is_killed_it_goes_on(kills: list[int]) -> None:
    steps: list[Step] = [("pass", 0), ("delete", 0), ("pass", 6)]
    for at in kills:
        steps += [("kill", at), ("pass", 1)]
    world = lived([*steps, ("kill", 1_000_000), ("pass", 9)])
    if world.standing:  # killed with its request on the way: a person has to say it again, who does not know what became of it
        assert world.control.hindered[world.standing].code == "US631"
        world = lived([*steps, ("kill", 1_000_000), ("pass", 9), ("delete", 0), ("pass", 9), ("pass", 2)])
    assert (world.containers, world.registry, world.is_known()) == ({}, "", False)


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(st.just("set the clock"), st.integers(0, 9)), max_size=4), st.integers(0, 4))
def test_no_clock_hinders_or_hastens_it(clocks: list[Step], before: int) -> None:
    steps: list[Step] = [("pass", 0), ("delete", 0), ("pass", before), *clocks]
    assert lived([*steps, ("pass", max(0, 3 - before))]).deleted == 0
    assert lived([*steps, ("pass", 9)]).deleted == 1


# ---- each rule is needed


def nothing(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_, **__: None


def no_new_incarnation(_real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda db: incarnations.history(db)[-1]


def by_the_clock(real: Callable[..., Any]) -> Callable[..., Any]:
    def count(db: Any, name: str, id_: str, _passed_ns: int, now_ns: int) -> Any:
        before = inventory.machine(db, name).deletion
        assert before is not None
        return real(db, name, id_, now_ns - before.counted_ns, now_ns)

    return count


def any_act(_real: Callable[..., Any]) -> Callable[..., Any]:
    def of_acts(name: str, one: Any, _wish: Any, incarnation: str) -> Any:
        return DeletionUnconfirmedError(name) if one.incarnation != incarnation else None

    return of_acts


def no_grants(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, one, found: real(name, one, replace(found, granted=""))


def no_identity(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, one, found: real(name, one, replace(found, identity=one.identity))


def no_look_into_the_log(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, one, found: real(name, one, replace(found, written=None))


def any_note(real: Callable[..., Any]) -> Callable[..., Any]:
    if not inspect.iscoroutinefunction(real):
        return lambda *_: None

    async def renew(self: Any, storage: Any, container: str, _deletion: str) -> Written:
        return Written(NONE, "")

    return renew


def no_fence(real: Callable[..., Any]) -> Callable[..., Any]:
    async def fence(self: Any, storage: Any, container: str) -> None:
        life = self._world.containers.get(container)
        changed_s = None if life is None else life.changed_s
        await real(self, storage, container)
        if life is not None and changed_s is not None:
            life.changed_s = changed_s

    return fence


AWAY: Final = [("pass", 0), ("agent away", 0)]
DUE: Final = [("pass", 9), ("pass", 1)]
RESTORED: Final = [*AWAY, ("delete", 0), ("back up", 0), ("restore", 0), *DUE]
READ: Final = [*AWAY, ("back up", 0), ("read", 0), ("restore", 0), ("delete", 0), ("pass", 9)]
"""By a grant of which the backup does not know."""
MOVED: Final = [*AWAY, ("delete", 0), ("rebind", 1), ("agent away", 0), *DUE]
CUT_OFF: Final = [("pass", 0), ("cut off", 0), ("delete", 0), *DUE]
ENROLLED: Final = [*AWAY, ("delete", 0), ("pass", 6), ("enrol anew", 0), ("agent away", 0), *DUE]
LATE: Final = [*AWAY, ("hold", 0), ("delete", 0), ("pass", 7), ("keep", 0), ("lands", 0)]
"""Its request was on its way when the deletion was taken back."""
LATE_AND_RESTORED: Final = [
    *AWAY, ("hold", 0), ("delete", 0), ("back up", 0), ("pass", 7), ("restore", 0), ("keep", 0), ("lands", 0),
]  # fmt: skip
SET_BACK: Final = [*AWAY, ("delete", 0), ("back up", 0), ("pass", 0), ("keep", 0), ("set back", 0), *DUE]
"""Nobody noticed."""
BROUGHT: Final = [
    ("pass", 0), ("delete", 0), ("back up", 0), ("storage away", 0), ("keep", 0), ("storage away", 0), ("protect", 0),
    ("pass", 0), ("set back", 0), ("pass", 0), ("agent away", 0), *DUE,
]  # fmt: skip
"""Its database was set back, and nobody noticed, nor is it in storage; but its agent knows of the later act."""


@pytest.mark.parametrize(
    ("where", "mutant", "story"),
    [
        ([(incarnations, "begin")], no_new_incarnation, RESTORED),
        (
            [(deletions, "count")],
            by_the_clock,
            [*AWAY, ("delete", 0), ("set the clock", 9), ("pass", 2)],
        ),
        ([(deletion, "of_acts"), (deletions, "of_acts")], nothing, RESTORED),
        ([(deletion, "of_acts"), (deletions, "of_acts")], any_act, BROUGHT),
        ([(deletion, "of_storage")], no_grants, READ),
        ([(deletion, "of_storage")], no_identity, MOVED),
        ([(deletion, "of_storage")], no_look_into_the_log, CUT_OFF),
        ([(deletions, "note_enrolled")], nothing, ENROLLED),
        ([(_Removal, "fence")], no_fence, LATE),
        ([(_Removal, "fence")], no_fence, LATE_AND_RESTORED),
        ([(deletion, "of_note"), (_Removal, "renew"), (_Removal, "take_out")], any_note, SET_BACK),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    where: list[tuple[Any, str]],
    mutant: Callable[..., Any],
    story: list[Step],
) -> None:
    """Where a rule stands behind others, the story is the one that they do not see."""
    lived(story)
    for module, name in where:
        monkeypatch.setattr(module, name, mutant(getattr(module, name)))
    with pytest.raises(Violated):
        lived(story)


def test_time_in_which_the_server_stood_still_does_not_count() -> None:
    """Nobody could take it back then."""
    steps: list[Step] = [*AWAY, ("delete", 0), ("pass", 0), ("stand still", 9), ("pass", 2)]
    assert lived(steps).deleted == 0
    assert lived([*steps, ("pass", 5)]).deleted == 1
