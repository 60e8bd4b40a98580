"""A process server that is away: at first it may only be restarted."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.stream import sender as module
from agent.stream.sender import Sender
from agent.stream.servers import ProcessServers
from shared.errors import CertificateRevokedError, UnreachableError
from tests.pki import TestCa


async def test_a_process_server_that_is_away_is_no_error_before_an_upgrade_takes_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    files = TestCa(tmp_path).issue("agent:web1")
    servers = ProcessServers([("127.0.0.1", 1)], time.monotonic())
    state: Any = SimpleNamespace(is_freed_too_early=False)
    sender = Sender(nothing, state, lambda: nothing, servers, files, lambda _reason: None)
    assert not sender.may_restart
    stop = asyncio.Event()
    running = asyncio.create_task(sender.run(stop))
    async with asyncio.timeout(10):
        while sender.problem is None:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        assert isinstance(sender.problem, UnreachableError)
        assert sender.may_restart
        monkeypatch.setattr(module, "RESTARTS_S", 0.5)
        while sender.may_restart:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    stop.set()
    await running
    monkeypatch.setattr(module, "RESTARTS_S", 60.0)
    assert sender.may_restart
    sender.problem = CertificateRevokedError("The process server was refused")
    assert not sender.may_restart
