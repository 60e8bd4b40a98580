"""Bounded concurrency for storage requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable


async def parallel(work: Iterable[Callable[[], Awaitable[None]]], width: int) -> None:
    """Run all of `work`, at most `width` at a time, taking each item only when it can start.

    Raises the first error as it is (not in a group), after the others were cancelled and have ended. (A TaskGroup would do for that, but
    that of Python 3.11.2, which is Debian 12's, leaves its task marked as being cancelled: later time-outs in it then end it.)
    """
    items = iter(work)

    async def worker() -> None:
        for item in items:
            await item()

    tasks = [asyncio.create_task(worker()) for _ in range(width)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
