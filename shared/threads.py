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
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):  # nor does a second one make it shorter
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody hears of it any more
        raise
