"""To wait for what a daemon says of a command."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from config_server.operations.control import Control
from config_server.store.commands import Bell
from shared.api.commands import CommandState


class Site:
    """A database with one command, and whoever waits for that."""

    def __init__(self) -> None:
        self.state = CommandState.PENDING
        self.looks = 0
        self.looked = asyncio.Event()
        self.now_ns = 0
        self.bell = Bell()
        self.control: Any = SimpleNamespace(
            bell=self.bell, db=SimpleNamespace(run=self.run), mono_ns=lambda: self.now_ns
        )

    async def run(self, _work: object) -> SimpleNamespace:
        self.looks += 1
        self.looked.set()
        return SimpleNamespace(state=self.state)

    async def look(self) -> None:
        await self.looked.wait()
        self.looked.clear()

    def wait(self, wait_s: float = 20.0) -> asyncio.Task[Any]:
        return asyncio.create_task(Control.wait_for_result(self.control, "c1", wait_s))


async def test_who_waits_for_a_result_waits_on_when_a_bell_is_rung_in_vain() -> None:
    """As each is, when another config server is gone."""
    site = Site()
    waiting = site.wait()
    await site.look()
    site.bell.ring_all()
    await site.look()
    site.state = CommandState.DONE
    site.bell.ring("c1")
    assert (await waiting).state is CommandState.DONE
    assert site.looks == 3


async def test_nobody_waits_longer_than_he_said_or_when_the_server_ends() -> None:
    site = Site()
    assert (await site.wait(0.0)).state is CommandState.PENDING
    waiting = site.wait()
    site.looked.clear()
    await site.look()
    site.bell.close()
    assert (await waiting).state is CommandState.PENDING
    assert (await site.wait()).state is CommandState.PENDING
