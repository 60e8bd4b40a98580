"""Wiring of the process server: storage and keys → spool → receiver, with the status beside them.

Start: spool recovered, port bound, then READY. Stop: the receiver drains (what came is made durable and
acknowledged), then the spool uploads what it can in a few seconds; the rest waits on disk for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from process_server.config import ProcessServerConfig
from process_server.deletions import Deletions
from process_server.machine_files import MachineFiles
from process_server.reception.admission import Admission
from process_server.reception.boots import BootFiles
from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import CacheSpace
from process_server.reception.receiver import Receiver
from process_server.spool.sides import Sides
from process_server.spool.spool import LogSettings, SegmentLimits, Spool
from process_server.status import StatusBoard
from shared.api.commands import Command, CommandKind
from shared.blob import BlobStore
from shared.control import remote_vault
from shared.control.control_client import ControlClient
from shared.daemon import logging
from shared.daemon.service import notify, watchdog_interval_s
from shared.daemon.trouble import Trouble
from shared.errors import (
    BlobNotFoundError,
    DeadlineError,
    MachineNotFoundError,
    StorageError,
    UsageError,
    cause_of,
)
from shared.host import memory, mounts, protected
from shared.keys.vault import Vault
from shared.keys.vault_record import guarded
from shared.machine.storage import MachineStorage
from shared.trust import identity, tls
from shared.trust.pointer import Whereabouts
from shared.trust.revocation import REVOKED_FILE, RevokedFile
from shared.vocabulary import Role

_log = logging.get()

STATUS_S: Final = 2.0
"""How often the service manager is told how things stand."""
PROBE_S: Final = 60.0
"""How often storage is asked for nothing but an answer: 43,000 requests a month for the whole process server."""
PROBE: Final = "probe"
"""A blob that never is."""
STORE_AGAIN_S: Final = 10.0
"""How often a file of our own that could not be written is tried again."""
FLUSH_S: Final = 30.0
"""How long a flush may take that the config server asked for."""
STOP_FLUSH_S: Final = 5.0
"""How long a stop may take to upload what the cache holds."""


async def run(config: ProcessServerConfig, stop: asyncio.Event) -> None:
    """The daemon, from start to drained. Raises UnderstudyError when it cannot start."""
    memory.give_back_large_buffers()
    mounts.check(
        config.spool_dir, config.tls.cert.with_name(mounts.NOTE), "The process server was not started"
    )
    protected.check_place(config.spool_dir, "The process server was not started")
    context = tls.server_context(config.tls)
    identity.check_name(config.tls, f"{Role.PROCESS_SERVER}:{config.name}")
    settings = LogSettings(
        owner=config.name, limits=SegmentLimits(size_b=config.segment_bytes, age_s=config.segment_seconds)
    )
    moved: asyncio.Queue[bytes] = asyncio.Queue()
    where = Whereabouts(config.control_url, config.tls.cert, config.tls.ca, moved.put_nowait)
    where.load()
    async with (
        remote_vault.opened(
            config.vault_file, config.control_url, config.tls, config.spool_dir, where
        ) as opened,
        MachineStorage.connect(config.blob) as machines,
        asyncio.TaskGroup() as tasks,
    ):
        vault = guarded(opened, machines)
        storage = Trouble("storage", lambda: None)
        watching = tasks.create_task(watch_storage(machines.vault, storage), name="storage")
        async with _spooling(Spool(config.spool_dir, machines, vault, settings)) as spool:
            cache = Cache(config.spool_dir, config.cache_b, spool)
            sides, boots = Sides(machines, config.spool_dir), BootFiles(config.spool_dir)
            admission = Admission(
                spool.open_machine,
                policy=config.credit,
                cache=cache.measure,
                check_side=sides.check,
                boots=boots,
            )
            receiver = Receiver((config.listen, config.port), context, admission)
            revoked = RevokedFile(config.tls.cert.with_name(REVOKED_FILE), config.tls.ca, receiver.revoke)
            deletions = Deletions(machines, spool, admission, sides, boots, vault)
            files = (sides.files, boots.files)
            troubles = (*(kind.trouble for kind in files), revoked.trouble)
            board = StatusBoard(admission, spool, storage, CacheLevel(config.credit), vault, troubles)
            admission.control = where.signed
            where.on_taken = partial(setattr, admission, "control")
            revoked.load()  # before anybody is admitted, and whether or not a config server will tell it again
            await receiver.start()
            beside: list[asyncio.Task[None]] = []
            try:
                beside = [
                    tasks.create_task(receiver.watch(), name="receiver"),
                    tasks.create_task(_store_again(files), name="machine files"),
                    tasks.create_task(_tell_service_manager(board), name="service manager"),
                    tasks.create_task(deletions.run(), name="deletions"),
                    tasks.create_task(_tell_agents(receiver, moved), name="where the config server is"),
                    tasks.create_task(spool.adapt_compression(), name="compression level"),
                ]
                notify("READY=1")
                if config.control_url:
                    await _serve_control(
                        config,
                        context,
                        admission,
                        board,
                        spool,
                        vault,
                        revoked,
                        deletions,
                        where,
                        machines,
                        stop,
                    )
                await stop.wait()
            finally:
                for task in (watching, *beside):
                    task.cancel()
                await receiver.stop()


class Cache:
    """The file system that holds the spool, or the part of it that was configured."""

    def __init__(self, folder: Path, size_b: int | None, spool: Spool) -> None:
        self._folder = folder
        self._size_b = size_b
        self._spool = spool
        self._failing = False

    def measure(self) -> CacheSpace:
        """No room at all while the file system does not even answer: then nobody may send."""
        try:
            usage = os.statvfs(self._folder)
        except OSError as exc:
            if not self._failing:
                _log.error("the cache cannot be measured", folder=str(self._folder), cause=cause_of(exc))
            self._failing = True
            return CacheSpace(total_b=self._size_b or 0, free_b=0)
        self._failing = False
        free_b = usage.f_bavail * usage.f_frsize
        if self._size_b is None:
            return CacheSpace(total_b=usage.f_blocks * usage.f_frsize, free_b=free_b)
        used_b = sum(log.pending_b + log.aside_b for log in self._spool.machines.values())
        return CacheSpace(total_b=self._size_b, free_b=max(0, min(free_b, self._size_b - used_b)))


@asynccontextmanager
async def _spooling(spool: Spool) -> AsyncIterator[Spool]:
    await spool.start()
    try:
        yield spool
    finally:
        await spool.close(flush_s=STOP_FLUSH_S)


async def watch_storage(store: BlobStore, trouble: Trouble) -> None:
    """Whether storage lets us in, although no machine may have anything to upload. Never returns.

    Beside everything else: a process server must take batches also while storage cannot be reached. The patient store tells of what it
    waits out, and when that is over; what it does not wait out is over when storage answers the next time.
    """
    patient = store.patient(trouble.report)
    while True:
        try:
            await patient.ensure_container()
            while True:
                trouble.report(None)
                await asyncio.sleep(PROBE_S)
                with contextlib.suppress(
                    BlobNotFoundError
                ):  # there is none of this name, and that is an answer
                    await patient.properties(PROBE)
        except StorageError as exc:
            trouble.report(exc)
            await asyncio.sleep(PROBE_S)


async def _store_again(files: Iterable[MachineFiles]) -> None:
    while True:
        await asyncio.sleep(STORE_AGAIN_S)
        for kind in files:
            await kind.store_again()


async def _serve_control(
    config: ProcessServerConfig,
    context: Any,
    admission: Admission,
    board: StatusBoard,
    spool: Spool,
    vault: Vault,
    revoked: RevokedFile,
    deletions: Deletions,
    where: Whereabouts,
    machines: MachineStorage,
    stop: asyncio.Event,
) -> None:
    """Reports and takes commands until `stop` is set. The renewed certificate is used from the next session
    on."""

    async def handle(command: Command) -> dict[str, Any]:
        if command.kind == CommandKind.CHECK_SIDE:
            await admission.check_side(str(command.args.get("machine", "")))
            return {}
        if command.kind == CommandKind.FLUSH:
            return await flush(spool, str(command.args.get("machine", "")))
        raise UsageError(f"The process server knows no command '{command.kind}'")

    def renewed(chain: tls.Chain) -> None:
        tls.present(context, chain)
        revoked.trusted(chain.ca)
        remote_vault.renewed(vault, chain)

    control = ControlClient(
        config.control_url,
        config.tls,
        on_renewed=renewed,
        on_revoked=revoked.take,
        on_deleted=deletions.tell,
        where=where,
        find=machines.pointer,
    )
    try:
        await control.serve(board.report, handle, stop)
    finally:
        await control.close()


async def _tell_agents(receiver: Receiver, moved: asyncio.Queue[bytes]) -> None:
    """Never returns."""
    while True:
        await receiver.tell(await moved.get())


async def flush(spool: Spool, machine: str) -> dict[str, Any]:
    """Uploads all that the machine has here; where its log stands then."""
    log = spool.machines.get(machine)
    if log is None:
        raise MachineNotFoundError(
            f"Machine {machine} cannot be flushed", cause="it has no log on this process server"
        )
    try:
        async with asyncio.timeout(FLUSH_S):
            await log.flush()
    except TimeoutError as exc:
        raise DeadlineError(
            f"Machine {machine} was not flushed within {FLUSH_S:.0f} s",
            cause="; ".join(error.what for error in log.errors) or "storage is slow",
            action="Look at the upload hop of `understudy machine show`.",
        ) from exc
    position = log.position
    return {"epoch": position.epoch, "uploaded": position.uploaded}


async def _tell_service_manager(board: StatusBoard) -> None:
    interval_s = min(STATUS_S, watchdog_interval_s() or STATUS_S)
    while True:
        # The watchdog watches this event loop. A hung disk or storage is told as an error: a restart heals
        # neither.
        notify(f"WATCHDOG=1\nSTATUS={board.line()}")
        await asyncio.sleep(interval_s)
