"""All machines of a master target together: what one of them meets stays with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from master_target.config import MasterTargetConfig
from master_target.follow import Follower
from master_target.machine import Machine
from master_target.service import Service
from shared.blob import BlobConfig
from shared.daemon.threads import in_thread
from shared.errors import KeyUnavailableError, WrongKeyError
from shared.keys.vault import FileVault, Vault
from shared.log import names
from shared.machine.storage import MachineStorage
from shared.recovery import point_store
from shared.recovery.points import PointDoc
from shared.status import ApplyReport
from tests.azurite import Azurite
from tests.deleted_machines import remove
from tests.gated_vault import GatedVault
from tests.machine_log import ModelMachine
from tests.storage_faults import FaultProxy, Stall

_DEADLINE_S = 30.0


@pytest.fixture
async def two(machine_storage: MachineStorage, tmp_path: Path) -> tuple[ModelMachine, ModelMachine]:
    """Machines `a` and `b`, each with a full replication and a mark."""
    made = (
        await ModelMachine.create(await machine_storage.find_or_create("a"), tmp_path, "a"),
        await ModelMachine.create(await machine_storage.find_or_create("b"), tmp_path, "b"),
    )
    for model in made:
        await model.begin_epoch()
        model.write(mark="m")
        await model.publish()
    return made


class Serving:
    """A master target over all machines in storage: called with one that differs from the test's storage or vault."""

    def __init__(self, blob: BlobConfig, storage: MachineStorage, vault_file: Path) -> None:
        self._config = MasterTargetConfig(name="mt1", vault_file=vault_file, blob=blob, poll_s=0.05)
        self._storage = storage
        self._vault = FileVault(vault_file)

    @contextlib.asynccontextmanager
    async def __call__(
        self, storage: MachineStorage | None = None, vault: Vault | None = None
    ) -> AsyncIterator[Service]:
        """Its work; what ended it too early is raised at the end."""
        service = Service(self._config, storage or self._storage, vault or self._vault)
        stop = asyncio.Event()
        task = asyncio.create_task(service.work(stop))
        try:
            yield service
            assert not task.done()
        finally:
            stop.set()
            await task


