"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio

from shared.waiting import wait_for


async def test_an_event_ends_the_wait_however_long_it_would_be() -> None:
    event = asyncio.Event()
    for seconds in (3600.0, None):
        event.clear()
        asyncio.get_running_loop().call_soon(event.set)
        await wait_for(event, seconds)
        assert event.is_set()


async def test_when_the_time_is_over_nothing_is_raised_and_the_event_tells_so() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.0)
    assert not event.is_set()


async def test_whoever_waits_can_be_cancelled() -> None:
    waiting = asyncio.create_task(wait_for(asyncio.Event(), None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
