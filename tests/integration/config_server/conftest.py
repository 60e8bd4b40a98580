"""The config server that most of these tests talk to, and who talks to it. A file with another server has a `server` of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.trust.tls import TlsFiles
from tests.command_line import Line
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.obedient_agent import ObedientAgent


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


@pytest.fixture
async def operator(server: ConfigServer) -> AsyncIterator[RestClient]:
    async with server.operator() as client:
        yield client


@pytest.fixture
async def files(server: ConfigServer, tmp_path: Path) -> TlsFiles:
    """Those of web1's agent."""
    return await server.enrolled("agent", "web1", tmp_path / "agent")


@pytest.fixture
async def agent(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ControlClient]:
    async with daemon(server, files) as client:
        yield client


@pytest.fixture
def line(server: ConfigServer, web1: ObedientAgent) -> Iterator[Line]:
    """The command line, of somebody whose file has a `web1`."""
    made = Line(server, web1)
    yield made
    made.close()
