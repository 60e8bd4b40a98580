"""Work in a thread whose caller does not want it any more."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.threads import in_thread


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_a_caller_that_is_cancelled_goes_on_only_when_the_thread_is_done(cancellations: int) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        go_on.wait()

    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(in_thread(write, executor=executor))
        await asyncio.to_thread(begun.wait)
        for _ in range(cancellations):
            task.cancel()
            await turns()
        assert not task.done(), "whoever opens the file next meets the thread"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
