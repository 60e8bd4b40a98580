"""What jobs make: things under names that follow from the job and the step, marked as the job's; and things of others.

A request is sent, has its effect, now or minutes later, and is answered, or not. As most of Azure's it takes no condition: the look before it
is all there is. A thing may be held by the things of later steps, as a network interface is by its virtual machine.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from config_server.jobs.kinds import Kind, Kinds, Waits
from config_server.store.journal import Job
from shared.errors import RequestError, UnderstudyError, UnreachableError
from tests.jobs_model.host import Host, Killed, Said

if TYPE_CHECKING:
    from tests.jobs_model.watch import Watch

FOREIGN: Final = "somebody else"
STEPS: Final = ("a", "b", "c")
WIRE_S: Final = 200.0
STILL_S: Final = 300.0
"""A host that stands still for longer does not wake."""
LASTING_S: Final = 600.0
PLAIN, FENCED = "plain", "fenced"
FENCE: Final = "b"


class World:
    def __init__(self, now_s: Callable[[], float], chance: random.Random) -> None:
        self.things: dict[str, str] = {}
        """Names, and whose they are."""
        self.on_their_way: list[tuple[float, str, str, Callable[[], None]]] = []
        """Of requests of which nobody hears: since when, what, name, effect."""
        self.refused: dict[str, type[UnderstudyError]] = {}
        """What fails, each time: `put a`, `delete a`."""
        self.is_late = self.is_waiting = self.holds = False
        self.asked_for: list[str] = []
        """Names that somebody looked at and is about to change, or has asked to be changed."""
        self._now_s = now_s
        self._chance = chance

    def later(self) -> None:
        while self.on_their_way and self._now_s() - self.on_their_way[0][0] >= WIRE_S:
            self.land(0)

    def land(self, number: int) -> None:
        self.on_their_way.pop(number)[-1]()

    def land_removals(self) -> None:
        while left := [n for n, (_, what, *_) in enumerate(self.on_their_way) if what == "delete"]:
            self.land(left[0])

    def send(self, what: str, name: str, effect: Callable[[], None]) -> bool:
        """Whether it had its effect already."""
        is_late = self.is_late and self._chance.random() < 0.6
        if is_late:
            self.on_their_way.append((self._now_s(), what, name, effect))
        else:
            effect()
        return not is_late

    def is_sent_at_once(self) -> bool:
        """Before its sender gives way to anything else."""
        return self._chance.random() < 0.4

    def is_spoken_of(self, name: str) -> bool:
        return name in self.asked_for or name in [each for _, _, each, _ in self.on_their_way]


class _Request:
    """Ask."""

    def __init__(self, host: Host, send: Callable[[], Any]) -> None:
        self.said = Said(host)
        self._send = send

    def advance(self) -> bool:
        if self.said.outcome is not None:
            self.said.tell()
            return True
        if self.said.future.done():
            return True  # cut off before it was sent
        try:
            self.said.returned(self._send())
        except UnderstudyError as exc:
            self.said.raised(exc)
        return False

    def drop(self) -> None:
        pass


class Makes:
    """A step that makes one thing. `by`: for whom it works, the runner or the janitor."""

    def __init__(self, name: str, host: Host, world: World, watch: Watch, by: str) -> None:
        self.name = name
        self._host = host
        self._world = world
        self._watch = watch
        self._by = by

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any | Waits:
        name = f"{job.id}/{self.name}"
        with self._in_it(name), self._watch.doing(self._host, job.id, self.name, results):
            there = await self._ask(lambda: self._world.things.get(name))
            if there not in (None, job.id):
                raise RequestError(f"{name} is {there}'s")
            if there is None:
                await self._ask(lambda: self._put(job, name))
            if self._world.is_waiting:
                return Waits("it is not ready", 30.0)
        return {"made": name}

    async def undo(self, job: Job) -> bool | Waits:
        name = f"{job.id}/{self.name}"
        with self._in_it(name), self._watch.undoing(self._host, job.id, self.name, self._by):
            if await self._ask(lambda: self._world.things.get(name)) != job.id:
                return False
            await self._ask(lambda: self._delete(job, name))
        return True

    @contextlib.contextmanager
    def _in_it(self, name: str) -> Iterator[None]:
        self._world.asked_for.append(name)
        try:
            yield
        finally:
            self._world.asked_for.remove(name)

    async def _ask(self, send: Callable[[], Any]) -> Any:
        if self._host.is_dead:
            raise Killed
        request = _Request(self._host, send)
        self._host.asks.append(request)
        if self._world.is_sent_at_once():
            request.advance()
        return await request.said.future

    def _put(self, job: Job, name: str) -> None:
        if refusal := self._world.refused.get(f"put {self.name}"):
            raise refusal(f"{name} cannot be made")
        self._watch.is_sent(self._host, job.id, self.name, self._by, "put")

        def effect() -> None:
            self._watch.made(job.id, self.name, self._world.things.get(name))
            self._world.things[name] = job.id

        self._sent("put", name, effect)

    def _delete(self, job: Job, name: str) -> None:
        if refusal := self._world.refused.get(f"delete {self.name}"):
            raise refusal(f"{name} was not removed")
        later = [f"{job.id}/{step}" for step in STEPS[STEPS.index(self.name) + 1 :]]
        held = [other for other in later if self._world.things.get(other) == job.id]
        if self._world.holds and held:
            raise RequestError(f"{name} was not removed", cause=f"{held} holds it")
        self._watch.is_sent(self._host, job.id, self.name, self._by, "delete")

        def effect() -> None:
            self._watch.removed(job.id, self.name, self._world.things.get(name))
            self._world.things.pop(name, None)

        self._sent("delete", name, effect)

    def _sent(self, what: str, name: str, effect: Callable[[], None]) -> None:
        if not self._world.send(what, name, effect):
            raise UnreachableError("no answer", cause="it did not come in time")


def kinds_of(host: Host, world: World, watch: Watch, by: str) -> Kinds:
    steps = [Makes(name, host, world, watch, by) for name in STEPS]
    return Kinds(
        [
            Kind(name=PLAIN, version=1, steps=steps, fence=None, lasting_s=LASTING_S),
            Kind(name=FENCED, version=1, steps=steps, fence=FENCE, lasting_s=LASTING_S),
        ]
    )
