"""What the config server reads from blob storage: points for display, and the keys that a restore is granted.

It never writes there but which machine is the active side (`machine rebind`), the policies of grants (granting.py), who was revoked
(revoking.py), once which vault keys this installation has (shared/keys/vault_record.py), and its own state (recovery/); and it deletes
machines there (removal.py).
Storage that is away makes these calls fail, and nothing else: state and health come from reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final

from shared.api.points import PointList, PointView
from shared.blob import BlobConfig, BlobStore, Retry
from shared.blob.config import read_key
from shared.errors import (
    BlobNotFoundError,
    ConfigError,
    IntegrityError,
    MachineNotFoundError,
    NotFoundError,
    UnderstudyError,
    cause_of,
)
from shared.keys.sealing import MachineKey
from shared.keys.vault import Vault, machine_key
from shared.log import names
from shared.machine.storage import MachineStorage
from shared.recovery import listing

_FRESH_S: Final = 3.0
"""A list of points is read again when it is older: `machine watch` of several people costs storage no more
than of one."""
_PATIENCE_S: Final = 0.4
"""How long the view of a machine waits for its points; later it shows those of the last reading."""
_DEADLINE: Final = Retry(deadline_s=8.0, attempt_s=3.0)


class Storage:
    """The machines' containers; connects when first used."""

    def __init__(self, config: BlobConfig | None, vault: Vault | None) -> None:
        self._config = config
        self._vault = vault
        self._machines: MachineStorage | None = None
        self._known: dict[str, tuple[float, PointList]] = {}
        self._readers = listing.Readers()
        self._reading: dict[str, asyncio.Task[PointList]] = {}

    @property
    def place(self) -> str:
        """Account and container; empty where none is configured."""
        return "" if self._config is None else f"{self._config.url.rstrip('/')}/{self._config.container}"

    async def close(self) -> None:
        for task in list(self._reading.values()):
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        if self._machines is not None:
            await self._machines.close()
            self._machines = None

    async def points(self, machine: str) -> PointList:
        """The machine's points, and the periods without any. Raises StorageError, ConfigError."""
        return await asyncio.shield(self._read(machine))

    async def last_point(self, machine: str) -> PointView | None:
        """The newest point that is known: at most a few seconds old while storage answers quickly. Never
        waits long, and never fails: storage that cannot be read is the daemons' error to report."""
        if self._config is None:
            return None
        at, known = self._known.get(machine, (-1e9, None))
        if time.monotonic() - at > _FRESH_S:
            with contextlib.suppress(UnderstudyError):
                await asyncio.wait({self._read(machine)}, timeout=_PATIENCE_S)
            _, known = self._known.get(machine, (0.0, None))
        restorable = [point for point in known.points if not point.lost] if known is not None else []
        return restorable[-1] if restorable else None

    def forget(self, machine: str) -> None:
        """It was deleted."""
        self._known.pop(machine, None)

    def _read(self, machine: str) -> asyncio.Task[PointList]:
        """The reading that goes on, or a new one: however many ask, storage is asked once."""
        running = self._reading.get(machine)
        if running is None:
            running = asyncio.create_task(
                listing.read(self._connected(), machine, self._readers), name=f"points of {machine}"
            )
            self._reading[machine] = running
            running.add_done_callback(lambda task: self._note(machine, task))
        return running

    def _note(self, machine: str, task: asyncio.Task[PointList]) -> None:
        del self._reading[machine]
        if not task.cancelled() and task.exception() is None:
            self._known[machine] = (time.monotonic(), task.result())

    async def access(self, machine: str) -> tuple[BlobStore, MachineKey]:
        """The machine's container, and its key for somebody who restores it. Raises NotFoundError when storage holds nothing of it,
        IntegrityError when it holds the machine but not its key.
        """
        machines = self._connected()
        if self._config is None or self._vault is None:
            raise ConfigError("Restores cannot be granted here", cause="no vault file is configured")
        try:
            store = await machines.find(machine)
        except MachineNotFoundError as exc:
            raise NotFoundError(
                f"Nothing of '{machine}' is in blob storage yet",
                cause="its process server has not written anything",
                action="See `understudy machine show` for what it waits for.",
            ) from exc
        try:
            return store, await machine_key(store, self._vault, machine)
        except BlobNotFoundError as exc:
            raise IntegrityError(
                f"The key of '{machine}' is not in its container {store.container}",
                cause=f"there is no {names.KEY_DOCUMENT}: it was deleted, or nothing was written yet",
                action="Each segment of the log holds the key: restore without the config server, with --vault-file FILE --blob-url URL"
                " --blob-key-file FILE.",
            ) from exc

    @property
    def grants(self) -> bool:
        """Whether there is an account's key to grant with."""
        return self._config is not None and self._config.account_key_file is not None

    def account(self) -> tuple[BlobConfig, str | None]:
        """Where the account is, and its key, which never leaves this server; None where an identity serves. Raises UsageError,
        ConfigError.
        """
        self._connected()
        assert self._config is not None
        file = self._config.account_key_file
        return self._config, None if file is None else read_key(file)

    def ca_pem(self) -> str:
        """Of the storage server's CA; empty when it is a public one."""
        return _text_of(self._config.ca_file) if self._config is not None else ""

    def machines(self) -> MachineStorage:
        """Raises ConfigError where no storage is configured."""
        return self._connected()

    def _connected(self) -> MachineStorage:
        if self._config is None:
            raise ConfigError(
                "The config server has no storage",
                cause="no blob storage is configured",
                action="Add [blob] to the config server's configuration.",
            )
        if self._machines is None:
            self._machines = MachineStorage.connect(self._config).with_retry(_DEADLINE)
        return self._machines


def _text_of(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except OSError as exc:
        raise ConfigError(f"The file {path} could not be read", cause=cause_of(exc)) from exc
