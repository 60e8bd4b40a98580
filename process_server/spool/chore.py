"""Work in the background that must get done: tried again with growing pauses, its trouble told meanwhile.

Storage requests are retried below (shared/blob/core.py). What fails here is the rest of the world: a cache
disk that is full or answers with an error, no file descriptors, a key that the vault lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from process_server.spool.trouble import Trouble
from shared.errors import FencedError, UnderstudyError

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
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def report(self, trouble: UnderstudyError | None) -> None:
        """Something about it is wrong, or right again."""
        self._trouble.report(trouble)

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._asked.clear()
            trouble: UnderstudyError | None = None
            try:
                done = await self._work()
            except FencedError:
                done = False
            except UnderstudyError as exc:
                done, trouble = False, exc
            if trouble is None:
                wait_s, pause_s = self._look_s, _FIRST_PAUSE_S
            else:
                wait_s, pause_s = pause_s * random.uniform(0.5, 1.0), min(2 * pause_s, _LONGEST_PAUSE_S)
            self.report(trouble)
            if not done:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._asked.wait()
            elif not self._asked.is_set():
                return
