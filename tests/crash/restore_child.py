"""Restores a point in a process of its own: `python -m tests.crash.restore_child FOLDER`, the parameters as JSON on stdin."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
from pathlib import Path

import msgspec

from shared.blob import BlobConfig, BlobStore
from shared.keys.vault import FileVault
from shared.recovery.catalog import Catalog
from shared.recovery.materialise import materialise
from shared.recovery.references import resolve
from shared.recovery.verify import make_plan

LIMIT_S = 100
"""Longer than any wait of the code itself: an attempt at storage alone may last 30 s, and the imports do on a host that is busy enough."""


class Parameters(msgspec.Struct):
    blob: BlobConfig
    vault: str
    machine: str
    to: str


async def main() -> None:
    wanted = msgspec.json.decode(
        sys.stdin.buffer.read(), type=Parameters, dec_hook=lambda kind, value: kind(value)
    )
    async with BlobStore.connect(wanted.blob) as store:
        catalog = await Catalog.load(store, wanted.machine)
        plan = await make_plan(store, catalog, await resolve(catalog, "latest"))
        await materialise(store, FileVault(Path(wanted.vault)), plan, Path(wanted.to))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    asyncio.run(main())
