"""How many requests are under way at a time.

Two lanes share the connections: *small* requests (index appends, leases, documents, lists) and *bulk* (segments,
page data). However slow one machine's transfers are, they fill their own lane only, and the small requests of all
others go on. The pool has room for both lanes at once, so that nobody waits for a connection behind its lane.

Storage that throttles is asked for less at a time, in the lane that it throttles: half at once, then slowly more
(additive increase, multiplicative decrease, as TCP does).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

SMALL: Final = 16
BULK: Final = 32
CONNECTIONS: Final = SMALL + BULK
BULK_B: Final = 64 * 1024
"""From this size on, a request is bulk."""


class Width:
    """Pure: how many at a time, between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self._width = float(most)
        self._narrowed_at = float("-inf")

    @property
    def allowed(self) -> int:
        return int(self._width)

    def succeeded(self) -> None:
        """One more after as many successes as the lane is wide."""
        self._width = min(float(self._most), self._width + 1 / self._width)

    def throttled(self, began: float, now: float) -> None:
        """Half, once for all requests that were under way together: what began before the last narrowing says
        nothing about the width since."""
        if began >= self._narrowed_at:
            self._width = max(1.0, self._width / 2)
            self._narrowed_at = now


class Lane:
    def __init__(self, most: int) -> None:
        self.width: Final = Width(most)
        self._busy = 0
        self._waiting: Final[deque[asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until there is room, first come, first served."""
        await self._enter()
        try:
            yield
        finally:
            self._busy -= 1
            self._admit()

    def throttled(self, began: float) -> None:
        """A request that began at this monotonic time was answered so."""
        self.width.throttled(began, time.monotonic())

    async def _enter(self) -> None:
        if not self._waiting and self._busy < self.width.allowed:
            self._busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted at the same moment
                self._busy -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._busy < self.width.allowed:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._busy += 1
