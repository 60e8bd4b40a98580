"""A process server's parts, with a real spool on real storage, and machines that are deleted under it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from config_server.storage import removal
from process_server.deletions import Deletions
from process_server.reception.admission import Admission
from process_server.reception.boots import Admitted, BootFiles
from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import CacheSpace, CreditPolicy
from process_server.spool.sides import Sides
from process_server.spool.spool import MachineLog, Spool
from process_server.status import DaemonReport, StatusBoard
from shared.daemon.trouble import Trouble
from shared.machine.storage import MachineStorage
from tests.spools import MACHINE, hello, make_spool, vault_at

HARDWARE = "hw1"


class Parts(NamedTuple):
    folder: Path
    storage: MachineStorage
    spool: Spool
    admission: Admission
    sides: Sides
    boots: BootFiles
    deletions: Deletions
    board: StatusBoard

    def report(self) -> DaemonReport:
        return self.board.report()

    @property
    def log(self) -> MachineLog:
        return self.spool.machines[MACHINE]

    async def begun(self) -> MachineLog:
        """The machine says Hello, and begins an epoch."""
        await self.sides.check(MACHINE, HARDWARE, claim=True)
        await self.boots.remember(MACHINE, Admitted(identity=HARDWARE, kernel="k1"))
        log = await self.spool.open_machine(hello(0))
        await log.begin(hello(0))
        return log

    def here(self) -> list[str]:
        """What lies here, by its path below the spool."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return sorted(str(path) for path in found if not path.name.startswith("."))

    async def hears(self, *deleted: str) -> None:
        """It is told so, and has nothing more to do."""
        asked = (
            set(self.report().machines[MACHINE].containers) if MACHINE in self.report().machines else set()
        )
        self.deletions.tell(asked.intersection(deleted))
        for machine, log in list(self.spool.machines.items()):
            if not log.containers.isdisjoint(self.deletions._told):
                await self.deletions._try(machine, log)


@asynccontextmanager
async def parts(folder: Path, storage: MachineStorage, check_seconds: float = 0.1) -> AsyncIterator[Parts]:
    """Started; without a receiver, and closed at the end. `storage` is its own."""
    spool = make_spool(folder, storage, check_seconds=check_seconds)
    await spool.start()
    policy = CreditPolicy()
    sides, boots = Sides(storage, folder), BootFiles(folder)
    admission = Admission(
        spool.open_machine,
        policy=policy,
        cache=lambda: CacheSpace(total_b=1 << 40, free_b=1 << 40),
        check_side=sides.check,
        boots=boots,
    )
    await admission.recall()
    deletions = Deletions(storage, spool, admission, sides, boots, vault_at(folder.parent))
    board = StatusBoard(admission, spool, Trouble("storage", lambda: None), CacheLevel(policy))
    try:
        yield Parts(folder, storage, spool, admission, sides, boots, deletions, board)
    finally:
        await spool.close()


async def remove(vault: MachineStorage, machine: str = MACHINE) -> str:
    """Deletes it in storage as the config server does; its container."""
    storage = MachineStorage(vault.vault)
    container = await storage.named(machine)
    assert container is not None
    info = await storage.vault.in_container(container).container_info()
    await removal.remove_container(storage, container, info.changed)
    await storage.unregister(machine, container)
    return container
