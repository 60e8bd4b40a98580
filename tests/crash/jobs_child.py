"""The process that the crash tests kill: a config server that goes on with jobs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from shared import crashpoints
from tests.act_jobs import hurry
from tests.config_parts import running


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
