"""How many storage requests are under way at a time."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from shared.blob.lanes import Lane, Width


def test_throttling_halves_the_width_once_for_all_that_were_under_way() -> None:
    width = Width(32)
    width.throttled(began=1.0, now=5.0)
    for _ in range(10):
        width.throttled(began=2.0, now=6.0)
    assert width.allowed == 16
    width.throttled(began=5.0, now=7.0)
    assert width.allowed == 8


def test_the_width_grows_by_one_after_as_many_successes_as_it_is_wide() -> None:
    width = Width(32)
    width.throttled(began=1.0, now=2.0)
    for _ in range(17):
        width.succeeded()
    assert width.allowed == 17


@given(st.lists(st.booleans(), max_size=300))
def test_the_width_stays_between_one_and_the_most(successes: list[bool]) -> None:
    width = Width(8)
    for now, success in enumerate(successes):
        if success:
            width.succeeded()
        else:
            width.throttled(float(now), float(now))
        assert 1 <= width.allowed <= 8


async def test_a_lane_admits_as_many_as_it_is_wide_in_the_order_of_asking() -> None:
    lane, admitted, go = Lane(2), list[int](), asyncio.Event()

    async def work(number: int) -> None:
        async with lane.turn():
            admitted.append(number)
            await go.wait()

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert admitted == [0, 1]
    go.set()
    await asyncio.gather(*tasks)
    assert admitted == [0, 1, 2, 3, 4]


async def test_a_narrowed_lane_waits_until_enough_have_left() -> None:
    lane, admitted = Lane(4), list[int]()
    events = [asyncio.Event() for _ in range(5)]

    async def work(number: int) -> None:
        async with lane.turn():
            admitted.append(number)
            await events[number].wait()

    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await asyncio.sleep(0)
    lane.throttled(began=1e18)
    for number in (0, 1):
        events[number].set()
        await tasks[number]
    assert admitted == [0, 1, 2, 3], "two of two are still there"
    events[2].set()
    await tasks[2]
    await asyncio.sleep(0)
    assert admitted == [0, 1, 2, 3, 4]
    for event in events:
        event.set()
    await asyncio.gather(*tasks)


async def test_who_gives_up_waiting_takes_nobodys_turn() -> None:
    lane, go = Lane(1), asyncio.Event()

    async def work() -> None:
        async with lane.turn():
            await go.wait()

    first, waiting, last = (asyncio.create_task(work()) for _ in range(3))
    await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    await first
    # `waiting` may be admitted at the very moment in which it is cancelled, too.
    await last
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5), lane.turn():
        pass


async def test_who_is_admitted_and_cancelled_in_the_same_moment_gives_the_turn_back() -> None:
    lane = Lane(1)
    go = asyncio.Event()

    async def work() -> None:
        async with lane.turn():
            await go.wait()

    first = asyncio.create_task(work())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(work())
    await asyncio.sleep(0)
    first.add_done_callback(lambda _: waiting.cancel())
    go.set()
    await asyncio.gather(first, waiting, return_exceptions=True)
    async with asyncio.timeout(5), lane.turn():
        pass
