"""A world in which jobs make things, servers that die, stand still and come back, and requests that land late. For the property of jobs.

Whatever an owner does, each transaction and each request, waits until the test lets it go on. A request that was let go may land at once,
or later, though its owner was killed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from config_server.jobs.kinds import Kind, Kinds, Waits
from config_server.store.journal import Job
from shared.errors import RequestError, UnreachableError

_T = TypeVar("_T")
FOREIGN: Final = "somebody else"
LASTING_S: Final = 600


class Killed(BaseException):
    """No `except` of the program sees it, and no `finally` of its does anything."""


class World:
    """Names, and whose they are."""

    def __init__(self) -> None:
        self.things: dict[str, str] = {}
        self.now_s = 0
        self.on_their_way: list[tuple[int, Callable[[], object]]] = []
        """Requests whose senders have stopped waiting, since when."""
        self.failing: set[str] = set()
        """Names whose making fails, every time."""
        self.stuck: set[str] = set()
        """Names whose removal fails, every time."""

    def later(self, seconds: int) -> None:
        """No request is on its way for longer than LASTING_S."""
        self.now_s += seconds
        while self.on_their_way and self.now_s - self.on_their_way[0][0] > LASTING_S:
            self.on_their_way.pop(0)[1]()


class Place:
    """One config server, as it sees the database and the world."""

    def __init__(self, world: World, transact: Callable[[Callable[[Connection], Any]], Any]) -> None:
        self._world = world
        self._transact = transact
        self.waiting: list[asyncio.Future[None]] = []
        self.is_dead = False

    async def _gate(self) -> None:
        if self.is_dead:
            raise Killed
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future
        if self.is_dead:
            raise Killed

    async def run(self, work: Callable[[Connection], _T], *, vital: bool = False) -> _T:
        """As Database.run."""
        await self._gate()
        found: _T = self._transact(work)
        await self._gate()  # it may die between the commit and its hearing of it
        return found

    async def get(self, name: str) -> str | None:
        await self._gate()
        return self._world.things.get(name)

    async def put(self, name: str, whose: str, *, late: bool) -> None:
        """Only where nothing is: as most of Azure's requests it takes no condition, so the look before it is all there is."""
        await self._gate()
        if late:
            self._world.on_their_way.append(
                (self._world.now_s, lambda: self._world.things.setdefault(name, whose))
            )
            raise UnreachableError("no answer", cause="it did not come in time")
        self._world.things.setdefault(name, whose)
        await self._gate()

    async def delete(self, name: str) -> None:
        await self._gate()
        if name in self._world.stuck:
            raise UnreachableError(f"{name} was not removed", cause="it is locked")
        self._world.things.pop(name, None)
        await self._gate()


class Makes:
    """A step that makes one thing."""

    def __init__(
        self, name: str, place: Place, world: World, late: Callable[[], bool], waits: Callable[[], bool]
    ) -> None:
        self.name = name
        self._place = place
        self._world = world
        self._late = late
        self._waits = waits

    def _thing(self, job: Job) -> str:
        return f"{job.id}/{self.name}"

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any | Waits:
        name = self._thing(job)
        there = await self._place.get(name)
        if there not in (None, job.id):
            raise RequestError(f"{name} is {there}'s")
        if there is None:
            if name in self._world.failing or self.name in self._world.failing:
                raise RequestError(f"{name} cannot be made")
            await self._place.put(name, job.id, late=self._late())
        if self._waits():
            return Waits("it is not ready", 30.0)
        return {"made": name}

    async def undo(self, job: Job) -> bool | Waits:
        name = self._thing(job)
        if await self._place.get(name) != job.id:
            return False
        await self._place.delete(name)
        return True


def kind_of(place: Place, world: World, late: Callable[[], bool], waits: Callable[[], bool]) -> Kinds:
    steps = [Makes(name, place, world, late, waits) for name in ("a", "b", "c")]
    return Kinds([Kind(name="made", version=1, steps=steps, fence=None, lasting_s=LASTING_S)])
