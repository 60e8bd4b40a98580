"""Machines that are to be deleted, of a real config server: their delay passes at once, and looks follow each other soon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from sqlalchemy import Connection

from config_server import background
from config_server.operations import deletion_sweep
from config_server.operations.deletion_sweep import DeletionSweep
from config_server.rules import deletion
from config_server.rules.deletion import Deletion
from config_server.storage.account import Storage
from config_server.store import deletions, inventory
from shared import api
from shared.api.deletion import DeletionRequest, Kept
from shared.api.machines import MachineView
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.errors import MachineNotFoundError, StorageError
from shared.machine.storage import REGISTRY, MachineStorage
from tests import databases
from tests.config_parts import ConfigServer, until
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent

HOUR_S = 3600.0
NOTE: Final[dict[str, Any]] = {"method": "PUT", "blob": "deletion.json"}
"""Requests that write the note of which deletion stands."""
HARDWARE: Final[dict[str, Any]] = {"identity": "hw1", "boot": "1"}


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look follows the other, and a log that was written a moment ago is nobody's."""
    monkeypatch.setattr(background, "PASS_S", 0.05)
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 0.0)
    monkeypatch.setattr(deletion, "QUIET_S", 0.0)


class Looks:
    """Those of the server at what is to be deleted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ended = 0
        real = DeletionSweep.sweep

        async def sweep(looks: DeletionSweep) -> None:
            await real(looks)
            self._ended += 1

        monkeypatch.setattr(DeletionSweep, "sweep", sweep)

    async def more(self, count: int) -> None:
        """Until so many have begun from now on, and ended. (One may be under way.)"""
        last = self._ended + count + 1

        async def are_done() -> bool:
            return self._ended >= last

        await until(are_done)


class Struck:
    """That a rule struck, for the test's event loop."""

    def __init__(self) -> None:
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


@contextlib.contextmanager
def opened(data_dir: Path) -> Iterator[Connection]:
    """The database, beside a server that runs."""
    with databases.opened(data_dir / "state.db") as db:
        yield db


def pass_delay(data_dir: Path, machine: str = "web1", **changes: object) -> None:
    """As if this server had run for so long."""
    with opened(data_dir) as db:
        found = deletion_of(db, machine)
        deletions.put(db, machine, msgspec.structs.replace(found, passed_ns=found.after_ns, **changes))


def deletion_of(db: Connection, machine: str = "web1") -> Deletion:
    found = inventory.machine(db, machine).deletion
    assert found is not None
    return found


async def delete(operator: RestClient, machine: str = "web1", container: str | None = None) -> MachineView:
    body = DeletionRequest(after_s=HOUR_S, container=container)
    return await operator.call(api.DELETE, body, machine=machine)


async def shown(operator: RestClient, machine: str = "web1") -> MachineView:
    return await operator.call(api.MACHINE, Nothing(), machine=machine)


async def is_gone(operator: RestClient, machine: str = "web1") -> bool:
    try:
        await shown(operator, machine)
    except MachineNotFoundError:
        return True
    return False


async def waits(operator: RestClient, machine: str = "web1") -> list[str]:
    """The codes of why it is not deleted."""
    codes = ("US630", "US631", "US632", "US633")
    return [error.code for error in (await shown(operator, machine)).errors if error.code in codes]


async def in_storage(storage: MachineStorage) -> tuple[set[str], set[str]]:
    """The containers of machines, and the entries of the registry."""
    prefix = f"{storage.vault.container}-"
    containers = {name async for name, _ in storage.vault.list_containers(prefix)}
    try:
        return containers, {blob.name async for blob in storage.vault.list(REGISTRY)}
    except StorageError:
        return containers, set()


async def stops(agent: ObedientAgent) -> None:
    """It hears of the stop, and says that it has done so."""
    await agent.report(**HARDWARE)
    agent.captured = ()
    await agent.report(**HARDWARE)


async def audit(operator: RestClient) -> list[str]:
    return [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]


async def is_waiting(operator: RestClient, code: str) -> None:
    async def so() -> bool:
        return await waits(operator) == [code]

    await until(so)


async def kept(operator: RestClient) -> Kept:
    return await operator.call(api.KEEP, Nothing(), machine="web1")


def folder(server: ConfigServer) -> Path:
    return server.config.data_dir


def place_of(server: ConfigServer) -> str:
    return Storage(server.config.blob, None).place


async def is_there(storage: MachineStorage, machine: ModelMachine) -> bool:
    return machine.store.container in (await in_storage(storage))[0]
