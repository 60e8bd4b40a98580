"""Blocking work in threads, done to its end.

A thread cannot be cancelled. If its task went away, the thread would go on writing to files that somebody else may have opened since.
And where there is no room for one more thread, an executor says so of work that it has queued already, and that one of its other threads
begins when nobody knows of it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: object, executor: Executor | None = None) -> T:
    """What `work` returns, run in a thread of `executor` (None: the event loop's own). A caller that is cancelled meanwhile, once or more
    often, goes on only when the thread is done. Raises RuntimeError as `begun` does.
    """
    running = begun(partial(work, *args), executor)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with contextlib.suppress(asyncio.CancelledError):
            await ended(running)
        if not running.cancelled():
            running.exception()  # nobody hears of it any more
        raise


def begun(work: Callable[[], T], executor: Executor | None = None) -> asyncio.Future[T]:
    """Has `work` done in a thread of `executor` (None: the event loop's own). Raises RuntimeError when there is no room for a thread: then
    nobody does it, not later either."""
    result: Future[T] = Future()

    def do() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - whoever waits for it is told
            result.set_exception(exc)

    loop = asyncio.get_running_loop()
    try:
        loop.run_in_executor(executor, do)
    except RuntimeError:
        if result.cancel():
            raise
        # Another thread has begun it already.
    return asyncio.wrap_future(result)


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
