"""Bounded concurrency for storage requests, and threads that are not left alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


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


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """What `work` returns, run in a thread. A caller that is cancelled meanwhile goes on only when the thread is done."""
    running = asyncio.get_running_loop().run_in_executor(None, partial(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # nor does a second one make it shorter
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody hears of it any more
        raise
