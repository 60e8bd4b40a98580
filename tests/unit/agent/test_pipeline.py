"""Recovery points in their time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from agent.pipeline import Agent
from shared.batch import StreamState


async def test_another_point_interval_takes_effect_at_once_and_what_has_passed_counts() -> None:
    placed: asyncio.Queue[Any] = asyncio.Queue()
    agent: Any = SimpleNamespace(
        _point_interval_s=3600.0,
        _other_interval=asyncio.Event(),
        stream=SimpleNamespace(state=StreamState.ORDERED, mark=placed.put_nowait, cause=""),
    )
    placing = asyncio.create_task(Agent.place_points(agent))
    await asyncio.sleep(0)
    Agent.point_every(agent, 7200.0)
    await asyncio.sleep(0.05)
    assert placed.empty()
    Agent.point_every(agent, 0.01)
    async with asyncio.timeout(10):
        marks = [await placed.get() for _ in range(2)]
    assert marks[0].id != marks[1].id
    placing.cancel()
