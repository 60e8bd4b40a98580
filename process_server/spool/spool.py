"""The spool: the process server's cache of batches that are acknowledged but not yet in storage, per
machine and epoch.

    <folder>/<machine>/<epoch>/<first batch>.seg     spool files = segments (shared/log/FORMAT.md)
    <folder>/<machine>/<epoch>/state.json            our term, the last batch that we know was listed, and in which container
    <folder>/<machine>/damaged|unlisted/…            what was set aside (aside.py)
    <folder>/<machine>/.deleted-<epoch>-<container>/ what is left of an epoch that was dropped (process_server/deletions.py)
    <folder>/<machine>/side.json, boot.json          which copy of the machine is it (sides.py; reception/boots.py)
    <folder>/.keys/, .lock                           data keys, sealed (shared/keys/key_cache.py); one process at a time

Who may write which log: machine_log.py, ownership.py; how batches become durable: writer.py, file.py; how they get to storage: uploader.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from process_server.spool.epoch_log import LogSettings, Resources
from process_server.spool.level import idle_part, next_level
from process_server.spool.machine_folder import clear_killed
from process_server.spool.machine_log import MachineLog
from process_server.spool.writer import Compression, SegmentLimits
from shared.daemon import logging
from shared.daemon.threads import Threads, in_thread
from shared.errors import SpoolError, UsageError, cause_of
from shared.host import durable
from shared.keys.vault import Vault
from shared.log import names
from shared.machine.storage import MachineStorage
from shared.wire.messages import Hello

__all__ = ["LogSettings", "MachineLog", "SegmentLimits", "Spool"]

_SEALERS: Final = max(2, os.cpu_count() or 1)
_DISK_THREADS: Final = 16
_READING_THREADS: Final = 8
"""As many as uploads: a disk that is read for them, or recovered, must not keep syncs waiting for a thread."""
_UPLOADS: Final = 8


_LEVEL_S: Final = 5.0
"""How often the compression level may change."""

_log = logging.get()


class Spool:
    """All machines' logs in one folder. One process at a time uses it."""

    def __init__(self, folder: Path, storage: MachineStorage, vault: Vault, settings: LogSettings) -> None:
        self.machines: dict[str, MachineLog] = {}
        self._folder = folder
        self._lock_fd = -1
        self._sealers = Threads(_SEALERS, thread_name_prefix="seal")
        self._disk = Threads(_DISK_THREADS, thread_name_prefix="spool")
        self._reading = Threads(_READING_THREADS, thread_name_prefix="read")
        self._resources = Resources(
            storage,
            vault,
            settings,
            self._sealers,
            self._disk,
            self._reading,
            asyncio.Semaphore(_UPLOADS),
            Compression(),
        )

    async def start(self) -> None:
        """Takes the folder and begins to upload what it holds, in the background. Does not wait for storage.

        UsageError if another process has the folder; SpoolError if it cannot be used.
        """
        await asyncio.to_thread(self._take_folder)
        for path in sorted(self._folder.iterdir()):
            if path.is_dir() and names.is_machine(path.name):
                self._machine(path.name).resume()

    async def open_machine(self, hello: Hello) -> MachineLog:
        """The log of the machine that says hello; `begin` it."""
        return self._machine(names.check_machine(hello.machine))

    async def leave(self, machine: str) -> None:
        """Nothing of it is here, and nobody has its log."""
        log = self.machines.pop(machine)
        await log.close()
        with contextlib.suppress(OSError):  # somebody has just come who bears the name
            await in_thread((self._folder / machine).rmdir, executor=self._disk)

    async def adapt_compression(self) -> None:
        """Compresses as hard as the uplink asks for and idle cores allow. Never returns."""
        compression, before = self._resources.compression, _stat()
        while True:
            await asyncio.sleep(_LEVEL_S)
            now = _stat()
            waits = any(log.waits_for_uplink for log in self.machines.values())
            level = next_level(compression.level, waits=waits, idle=idle_part(before, now))
            before = now
            if level != compression.level:
                _log.info("compression level", level=level, before=compression.level)
                compression.level = level

    async def close(self, flush_s: float = 0.0) -> None:
        """Stops; with `flush_s`, tries for so long to upload everything first. What is not uploaded stays
        for the next start.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_s):
                await asyncio.gather(*(log.flush() for log in self.machines.values()), return_exceptions=True)
        await asyncio.gather(*(log.close() for log in self.machines.values()))
        self._sealers.shutdown()
        self._disk.shutdown()
        self._reading.shutdown()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _machine(self, name: str) -> MachineLog:
        log = self.machines.get(name)
        if log is None:
            log = self.machines[name] = MachineLog(self._resources, name, self._folder / name)
        return log

    def _take_folder(self) -> None:
        try:
            durable.make_folder(self._folder)
            self._lock_fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self._folder.iterdir():
                if path.is_dir() and names.is_machine(path.name):
                    for failure in clear_killed(path):
                        # What was dropped says of which container it was: the next word tries again, and tells.
                        _log.warning("rest of what was killed not removed", cause=str(failure))
                    with contextlib.suppress(OSError):  # there is something in it
                        path.rmdir()
        except BlockingIOError as exc:
            raise UsageError(
                f"The spool folder {self._folder} is in use",
                cause="another process server has it",
                action="Stop that one first, or configure another folder.",
            ) from exc
        except OSError as exc:
            raise SpoolError(f"The spool folder {self._folder} cannot be used", cause=cause_of(exc)) from exc


def _stat() -> str:
    """What the kernel counts of its cores; empty where it cannot be read. Not a file on a disk: it answers at once."""
    try:
        return Path("/proc/stat").read_text()
    except OSError:
        return ""
