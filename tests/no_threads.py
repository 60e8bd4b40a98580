"""A host without room for one more thread, as Python says it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

SAID: Final = (RuntimeError("can't start new thread"), MemoryError())
"""What `Thread.start` fails with."""


@contextlib.contextmanager
def no_room(said: Exception = SAID[0]) -> Iterator[None]:
    """Until the block ends no thread begins in this process."""

    def start(_: threading.Thread) -> None:
        raise said

    with pytest.MonkeyPatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        yield


@contextlib.contextmanager
def all_busy(executor: ThreadPoolExecutor) -> Iterator[None]:
    """Until the block ends all the threads are busy that it has by now. It wants one more for whatever comes, and must be allowed one."""
    go_on = threading.Event()

    def be_busy(begun: threading.Event) -> None:
        begun.set()
        go_on.wait()

    try:
        for busy in itertools.count(1):
            begun = threading.Event()
            executor.submit(be_busy, begun)
            assert begun.wait(30)
            if busy >= len(executor._threads):
                break
        assert len(executor._threads) < executor._max_workers, "it may have no more"
        yield
    finally:
        go_on.set()
