"""Blocking work in threads, done to its end; and a host that has no room for one more thread.

A thread cannot be cancelled. If its task went away, the thread would go on writing to files that somebody else may have opened since.
And where there is no room for one more thread, Python's executors say so of work that they have queued already, and that one of their other
threads begins when nobody knows of it any more. What says so is a bare RuntimeError, or a MemoryError: whoever catches everything takes it
for damage, or for a bug. So it is a NoThreadError here, once and for all who use threads; the event loop of a daemon has `Threads`, too, so
that `asyncio.to_thread` and the look-up of names raise it as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

from shared.errors import NoThreadError

T = TypeVar("T")
P = ParamSpec("P")

_NO_ROOM: Final = "new thread"
"""In the words of Python's RuntimeError; there is no other mark."""
_OVER: Final = ("shutdown", "closed")
"""In the words of Python's RuntimeErrors for an executor, a loop or an interpreter that has ended: this one stays what it is."""


def no_room(exc: BaseException) -> NoThreadError | None:
    """What it is called, if it is Python's for a host that has no room for a thread, or no memory. For those who catch everything."""
    if isinstance(exc, NoThreadError):
        return exc
    if isinstance(exc, MemoryError) or (type(exc) is RuntimeError and _NO_ROOM in str(exc)):
        return _no_thread(exc)
    return None


def _no_thread(exc: BaseException) -> NoThreadError:
    return NoThreadError("There was no room for what was to be done", cause=repr(exc))


def start(thread: threading.Thread) -> None:
    """Raises NoThreadError."""
    try:
        thread.start()
    except Exception as exc:
        raise _no_thread(exc) from exc


class Threads(ThreadPoolExecutor):
    """An executor whose `submit` raises NoThreadError: then nobody does the work, not later either."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        super().__init__(max_workers, thread_name_prefix)
        self._uncounted = threading.Semaphore(0)
        """Threads of Python 3.11 count themselves as idle after each work, also after one for which none could be begun, and none was
        counted as busy. More would be counted on than there are, and work would wait behind what hangs. (Of a later Python, which counts
        better, one thread more than needed is begun at worst.)"""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        while self._uncounted.acquire(blocking=False):
            if not self._idle_semaphore.acquire(blocking=False):
                self._uncounted.release()
                break
        return _submitted(super().submit, partial(fn, *args, **kwargs), self._uncounted.release)


async def in_thread(work: Callable[..., T], *args: object, executor: Executor | None = None) -> T:
    """What `work` returns, run in a thread of `executor` (None: the event loop's own). A caller that is cancelled meanwhile, once or more
    often, goes on only when the thread is done. Raises NoThreadError as `begun` does, and what `work` raises as it is.
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
    """Has `work` done in a thread of `executor` (None: the event loop's own). Raises NoThreadError when there is no room for a thread: then
    nobody does it, not later either."""
    submit = partial(asyncio.get_running_loop().run_in_executor, executor)
    return asyncio.wrap_future(_submitted(submit, work))


def _submitted(
    submit: Callable[[Callable[[], None]], object],
    work: Callable[[], T],
    uncounted: Callable[[], None] = lambda: None,
) -> Future[T]:
    """What `work` will give, once `submit` has taken it. `uncounted` is called once for work that was queued without a thread, when one
    has come to it: whether that was taken back, or begun before `submit` failed."""
    result: Future[T] = Future()
    queued = [work]
    """Emptied when it is taken back: an executor keeps what it was given until a thread comes to it."""
    has_no_thread = False

    def do() -> None:
        if not result.set_running_or_notify_cancel():
            if has_no_thread:
                uncounted()
            return
        try:
            result.set_result(queued[0]())
        except BaseException as exc:  # noqa: BLE001 - whoever waits for it is told
            result.set_exception(exc)

    try:
        submit(do)
    except BaseException as exc:
        has_no_thread = True
        if result.cancel():
            queued.clear()
            if isinstance(exc, NoThreadError) or not isinstance(exc, Exception) or _is_over(exc):
                raise
            raise _no_thread(exc) from exc
        uncounted()  # another thread has begun it already
    return result


def _is_over(exc: Exception) -> bool:
    return isinstance(exc, RuntimeError) and any(word in str(exc) for word in _OVER)


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
