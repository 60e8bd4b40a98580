"""Wiring of the master target: storage and vault → one `Machine` for each machine that storage knows, with the status beside them.

A name that the registry gives to another container (shared/machine/storage.py) is another machine: the work on the old one ends, and
begins anew on that.

A machine whose container is gone was deleted, or storage forgot it, as behind a failover of the account, which somebody has to see. Storage
cannot tell which of the two it is, and the config server does: its answer to a report says which of the containers in it were deleted
with their machines (config_server/operations/deleted.py). The work on such a one ends, and it is told no more, when this daemon's own
storage has neither the container nor its entry. While either is there, or storage does not answer, or nobody says anything (an older
config server, or none), all stays as it is. Nothing of it is kept: a master target that was off meanwhile finds no such machine in
storage. Disk images are never deleted here: they may be the last copy there is.

Work that ends may hang, in a thread that writes to a disk which does not answer. Nobody waits for it: the other machines are looked after,
and it is told (I10). But the machine stays known until its work is over, and nothing is begun under its name: two must not write to its
disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Collection, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from master_target.config import MasterTargetConfig
from master_target.machine import Machine, Settings
from master_target.status import MachineReport
from master_target.targets.base import OpenTarget, Target
from master_target.targets.image_file import ImageTarget
from master_target.targets.page_blob import PageBlobTarget
from shared.api.commands import Command
from shared.blob import BlobStore, Retry
from shared.control import remote_vault
from shared.control.control_client import ControlClient
from shared.daemon import logging
from shared.daemon.service import notify, watchdog_interval_s
from shared.errors import (
    IntegrityError,
    MachineNotFoundError,
    StorageError,
    UnderstudyError,
    UndroppedError,
    UsageError,
)
from shared.host import memory, mounts
from shared.keys.vault import Vault
from shared.machine.storage import MachineStorage
from shared.recovery.parallel import parallel
from shared.status import MasterTargetReport, Problem
from shared.trust import identity
from shared.trust.pointer import Whereabouts
from shared.vocabulary import Role
from shared.waiting import wait_for

_log = logging.get()

_DISCOVER_S: Final = 5.0
_BRIEFLY: Final = Retry(deadline_s=3.0)
"""Others wait for it, and it is asked again soon."""
_ENDING_S: Final = 10.0
"""So long work may take to end before it is told."""
_STATUS_S: Final = 2.0
_GRACE_S: Final = 5.0
"""So long an interval that is being applied may go on after SIGTERM. What is cut off is applied again by the next start."""


async def run(config: MasterTargetConfig, stop: asyncio.Event) -> None:
    """The daemon, from start to end. Raises UnderstudyError when it cannot start."""
    memory.give_back_large_buffers()
    if config.tls is not None:
        identity.check_name(config.tls, f"{Role.MASTER_TARGET}:{config.name}")
        if config.image_dir is not None:
            note = config.tls.cert.with_name(mounts.NOTE)
            mounts.check(config.image_dir, note, "The master target was not started")
    where = None
    if config.tls is not None:
        where = Whereabouts(config.control_url, config.tls.cert, config.tls.ca)
        where.load()
    async with (
        remote_vault.opened(
            config.vault_file, config.control_url, config.tls, config.state_dir, where
        ) as vault,
        MachineStorage.connect(config.blob) as storage,
        contextlib.AsyncExitStack() as stack,
    ):
        service = Service(config, storage, vault)
        stages = [partial(service.work, stop), partial(service.tell_manager, stop)]
        if config.control_url and config.tls is not None:
            client = ControlClient(
                config.control_url,
                config.tls,
                on_renewed=partial(remote_vault.renewed, vault),
                on_deleted=service.tell,
                where=where,
                find=storage.pointer,
            )
            stack.push_async_callback(client.close)
            stages.append(partial(client.serve, service.report, service.handle, stop))
        notify("READY=1")
        await parallel(stages, len(stages))


class _Running(NamedTuple):
    machine: Machine
    container: str
    task: asyncio.Task[None]


class Service:
    def __init__(self, config: MasterTargetConfig, storage: MachineStorage, vault: Vault) -> None:
        self._config = config
        self._storage = storage
        self._vault = vault
        self._settings = Settings(
            owner=config.name,
            interval_b=config.interval_b,
            behind_interval_b=config.behind_interval_b,
            poll_s=config.poll_s,
            bridge=config.bridge,
            retention=config.retention,
        )
        self._machines: dict[str, _Running] = {}
        self._ending: dict[str, float] = {}
        """Those of them whose work is to end, and since when (monotonic)."""
        self._deleted: Collection[str] = ()
        """Containers that were deleted with their machines, of those that were reported last."""
        self._failures: list[UnderstudyError] = []
        """Why machines could not be found."""

    async def work(self, stop: asyncio.Event) -> None:
        """Find machines and work on each, until stopped."""
        running = self._machines
        try:
            while not stop.is_set():
                await self._drop_deleted()
                await self._forget_ended()
                for name, store in (await _unless_stopped(self._find(), stop)).items():
                    if name in running and running[name].container != store.container:
                        self._end(name, "machine lies elsewhere now", store.container)
                    if name not in running:
                        machine = Machine(store, self._vault, name, self._settings, self._opener())
                        task = asyncio.create_task(machine.run(stop), name=f"machine {name}")
                        running[name] = _Running(machine, store.container, task)
                for name, found in running.items():
                    if found.task.done() and name not in self._ending:
                        # None ends before `stop`; should one, this raises what it failed with.
                        await found.task
                await wait_for(stop, _DISCOVER_S)
            if running:
                await asyncio.wait([found.task for found in running.values()], timeout=_GRACE_S)
        finally:
            await _ended([found.task for found in running.values()])

    def tell(self, deleted: Collection[str]) -> None:
        """By the config server, of those that the last report named."""
        self._deleted = frozenset(deleted)

    async def _drop_deleted(self) -> None:
        for name, (_, container, _) in list(self._machines.items()):
            if container not in self._deleted or name in self._ending:
                continue
            try:
                if await self._storage.with_retry(_BRIEFLY).has(name, container):
                    continue
            except (StorageError, IntegrityError) as exc:
                _log.info("deleted machine not dropped yet", machine=name, **exc.as_dict())
                continue
            self._end(name, "machine was deleted", container)

    def _end(self, name: str, why: str, container: str) -> None:
        """Has its work end."""
        if name not in self._ending:
            _log.warning(why, machine=name, container=container)
            self._machines[name].task.cancel()
            self._ending[name] = time.monotonic()

    async def _forget_ended(self) -> None:
        for name, since in list(self._ending.items()):
            found = self._machines[name]
            if found.task.done():
                try:
                    is_last = found.container in self._deleted and await self._is_nobodys(name)
                except (StorageError, IntegrityError) as exc:
                    _log.info(
                        "not known whose the keys of a deleted machine are", machine=name, **exc.as_dict()
                    )
                    continue
                await _ended([found.task])  # at once
                del self._ending[name], self._machines[name]
                self._storage.forget(name, found.container)
                if is_last:
                    remote_vault.forget(self._vault, name)
            elif time.monotonic() - since > _ENDING_S:
                found.task.cancel()  # again: what failed as it was cut off began anew

    async def _is_nobodys(self, name: str) -> bool:
        """Whether the registry names no machine of the name: its keys are another one's else. Raises StorageError, IntegrityError."""
        return await self._storage.with_retry(_BRIEFLY).named(name) is None

    async def tell_manager(self, stop: asyncio.Event) -> None:
        """Status line and watchdog for the service manager."""
        interval_s = min(_STATUS_S, watchdog_interval_s() or _STATUS_S)
        while not stop.is_set():
            reports = [found.machine.report() for found in self._machines.values()]
            lag_s = max((report.lag_s or 0.0 for report in reports), default=0.0)
            notify(f"STATUS={len(reports)} machines, at most {lag_s:.0f} s behind\nWATCHDOG=1")
            await wait_for(stop, interval_s)

    def report(self) -> MasterTargetReport:
        failed = [Problem(**failure.as_dict()) for failure in self._failures]
        return MasterTargetReport(
            target=self._config.target,
            machines={name: self._report(name, found) for name, found in self._machines.items()},
            errors=[*failed, *remote_vault.warnings(self._vault)],
        )

    def _report(self, name: str, found: _Running) -> MachineReport:
        report = msgspec.structs.replace(found.machine.report(), container=found.container)
        if time.monotonic() - self._ending.get(name, math.inf) > _ENDING_S:
            error = UndroppedError(
                f"The work on machine {name} in container {found.container} has not ended",
                cause="that is not its container any more, and a disk image, or storage, does not answer",
            )
            report.errors.append(Problem(**error.as_dict(), object=name))
        return report

    async def handle(self, command: Command) -> dict[str, Any]:
        raise UsageError(
            f"The command '{command.kind}' was not carried out", cause="a master target takes no commands"
        )

    async def _find(self) -> dict[str, BlobStore]:
        """The machines to work on that storage has, as far as it can be asked."""
        found: dict[str, BlobStore] = {}
        failures: list[UnderstudyError] = []
        unreadable: list[IntegrityError] = []
        try:
            if not self._config.machines:
                for name, container in (await self._storage.machines(unreadable=unreadable)).items():
                    with _noted(unreadable):
                        if name not in self._machines or self._machines[name].container != container:
                            await self._storage.check(name, container)
                        found[name] = self._storage.at(name, container)
            for name in self._config.machines:
                with _noted(unreadable), contextlib.suppress(MachineNotFoundError):
                    found[name] = await self._storage.find(
                        name
                    )  # not found: its process server has written nothing yet
        except StorageError as exc:
            failures.append(exc)
        failures += unreadable
        for failure in failures:
            if failure.as_dict() not in [known.as_dict() for known in self._failures]:
                _log.warning("machines not found; will try again", **failure.as_dict())
        self._failures = failures
        return found

    def _opener(self) -> OpenTarget:
        folder = self._config.image_dir

        async def page_blob(store: BlobStore, machine: str, disk: str, disk_b: int) -> Target:
            return await PageBlobTarget.open(store, machine, disk, disk_b, take=True)

        async def image(_: BlobStore, machine: str, disk: str, disk_b: int) -> Target:
            assert folder is not None
            return await ImageTarget.open(folder, machine, disk, disk_b)

        return page_blob if folder is None else image


@contextlib.contextmanager
def _noted(errors: list[IntegrityError]) -> Iterator[None]:
    """One machine's error keeps the others from nothing."""
    try:
        yield
    except IntegrityError as exc:
        errors.append(exc)


async def _unless_stopped(
    finding: Coroutine[Any, Any, dict[str, BlobStore]], stop: asyncio.Event
) -> dict[str, BlobStore]:
    """Nothing when it was stopped meanwhile: storage that does not answer is waited for longer than a stop may take."""
    found = asyncio.create_task(finding, name="find machines")
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([found, stopped], return_when=asyncio.FIRST_COMPLETED)
        return found.result() if found.done() else {}
    finally:
        await _ended([found, stopped])


async def _ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
