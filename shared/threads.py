"""Blocking work in threads, done to its end.

A thread cannot be cancelled. If its task went away, the thread would go on writing to files that somebody else may have opened since.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: object, executor: Executor | None = None) -> T:
    """What `work` returns, run in a thread of `executor` (None: the event loop's own). A caller that is cancelled meanwhile, once or more
    often, goes on only when the thread is done.
    """
    running = asyncio.get_running_loop().run_in_executor(executor, partial(work, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(asyncio.CancelledError):
            await ended(running)
        if not running.cancelled():
            running.exception()  # nobody hears of it any more
        raise


async def ended(running: asyncio.Future[T]) -> None:
    """Returns when it is done, however it ended. A caller that is cancelled meanwhile, once or more often, is so only then."""
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