@pytest.fixture
def serving(
    two: tuple[ModelMachine, ModelMachine],
    blob_config: BlobConfig,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> Serving:
    """Its vault file is that of the two machines."""
    return Serving(blob_config, machine_storage, tmp_path / "vault.json")


async def until_documented(model: ModelMachine, points: int) -> None:
    """Points are made of the index alone."""
    async with asyncio.timeout(_DEADLINE_S):
        while len(await point_store.list_docs(model.store, model.name)) < points:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def until(service: Service, machine: str, condition: Callable[[ApplyReport], bool]) -> None:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while not condition(service.report().machines.get(machine, ApplyReport())):  # noqa: ASYNC110 - as in tests/master_parts.py
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still waiting; the master target reports {service.report()}") from None


async def test_a_damaged_index_is_shown_and_stops_no_other_machine(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
) -> None:
    a, b = two
    index = names.index(1, 1)
    data = (await a.store.read(index)).replace(b"ps1", b"ps\xff", 1)
    await a.store.leases.break_now(index)
    await a.store.delete(index)
    await a.store.append_create(index)
    await a.store.append(index, data, None, 0)
    async with serving() as service:
        await until(service, a.name, lambda r: any("index" in error.what for error in r.errors))
        await until(service, b.name, lambda r: r.applied == b.position.batch)


async def test_a_bug_that_one_machine_meets_is_shown_and_stops_no_other_machine(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = two
    real = Follower.refresh

    async def refresh(self: Follower, from_epoch: int) -> list[PointDoc]:
        if self.machine == a.name:
            raise ZeroDivisionError
        return await real(self, from_epoch)

    monkeypatch.setattr(Follower, "refresh", refresh)
    async with serving() as service:
        await until(service, a.name, lambda r: any("ZeroDivisionError" in e.cause for e in r.errors))
        await until(service, b.name, lambda r: r.applied == b.position.batch)
        monkeypatch.undo()
        await until(service, a.name, lambda r: r.applied == a.position.batch and not r.errors)


async def test_a_name_that_is_given_to_another_machine_is_worked_on_anew_in_its_container(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    tmp_path: Path,
    machine_storage: MachineStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("master_target.service._DISCOVER_S", 0.05)
    a, b = two
    async with serving() as service:
        await until(service, a.name, lambda r: r.applied == a.position.batch)
        await machine_storage.vault.delete(f"machines/{a.name}.json")
        await a.store._core.container.delete_container()
        new = await ModelMachine.create(
            await MachineStorage(machine_storage.vault).find_or_create(a.name), tmp_path, a.name, seed=7
        )
        await new.begin_epoch()
        for _ in range(3):
            new.write()
        await new.publish()
        await until(service, a.name, lambda r: r.applied == new.position.batch and not r.errors)
        await until(service, b.name, lambda r: r.applied == b.position.batch and not r.errors)


@pytest.mark.parametrize(("again", "told"), [(False, True), (True, False), (True, True)])
async def test_a_machine_whose_work_hangs_as_it_is_to_end_stops_no_other_and_is_told(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    tmp_path: Path,
    machine_storage: MachineStorage,
    monkeypatch: pytest.MonkeyPatch,
    *,
    again: bool,
    told: bool,
) -> None:
    """It was deleted (`told`), or (`again`) its name is another machine's, which is not begun beside it, and keeps the keys; or both."""
    monkeypatch.setattr("master_target.service._DISCOVER_S", 0.05)
    monkeypatch.setattr("master_target.service._ENDING_S", 0.1)
    a, b = two
    begun: list[str] = []
    keyless: list[str] = []
    monkeypatch.setattr(
        "master_target.service.remote_vault.forget", lambda _vault, name: keyless.append(name)
    )
    answers, work = threading.Event(), Machine.run

    async def run(self: Machine, stop: asyncio.Event) -> None:
        begun.append(self._store.container)
        if self._store.container == a.store.container:
            await in_thread(answers.wait)
        await work(self, stop)

    monkeypatch.setattr(Machine, "run", run)

    async def made(name: str, storage: MachineStorage) -> ModelMachine:
        model = await ModelMachine.create(await storage.find_or_create(name), tmp_path, name, seed=7)
        await model.begin_epoch()
        for _ in range(3):
            model.write()
        await model.publish()
        return model

    async with serving(MachineStorage(machine_storage.vault)) as service:
        try:
            await until(service, b.name, lambda r: r.applied == b.position.batch)
            container = await remove(machine_storage, a.name)
            new = await made(a.name, machine_storage) if again else None
            if told:
                service.tell([container])
            c = await made("c", machine_storage)
            await until(service, c.name, lambda r: r.applied == c.position.batch)
            await until(service, a.name, lambda r: "US649" in [error.code for error in r.errors])
            assert service.report().machines[a.name].container == a.store.container
            assert new is None or new.store.container not in begun
            assert keyless == []
        finally:
            answers.set()
        if new is not None:
            await until(service, a.name, lambda r: r.applied == new.position.batch and not r.errors)
        else:
            async with asyncio.timeout(_DEADLINE_S):
                while a.name in service.report().machines:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)
        assert keyless == ([] if again else [a.name])


async def test_a_machine_whose_entry_is_damaged_or_anothers_is_in_the_report(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    machine_storage: MachineStorage,
) -> None:
    a, b = two
    entry = json.loads(await machine_storage.vault.read(f"machines/{b.name}.json"))
    await machine_storage.vault.create("machines/c.json", json.dumps({**entry, "machine": "c"}).encode())
    await machine_storage.vault.replace(f"machines/{a.name}.json", b"{}")
    fresh = MachineStorage(machine_storage.vault)
    async with serving(fresh) as service:
        await until(service, b.name, lambda r: r.applied == b.position.batch and not r.errors)
        report = service.report()
    assert list(report.machines) == [b.name]
    assert sorted(error.what for error in report.errors) == [
        f"Container {b.store.container} is not that of machine c",
        f"The registry's entry machines/{a.name}.json cannot be read",
    ]


async def test_what_a_wrong_vault_does_not_open_is_waited_for_and_not_left_out_for_a_newer_epoch(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a config server was started with another vault file for a while."""
    monkeypatch.setattr("master_target.machine._KEY_S", 0.05)
    a, b = two
    right, wrong = a.vault, FileVault.create(tmp_path / "other.json")
    vault = GatedVault(wrong)
    async with serving(vault=vault) as service:
        await until(service, a.name, lambda r: any(e.code == WrongKeyError.code for e in r.errors))
        await a.begin_epoch("agent restarted")
        a.write(mark="q")
        await a.publish()
        await until_documented(a, 2)
        asked = len(vault.asked)
        vault.away = {a.name}
        await until(service, a.name, lambda r: len(vault.asked) > asked + 2)
        assert service.report().machines[a.name].epoch == 1
        vault.vault, vault.away = right, set()
        await until(
            service, a.name, lambda r: r.epoch == 2 and r.applied == a.position.batch and not r.errors
        )
        await until(service, b.name, lambda r: r.applied == b.position.batch and not r.errors)
    assert [doc.epoch for doc in await point_store.list_docs(a.store, a.name)] == [1, 2]


async def test_a_key_that_cannot_be_had_keeps_its_machine_s_disks_waiting_and_nothing_else(
    two: tuple[ModelMachine, ModelMachine],
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("master_target.machine._KEY_S", 0.05)
    a, b = two
    vault = GatedVault(a.vault)
    vault.away = {a.name}
    async with serving(vault=vault) as service:
        await until(service, a.name, lambda r: any(e.code == KeyUnavailableError.code for e in r.errors))
        await until(service, b.name, lambda r: r.applied == b.position.batch)
        a.write(mark="later")
        await a.publish()
        await until_documented(a, 2)
        asked = len(vault.asked)
        async with asyncio.timeout(
            _DEADLINE_S
        ):  # it is asked for again and again, and the work never ends for it
            while len(vault.asked) < asked + 3:
                report = service.report().machines[a.name]
                assert (report.state, report.applied) == ("following", 0)
                await asyncio.sleep(0.01)
        vault.away = set()
        await until(service, a.name, lambda r: r.applied == a.position.batch and not r.errors)


async def test_a_stop_does_not_wait_for_storage_that_is_asked_which_machines_there_are(
    azurite: Azurite, blob_config: BlobConfig, tmp_path: Path
) -> None:
    config = MasterTargetConfig(name="mt1", vault_file=tmp_path / "vault.json", blob=blob_config)
    unused: Any = None
    with FaultProxy(azurite) as proxy:
        proxy.add(Stall(), times=None)
        async with MachineStorage.connect(proxy.config(blob_config.container)) as storage:
            stop = asyncio.Event()
            task = asyncio.create_task(Service(config, storage, unused).work(stop))
            await asyncio.to_thread(proxy.wait_active, 1)
            stop.set()
            async with asyncio.timeout(5):  # a request may take six times as long
                await task
