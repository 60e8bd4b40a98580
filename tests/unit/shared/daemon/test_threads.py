"""Work in a thread whose caller does not want it any more, or for which there is no thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.daemon.threads import Threads, in_thread, start
from shared.daemon.threads import no_room as no_room_in
from shared.errors import NoThreadError
from tests.no_threads import SAID, no_room


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


@pytest.mark.parametrize("said", SAID, ids=repr)
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, Threads])
async def test_what_no_thread_could_be_had_for_is_not_done_later_by_another(
    kind: type[ThreadPoolExecutor], said: Exception
) -> None:
    busy, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def be_busy() -> None:
        busy.set()
        go_on.wait()

    with kind(2) as executor:
        other = asyncio.create_task(in_thread(be_busy, executor=executor))
        await asyncio.get_running_loop().run_in_executor(None, busy.wait)
        with no_room(said):
            with pytest.raises(NoThreadError) as caught:
                await in_thread(done.set, executor=executor)
            if isinstance(executor, Threads):
                with pytest.raises(NoThreadError):
                    executor.submit(done.set)
        go_on.set()
        await other
    assert not done.is_set(), "the one that was busy has done it, and nobody knows"
    assert caught.value.cause == repr(said)


async def test_threads_that_are_not_there_are_not_counted_on_when_there_is_room_again() -> None:
    busy, go_on, hangs, answers = (threading.Event() for _ in range(4))

    def be_busy() -> None:
        busy.set()
        go_on.wait()

    def hang() -> None:
        hangs.set()
        answers.wait()

    with Threads(4) as executor:
        other = asyncio.create_task(in_thread(be_busy, executor=executor))
        await asyncio.to_thread(busy.wait)
        with no_room():
            for _ in range(3):
                with pytest.raises(NoThreadError):
                    await in_thread(busy.wait, executor=executor)
        go_on.set()
        await other
        await in_thread(busy.wait, executor=executor)  # by then all that was taken back has been come to
        first = asyncio.create_task(in_thread(hang, executor=executor))
        await asyncio.to_thread(hangs.wait)
        second = asyncio.create_task(in_thread(lambda: "done", executor=executor))
        done, _ = await asyncio.wait([second], timeout=10)
        answers.set()
        await first
    assert done, "it waited behind what hangs"


@pytest.mark.parametrize("said", SAID, ids=repr)
async def test_what_the_work_itself_raises_stays_what_it_is(said: Exception) -> None:
    def fail() -> None:
        raise said

    with Threads(1) as executor:
        with pytest.raises(type(said)) as caught:
            await in_thread(fail, executor=executor)
        assert caught.value is said
    with pytest.raises(RuntimeError, match="after shutdown"):
        await in_thread(fail, executor=executor)


@pytest.mark.parametrize("said", SAID, ids=repr)
def test_a_thread_of_ones_own_that_does_not_start_is_named_too(said: Exception) -> None:
    with no_room(said), pytest.raises(NoThreadError, match="no room"):
        start(threading.Thread())


def test_only_a_host_that_is_full_is_taken_for_one() -> None:
    assert [no_room_in(exc) is not None for exc in SAID] == [True, True]
    assert no_room_in(RuntimeError("dictionary changed size during iteration")) is None
    assert no_room_in(RecursionError("maximum recursion depth exceeded")) is None


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


async def test_nor_is_it_counted_when_another_thread_had_begun_the_work_before_that_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy, go_on, began, hangs, answers = (threading.Event() for _ in range(5))

    def be_busy() -> None:
        busy.set()
        go_on.wait()

    def fails_late(_: threading.Thread) -> None:
        go_on.set()
        began.wait()
        raise RuntimeError("can't start new thread")

    def hang() -> None:
        hangs.set()
        answers.wait()

    with Threads(4) as executor:
        first = executor.submit(be_busy)
        busy.wait()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fails_late)
            executor.submit(began.set).result()
        first.result()
        executor.submit(int).result()  # by then it has been counted
        executor.submit(hang)
        hangs.wait()
        try:
            assert executor.submit(lambda: "done").result(10) == "done", "it waited behind what hangs"
        finally:
            answers.set()


def test_what_was_taken_back_is_not_kept() -> None:
    class Batch:
        pass

    busy, go_on = threading.Event(), threading.Event()

    def be_busy() -> None:
        busy.set()
        go_on.wait()

    with Threads(2) as executor:
        executor.submit(be_busy)
        busy.wait()
        batch = Batch()
        kept = weakref.ref(batch)
        said = RuntimeError("can't start new thread")  # of this test: its traceback has the batch, too
        with no_room(said), pytest.raises(NoThreadError):
            executor.submit(id, batch)
        del batch, said
        gc.collect()
        try:
            assert kept() is None
        finally:
            go_on.set()
