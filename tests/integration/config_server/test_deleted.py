"""What daemons are told of machines that were deleted: a real config server, real storage, and a real master target."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Literal

import pytest

from config_server.operations import deleted
from config_server.store import incarnations
from master_target.config import MasterTargetConfig
from master_target.service import Service
from shared import api
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.control_client import ControlClient
from shared.control.rest import RestClient
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from shared.status import ApplyReport, MasterTargetReport, ProcessServerReport, StreamReport
from shared.vocabulary import Health
from tests.azurite import Azurite
from tests.config_parts import ConfigServer, config_for, running, until
from tests.deletions import delete, hurry, is_gone, opened, pass_delay
from tests.machine_log import ModelMachine
from tests.storage_faults import Answer, FaultProxy


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(deleted, "_KNOWN_NS", 0)
    monkeypatch.setattr("master_target.service._DISCOVER_S", 0.1)


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as made:
        yield made


@pytest.fixture
async def machine(machine_storage: MachineStorage, tmp_path: Path) -> ModelMachine:
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    return model


@pytest.fixture
async def server(
    machine: ModelMachine, proxy: FaultProxy, blob_config: BlobConfig, tmp_path: Path
) -> AsyncIterator[ConfigServer]:
    blob = proxy.config(blob_config.container)
    async with running(config_for(tmp_path, blob=blob, vault_file=machine.vault.path)) as started:
        yield started


class Daemon:
    """What it was told last."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._told: Collection[str] = ()

    def hear(self, containers: Collection[str]) -> None:
        self._told = containers

    async def asks(self, *containers: str) -> list[str]:
        await self._client.report(
            ProcessServerReport(machines={"web1": StreamReport(containers=[*containers])})
        )
        return list(self._told)

    async def follows(self, container: str) -> list[str]:
        await self._client.report(MasterTargetReport(machines={"web1": ApplyReport(container=container)}))
        return list(self._told)


@contextlib.asynccontextmanager
async def enrolled(server: ConfigServer, role: str, folder: Path) -> AsyncIterator[Daemon]:
    client = ControlClient(server.url, await server.enrolled(role, "d1", folder / role))
    made = Daemon(client)
    client._on_deleted = made.hear
    try:
        yield made
    finally:
        await client.close()


async def deleted_as_wanted(server: ConfigServer, operator: RestClient) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
    await delete(operator)
    pass_delay(server.config.data_dir)
    await until(lambda: is_gone(operator))


async def test_a_daemon_is_told_of_what_it_names_and_was_deleted_and_of_nothing_else(
    server: ConfigServer, operator: RestClient, machine: ModelMachine, tmp_path: Path
) -> None:
    container, other = machine.store.container, f"{machine.store.container}-other"
    async with (
        enrolled(server, "process-server", tmp_path) as ps,
        enrolled(server, "master-target", tmp_path) as mt,
    ):
        assert await ps.asks(container, other) == []
        await deleted_as_wanted(server, operator)
        assert await ps.asks(other, container) == [container]
        assert await ps.asks(other) == []
        assert await ps.asks() == []
        assert await mt.follows(container) == [container]
        assert await mt.follows("") == []


async def test_what_was_deleted_is_told_after_a_restart_and_not_behind_a_restore_of_the_database(
    machine: ModelMachine, blob_config: BlobConfig, tmp_path: Path
) -> None:
    """A backup does not know whether it was brought back since."""
    config = config_for(tmp_path, blob=blob_config)
    container = machine.store.container
    async with running(config) as server, server.operator() as operator:
        await deleted_as_wanted(server, operator)
    async with running(config) as server, enrolled(server, "process-server", tmp_path / "1") as ps:
        assert await ps.asks(container) == [container]
    with opened(config.data_dir) as db:
        incarnations.begin(db)
    async with running(config) as server, enrolled(server, "process-server", tmp_path / "2") as ps:
        assert await ps.asks(container) == []


