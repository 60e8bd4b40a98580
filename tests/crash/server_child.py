"""The process that the crash tests kill: a config server that goes on with what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from shared import crashpoints
from tests.config_parts import running


class Work(msgspec.Struct, frozen=True):
    config: ConfigServerConfig
    crash_at: str
    hurry: Callable[[pytest.MonkeyPatch], None]
    """A function of a module: it goes to another process."""


def run(work: Work) -> None:
    crashpoints.arm(work.crash_at)
    work.hurry(pytest.MonkeyPatch())
    asyncio.run(asyncio.wait_for(_run(work), 60))


async def _run(work: Work) -> None:
    async with running(work.config):
        await asyncio.Event().wait()
