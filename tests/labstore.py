"""The storage of a lab and its vault, opened from the configuration of its daemons."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from shared.blob import BlobConfig, BlobStore
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from tests.lab import Lab


def storage(lab: Lab) -> BlobStore:
    """The vault container."""
    return BlobStore.connect(
        msgspec.convert(_config(lab)["blob"], BlobConfig, dec_hook=lambda type_, value: type_(value))
    )


@contextlib.asynccontextmanager
async def machine_store(lab: Lab, machine: str = "lab") -> AsyncIterator[BlobStore]:
    """The machine's container."""
    async with storage(lab) as vault_store:
        yield await MachineStorage(vault_store).find(machine)


def vault(lab: Lab) -> FileVault:
    return FileVault(Path(_config(lab, "config-server")["vault_file"]))


def _config(lab: Lab, daemon: str = "process-server") -> dict[str, Any]:
    return tomllib.loads((lab.folder / f"{daemon}.toml").read_text())
