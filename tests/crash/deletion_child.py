"""The process that the crash tests kill: a config server that deletes a machine by itself."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from shared import crashpoints
from tests.config_parts import running
from tests.deletions import hurry


class Work(msgspec.Struct, frozen=True):
    config: ConfigServerConfig
    crash_at: str


def run(work: Work) -> None:
    crashpoints.arm(work.crash_at)
    hurry(pytest.MonkeyPatch())
    asyncio.run(asyncio.wait_for(_run(work), 60))


async def _run(work: Work) -> None:
    async with running(work.config):
        await asyncio.Event().wait()
