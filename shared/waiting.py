"""To wait for an event, but not for ever: how every loop that looks now and then sleeps, so that a stop or a call wakes it at once."""

from __future__ import annotations

import asyncio
import contextlib


async def wait_for(event: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set, or the time is over; None: however long it takes. The event says which it was."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
