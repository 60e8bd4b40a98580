"""Calls that block on one disk, in threads of that disk's own. A disk that never answers holds these, and nothing and nobody else.

The threads are daemons: one that hangs in the kernel must not keep the process from ending. The descriptor is closed by whoever lets go of
it last, be it `close` or a thread that comes back long after: no call ever works on a descriptor that is another's by now.

**What is read is what is captured.** A path is a label: a link is moved to a clone, a kernel name is given to another disk, between the
moment at which capture was fitted and any moment after it. So the disk is opened as `device_program.open_disk` does it, which believes
only device number and diskseq, the two by which capture is attached; and what a call gave is believed only if the descriptor still is that
disk when the call has returned (a medium is exchanged under an open device, too: its diskseq moves). A disk that cannot be opened fails
the call, and is opened by a later one.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from agent.capture.device_program import OtherDisk, check_is, open_disk
from agent.capture.disks import Disk
from shared.daemon import logging
from shared.daemon.threads import start
from shared.errors import DeviceError, NoThreadError, cause_of

_log = logging.get()

PARALLEL: Final = 2
MOST: Final = 8
"""Threads of a disk, with those that hang: two bad sectors must not keep the rest of a disk from being read, and a disk that is gone must
not hold threads without end."""
_R = TypeVar("_R")


class Call(Future[_R]):
    """What a call will give. One that has not begun can be cancelled, and then never does."""

    def __init__(self) -> None:
        super().__init__()
        self.began = math.inf
        """When a thread took it (monotonic); infinity: none has."""


class DiskThreads:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fd = -1
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        """Held while one thread opens the disk, which may hang; `_lock` never is."""
        self._calls: queue.SimpleQueue[tuple[Call[Any], Callable[[int], Any]] | None] = queue.SimpleQueue()
        self._threads: dict[threading.Thread, float] = {}
        """Since when each is in a call; infinity: in none."""
        self._patience_s = 0.0
        self._add_threads()

    def run(self, call: Callable[[int], _R], patience_s: float) -> Call[_R]:
        """`call(descriptor)` in a thread. Raises, through the future, DeviceError when the disk cannot be opened, or is another one.

        A thread that has been in one call for longer than `patience_s` is not counted on any more: there is another in its place, as soon
        as something is called, or by `tend`.
        """
        future: Call[_R] = Call()
        self._calls.put((future, call))
        self.tend(patience_s)
        return future

    def tend(self, patience_s: float) -> None:
        """Puts threads in the place of those that hang by now. For whoever waits, and calls nothing new meanwhile."""
        self._patience_s = patience_s
        self._add_threads()

    def _add_threads(self) -> None:
        with self._lock:
            for _ in range(min(PARALLEL + self._hanging, MOST) - len(self._threads)):
                thread = threading.Thread(target=self._work, name=f"disk {self._disk.path}", daemon=True)
                try:
                    start(thread)
                except NoThreadError as exc:
                    if not self._threads:
                        raise
                    _log.warning("no more threads can be had to read a disk", **exc.as_dict())
                    return
                self._threads[thread] = math.inf

    @property
    def _hanging(self) -> int:
        late = time.monotonic() - self._patience_s
        return sum(since <= late for since in self._threads.values())

    def close(self) -> None:
        """Never waits. Calls that have not begun are not made."""
        with self._lock:
            self._closed = True
            self._let_go()
        for _ in range(MOST):
            self._calls.put(None)

    # -- in the threads ------------------------------------------------------------------------------------

    def _work(self) -> None:
        me = threading.current_thread()
        while self._is_needed(me) and (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            future.began = self._threads[me] = time.monotonic()
            try:
                result = self._use(call)
            except BaseException as exc:  # noqa: BLE001 - whoever awaits the future gets it
                future.set_exception(exc)
            else:
                future.set_result(result)

    def _is_needed(self, me: threading.Thread) -> bool:
        """One that comes back late ends, if there is another in its place."""
        with self._lock:
            self._threads[me] = math.inf
            is_needed = len(self._threads) - self._hanging <= PARALLEL
            if not is_needed:
                del self._threads[me]
            return is_needed

    def _use(self, call: Callable[[int], _R]) -> _R:
        fd = self._opened()
        try:
            result = call(fd)
            try:
                check_is(fd, self._disk.major, self._disk.minor, self._disk.diskseq)
            except OtherDisk as exc:
                raise self._failed("was exchanged while it was read", exc) from exc
            return result
        except OSError as exc:  # of this machine, say: no memory
            raise self._failed("could not be read", exc) from exc
        finally:
            with self._lock:
                self._users -= 1
                self._let_go()

    def _opened(self) -> int:
        """The descriptor, which one more uses from now on."""
        with self._opening:
            with self._lock:
                self._check_open()
                if self._fd >= 0:
                    self._users += 1
                    return self._fd
            disk = self._disk
            try:
                fd = open_disk((disk.device, str(disk.path)), disk.major, disk.minor, disk.diskseq)
            except OSError as exc:
                raise self._failed("could not be opened", exc) from exc
            with self._lock:
                self._fd = fd
                self._let_go()
                self._check_open()
                self._users += 1
                return fd

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceError(
                f"Protected disk {self._disk.path} is not read any more", cause="the agent stops"
            )

    def _failed(self, what: str, exc: OSError) -> DeviceError:
        return DeviceError(
            f"Protected disk {self._disk.path} {what}",
            cause=cause_of(exc),
            action="Check that it is attached. It is tried again by itself; other disks are copied meanwhile.",
        )

    def _let_go(self) -> None:
        if self._closed and self._users == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
