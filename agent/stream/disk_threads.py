"""Calls that block on one disk, in threads of that disk's own. A disk that never answers holds these, and nothing and nobody else.

The threads are daemons: one that hangs in the kernel must not keep the process from ending. The descriptor is closed by whoever lets go of
it last, be it `close` or a thread that comes back long after: no call ever works on a descriptor that is another's by now.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from shared.errors import DeviceError, cause_of

PARALLEL: Final = 2
_R = TypeVar("_R")


class DiskThreads:
    def __init__(self, path: str) -> None:
        """Opens the disk, in a thread and now: what is at this path later may be another disk."""
        self._path = path
        self._fd = -1
        self._failed: DeviceError | None = None
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[int], Any]] | None] = queue.SimpleQueue()
        for i in range(PARALLEL):
            work = self._work if i else self._open_and_work
            threading.Thread(target=work, name=f"disk {path} {i}", daemon=True).start()

    def run(self, call: Callable[[int], _R]) -> Future[_R]:
        """`call(descriptor)` in a thread. Raises, through the future, DeviceError when the disk could not be opened."""
        future: Future[_R] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """Never waits. Calls that have not begun are not made."""
        with self._lock:
            self._closed = True
            self._let_go()
        self._opened.set()
        for _ in range(PARALLEL):
            self._calls.put(None)

    # -- in the threads ------------------------------------------------------------------------------------

    def _open_and_work(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as exc:
            self._failed = DeviceError(
                f"Protected disk {self._path} could not be opened",
                cause=cause_of(exc),
                action="Check that it is attached, then restart the agent. Other disks are not affected.",
            )
        else:
            with self._lock:
                self._fd = fd
                self._let_go()
        self._opened.set()
        self._work()

    def _work(self) -> None:
        self._opened.wait()
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = self._use(call)
            except BaseException as exc:  # noqa: BLE001 - whoever awaits the future gets it
                future.set_exception(exc)
            else:
                future.set_result(result)

    def _use(self, call: Callable[[int], _R]) -> _R:
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._closed:
                raise DeviceError(
                    f"Protected disk {self._path} is not read any more", cause="the agent stops"
                )
            self._users += 1
        try:
            return call(self._fd)
        finally:
            with self._lock:
                self._users -= 1
                self._let_go()

    def _let_go(self) -> None:
        if self._closed and self._users == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
