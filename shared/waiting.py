"""To wait for an event, but not for ever: how every loop that looks now and then sleeps, so that a stop or a call wakes it at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any


async def wait_for(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set, or the time is over; None: however long it takes. The event says which it was."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def first_of(*ways: Coroutine[Any, Any, object]) -> None:
    """Until one of them is over; the others are ended. Raises what that one did."""
    tasks = [asyncio.create_task(way, name="one of several") for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
