"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio

import pytest

from shared.waiting import first_of, wait_for


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


async def test_of_several_ways_the_first_that_is_over_counts_and_the_others_are_ended() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("endless")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("this one")

    await first_of(endless(), asyncio.sleep(0))
    with pytest.raises(ValueError, match="this one"):
        await first_of(fails(), endless())
    assert ended == ["endless", "endless"]
