"""One file, written by one thread at a time, that ends up holding what is newest.

A thread cannot be cancelled. Whoever waits for one may be: would the next one begin then, two threads might replace the file in the wrong
order, and what is old would stay. So the writing is a task of its own, which nobody who waits for it can end; what changes meanwhile is
written by the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final


class SingleWriter:
    """Call `changed` when there is something new, and `written` to have it written."""

    def __init__(self, name: str, write: Callable[[], Awaitable[bool]]) -> None:
        """`write` takes what is newest at its first step, writes it, and says whether it is on the disk. It is never called while it
        runs.
        """
        self._name: Final = name
        self._write: Final = write
        self._wanted = 0
        self._done = 0
        self._writing: asyncio.Task[bool] | None = None

    def changed(self) -> None:
        self._wanted += 1

    @property
    def is_due(self) -> bool:
        """Whether what is newest is not on the disk."""
        return self._done < self._wanted

    async def written(self) -> bool:
        """Whether all that was changed before the call is on the disk; tried once, or what is under way waited for."""
        version = self._wanted
        while self._done < version:
            if self._writing is None or self._writing.done():
                self._writing = asyncio.create_task(self._write_once(), name=self._name)
            if not await asyncio.shield(self._writing):
                return False
        return True

    async def close(self) -> None:
        """Waits for what is under way."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write_once(self) -> bool:
        version = self._wanted
        if not await self._write():
            return False
        self._done = version
        return True
