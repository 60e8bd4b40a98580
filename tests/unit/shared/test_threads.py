"""Work in a thread whose caller does not want it any more, or for which there is no thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


async def test_what_no_thread_could_be_had_for_is_not_done_later_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def be_busy() -> None:
        busy.set()
        go_on.wait()

    def no_room(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ThreadPoolExecutor(2) as executor:
        other = asyncio.create_task(in_thread(be_busy, executor=executor))
        await asyncio.get_running_loop().run_in_executor(None, busy.wait)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", no_room)
            with pytest.raises(RuntimeError, match="new thread"):
                await in_thread(done.set, executor=executor)
        go_on.set()
        await other
    assert not done.is_set(), "the one that was busy has done it, and nobody knows"


async def test_what_another_thread_has_begun_is_waited_for_although_none_could_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        go_on.wait()
        return "done"

    class Begun(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            super().submit(*args, **kwargs)
            began.wait()
            raise RuntimeError("can't start new thread")

    with Begun(1) as executor:
        task = asyncio.create_task(in_thread(work, executor=executor))
        try:
            await turns()
            assert not task.done()
        finally:
            go_on.set()
        assert await task == "done"
