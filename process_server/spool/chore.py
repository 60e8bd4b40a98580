"""Work in the background that must get done: tried again with growing pauses, its trouble told meanwhile.

Storage requests are retried below (shared/blob/core.py). What fails here is the rest of the world: a cache
disk that is full or answers with an error, no file descriptors, a key that the vault lacks or that cannot be had now.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from shared.daemon.threads import no_room
from shared.daemon.trouble import Trouble
from shared.errors import FencedError, UnderstudyError
from shared.waiting import wait_for

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class Chore:
    """`ask` for it whenever there may be something to do; `stop` it once, at the end."""

    def __init__(
        self, name: str, work: Callable[[], Awaitable[bool]], *, look_s: float, changed: Callable[[], None]
    ) -> None:
        """`work` says whether it is done. If it is not, or if another process server was faster, it is called
        again after `look_s`; after an error, after a pause.
        """
        self._name = name
        self._work = work
        self._look_s = look_s
        self._trouble = Trouble(name, changed)
        self._asked: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._troubled_at = -math.inf
        self._pause_s = _FIRST_PAUSE_S

    @property
    def trouble(self) -> UnderstudyError | None:
        """Why it cannot be done just now."""
        return self._trouble.error

    def ask(self) -> None:
        self._asked.set()
        if not self._stopped and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        self._stopped = True
        await self.halt()

    async def halt(self) -> None:
        """Cuts off what is being done; `ask` begins anew."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def report(self, trouble: UnderstudyError | None) -> None:
        """Something about it is wrong, or right again."""
        self._trouble.report(trouble)

    async def _run(self) -> None:
        while True:
            self._asked.clear()
            trouble: UnderstudyError | None = None
            try:
                done = await self._work()
            except FencedError:
                done = False
            except UnderstudyError as exc:
                done, trouble = False, exc
            except MemoryError as exc:
                done, trouble = False, no_room(exc)
            wait_s = self._look_s if trouble is None else self._pause()
            self.report(trouble)
            if not done:
                await wait_for(self._asked, wait_s)
            elif not self._asked.is_set():
                return

    def _pause(self) -> float:
        """Before the next try. It grows also when what failed was done in between, and soon failed again."""
        now = time.monotonic()
        calm = now - self._troubled_at > 2 * _LONGEST_PAUSE_S
        self._pause_s = _FIRST_PAUSE_S if calm else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._troubled_at = now
        return self._pause_s * random.uniform(0.5, 1.0)
