"""Blocking work in threads, done to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def run_to_end(executor: Executor, work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread. A task that is cancelled meanwhile goes on only when the thread
    is done.

    A thread cannot be cancelled. If its task went away, the thread would go on writing to files that
    somebody else may have opened since.
    """
    running = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