async def test_a_container_that_is_brought_back_is_not_said_to_be_deleted_even_if_it_is_lost_later(
    server: ConfigServer,
    operator: RestClient,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> None:
    container = machine.store.container
    async with enrolled(server, "process-server", tmp_path) as ps:
        await deleted_as_wanted(server, operator)
        assert await ps.asks(container) == [container]
        back = machine_storage.vault.in_container(container)
        await back.ensure_container({"machine": "web1", "vault": machine_storage.vault.container})
        assert await ps.asks(container) == []
        await back.delete_container((await back.container_info()).changed)  # as a failover loses it
        assert await ps.asks(container) == []


async def test_while_storage_does_not_answer_nothing_is_said_and_no_report_fails(
    server: ConfigServer,
    operator: RestClient,
    machine: ModelMachine,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    container = machine.store.container
    async with enrolled(server, "process-server", tmp_path) as ps:
        await deleted_as_wanted(server, operator)
        for answer in (Answer(503, "ServerBusy"), Answer(403, "AuthorizationFailure")):
            proxy.add(answer, times=None)
            assert await ps.asks(container) == []
            proxy.clear()
        assert await ps.asks(container) == [container]


@pytest.mark.parametrize("target", ["page-blob", "image"])
async def test_a_master_target_drops_a_machine_that_was_deleted_and_begins_anew_with_the_next_of_its_name(
    server: ConfigServer,
    operator: RestClient,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    tmp_path: Path,
    target: str,
) -> None:
    """It failed again and again, looked for a failover of the storage account, and was critical for good."""
    await machine_storage.find_or_create("web2")
    images = tmp_path / "images" if target == "image" else None
    async with following(server, machine, machine_storage, blob_config, tmp_path, images) as service:

        async def applied() -> bool:
            return service.report().machines["web1"].applied == machine.position.batch

        await until(lambda: _has(service, "web1"))
        await until(applied)
        await deleted_as_wanted(server, operator)

        async def dropped() -> bool:
            return set(service.report().machines) == {"web2"}

        await until(dropped)

        async def is_well() -> bool:
            daemons = (await operator.call(api.DAEMONS, Nothing())).daemons
            return [daemon.health for daemon in daemons] == [Health.NORMAL]

        await until(is_well)
        events = (await operator.call(api.EVENTS, EventQuery(open=True))).events
        assert [event for event in events if event.source.startswith("master-target")] == []
        if images is not None:
            assert contents(images) == [bytes(disk) for disk in machine.disks], "they are nobody's to delete"
        # Another machine takes the name.
        storage = MachineStorage(machine_storage.vault)
        new = await ModelMachine.create(await storage.find_or_create("web1"), tmp_path, seed=7)
        await new.begin_epoch()
        new.write(mark="m")
        new.write(mark="n")
        await new.publish()

        async def new_applied() -> bool:
            found = service.report().machines.get("web1", ApplyReport())
            return (found.container, found.applied) == (new.store.container, new.position.batch)

        await until(new_applied)
        if images is not None:
            assert contents(images) == [bytes(disk) for disk in new.disks]


def contents(images: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((images / "web1").glob("loop?.img"))]


async def test_a_master_target_keeps_a_machine_that_storage_forgot_and_nobody_deleted(
    server: ConfigServer,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    tmp_path: Path,
) -> None:
    async with following(server, machine, machine_storage, blob_config, tmp_path) as service:
        await until(lambda: _has(service, "web1"))
        await machine_storage.vault.delete("machines/web1.json")
        await machine.store.delete_container((await machine.store.container_info()).changed)

        async def is_told() -> bool:
            return [error.code for error in service.report().machines["web1"].errors] == ["US481"]

        await until(is_told)
        service.tell({"another"})
        await service._drop_deleted()
        assert await _has(service, "web1")


async def test_a_master_target_keeps_what_its_own_storage_has_whatever_it_is_told(
    server: ConfigServer,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    tmp_path: Path,
) -> None:
    async with following(server, machine, machine_storage, blob_config, tmp_path) as service:
        await until(lambda: _has(service, "web1"))
        service.tell({machine.store.container})
        await service._drop_deleted()
        assert await _has(service, "web1")


async def _has(service: Service, name: str) -> bool:
    return name in service.report().machines


@contextlib.asynccontextmanager
async def following(
    server: ConfigServer,
    machine: ModelMachine,
    storage: MachineStorage,
    blob: BlobConfig,
    folder: Path,
    images: Path | None = None,
) -> AsyncIterator[Service]:
    """A master target that reports."""
    vault = machine.vault.path
    target: Literal["image", "page-blob"] = "image" if images is not None else "page-blob"
    config = MasterTargetConfig(
        name="mt1", vault_file=vault, blob=blob, poll_s=0.05, target=target, image_dir=images
    )
    service = Service(config, MachineStorage(storage.vault), FileVault(vault))
    files = await server.enrolled("master-target", "mt1", folder / "mt1")
    client = ControlClient(server.url, files, on_deleted=service.tell)
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(service.work(stop)),
        asyncio.create_task(client.serve(service.report, service.handle, stop, interval_s=0.1)),
    ]
    try:
        yield service
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        await client.close()
