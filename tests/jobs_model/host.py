"""A config server's host. It goes on when the model says so, and where the model says so; its clocks are the model's."""

from __future__ import annotations

import asyncio
import enum
import random
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS

_T = TypeVar("_T")


class Killed(BaseException):
    """No `except` of the program sees it."""


class Loop(asyncio.SelectorEventLoop):
    """Of one host. Timers go by its clock, which the model sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._calls = 0
        super().__init__()

    def time(self) -> float:
        return self.now_s

    def call_soon(self, *args: Any, **more: Any) -> asyncio.Handle:
        self._calls += 1
        return super().call_soon(*args, **more)

    def settle(self) -> None:
        """Until everybody waits."""
        while True:
            before = self._calls
            super().call_soon(self.stop)
            self.run_forever()
            if self._calls == before:
                return


class Ask(Protocol):
    """What a host asked of something outside, until it has heard the answer."""

    def advance(self) -> bool:
        """One step of it. Whether it is over."""

    def drop(self) -> None:
        """Its host is no more."""


class Said:
    """The answer to somebody who may not listen any more."""

    def __init__(self, host: Host) -> None:
        self.future: asyncio.Future[Any] = host.loop.create_future()
        self.outcome: Callable[[], Any] | None = None

    def returned(self, value: Any) -> None:
        self.outcome = lambda: self.future.set_result(value)

    def raised(self, exc: BaseException) -> None:
        self.outcome = lambda: self.future.set_exception(exc)

    def tell(self) -> None:
        assert self.outcome is not None
        if not self.future.done():
            self.outcome()


class Databases(Protocol):
    """Where a host's transactions go."""

    def ask(self, host: Host, work: Callable[[Connection], Any]) -> tuple[Ask, asyncio.Future[Any]]: ...


class Still(enum.Enum):
    WITH_ITS_CLOCK = "a machine that was suspended"
    BESIDE_ITS_CLOCK = "a process that was stopped"


class Host:
    def __init__(self, name: str, databases: Databases, chance: random.Random, true_ns: Callable[[], int]) -> None:
        self.name = name
        self.loop = Loop()
        self.asks: list[Ask] = []
        self.still: Still | None = None
        self.stood_s = 0.0
        """All in all."""
        self.stops = 0
        """How often it stood still, or its database was put back under it."""
        self.is_dead = False
        self._databases = databases
        self._true_ns = true_ns
        self._ahead_ns = chance.randrange(-55, 56) * SECOND_NS
        self._tasks: list[asyncio.Task[Any]] = []
        self._surely = weakref.WeakKeyDictionary[asyncio.Task[Any], int]()
        self._stood_at_s = 0.0
        self.loop.set_task_factory(self._noted)
        self.loop.set_exception_handler(lambda *_: None)  # `failures` has them

    def _noted(self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **more)
        self._tasks.append(task)
        return task

    def now_ns(self) -> int:
        """What its wall clock says."""
        return self._true_ns() + self._ahead_ns

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.create_task(work)
        self.settle()

    def settle(self) -> None:
        if self.still is None:
            self.loop.settle()

    def later(self, seconds: float) -> None:
        if self.still is None:
            self.loop.now_s += seconds
            self.loop.settle()
        else:
            self.stood_s += seconds

    def stand_still(self, how: Still) -> None:
        self.still, self.stops = how, self.stops + 1
        self._stood_at_s = self.stood_s

    def wake(self) -> None:
        """What had been answered is heard first, then the clock is looked at."""
        how, self.still = self.still, None
        self.loop.settle()
        if how is Still.BESIDE_ITS_CLOCK:
            self.loop.now_s += self.stood_s - self._stood_at_s
            self.stood_s = self._stood_at_s
            self.loop.settle()

    def failures(self) -> list[BaseException]:
        """Of what has ended since the last look."""
        ended = [task for task in self._tasks if task.done()]
        self._tasks = [task for task in self._tasks if not task.done()]
        found = [None if task.cancelled() else task.exception() for task in ended]
        return [exc for exc in found if exc is not None]

    def advance(self, ask: Ask) -> None:
        if ask.advance() and ask in self.asks:
            self.asks.remove(ask)
        self.settle()

    def kill(self) -> None:
        self.is_dead, self.still = True, None
        for ask in self.asks:
            ask.drop()
        self.asks.clear()
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            self.loop.settle()
        self.failures()
        self.loop.close()

    # ---- as the program knows it

    async def run(self, work: Callable[[Connection], _T], *, vital: bool = False) -> _T:
        """As Database.run: the transaction runs to its end even when the caller is cancelled."""
        if self.is_dead:
            raise Killed
        ask, answer = self._databases.ask(self, work)
        self.asks.append(ask)
        stops = self.stops
        found: _T = await answer
        if stops == self.stops and (task := asyncio.current_task()) is not None:
            self._surely[task] = stops
        return found

    def surely(self) -> int:
        """Of the current task: how often this host had stood still when a transaction of it was last begun and answered without that."""
        task = asyncio.current_task()
        return -1 if task is None else self._surely.get(task, -1)
