"""The config server that most of these tests talk to, and who talks to it. A file with another server has a `server` of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config_server.store.config import DatabaseConfig
from shared.blob import BlobConfig
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.machine.storage import MachineStorage
from shared.trust.tls import TlsFiles
from tests.command_line import Line
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent
from tests.pair import Pair, running_pair


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


@pytest.fixture
async def pair(tmp_path: Path, database_config: DatabaseConfig) -> AsyncIterator[Pair]:
    async with running_pair(tmp_path, database_config) as started:
        yield started


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    """web1, with a log of one segment."""
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish(segments=1)
    return model


@pytest.fixture
async def server_with_storage(
    machine: ModelMachine, blob_config: BlobConfig, tmp_path: Path
) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path, blob=blob_config, vault_file=machine.vault.path)) as started:
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
