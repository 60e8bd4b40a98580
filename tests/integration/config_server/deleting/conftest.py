"""A config server before storage that fails on purpose, with a machine that has a log, and its agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config_server.operations import granting
from shared import api
from shared.api.protection import Protection
from shared.blob import BlobConfig
from shared.machine import active_side
from shared.machine.storage import MachineStorage
from shared.trust.tls import TlsFiles
from tests.azurite import Azurite
from tests.config_parts import ConfigServer, config_for, running
from tests.deletions import HARDWARE, Looks, hurry
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import FaultProxy


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(granting, "SWEEP_S", 3600.0)


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as made:
        yield made


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    """web1, with a log; and web2 beside it."""
    await machine_storage.find_or_create("web2")
    store = await machine_storage.find_or_create("web1")
    await active_side.find_or_begin(store, "web1", "hw1")
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    model.write()
    await model.publish(segments=1)
    return model


@pytest.fixture
async def server(
    machine: ModelMachine, proxy: FaultProxy, blob_config: BlobConfig, tmp_path: Path
) -> AsyncIterator[ConfigServer]:
    blob = proxy.config(blob_config.container)
    async with running(config_for(tmp_path, blob=blob, vault_file=machine.vault.path)) as started:
        yield started


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    """It is protected, as it was told."""
    async with obedient_agent(server, files) as agent, server.operator() as operator:
        await agent.report(**HARDWARE)
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
        await agent.report(**HARDWARE)
        yield agent


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)
