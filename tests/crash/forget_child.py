"""The process that the crash tests kill: a process server's parts, which are told that a machine was deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from shared import crashpoints
from shared.blob import BlobConfig
from shared.machine.storage import MachineStorage
from tests.deleted_machines import parts
from tests.spools import MACHINE


class Work(msgspec.Struct, frozen=True):
    config: BlobConfig
    folder: Path
    deleted: str
    crash_at: str


def run(work: Work) -> None:
    crashpoints.arm(work.crash_at)
    asyncio.run(asyncio.wait_for(_run(work), 60))


async def _run(work: Work) -> None:
    async with MachineStorage.connect(work.config) as storage, parts(work.folder, storage) as made:
        while work.deleted not in made.report().machines[MACHINE].containers:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)
        await made.hears(work.deleted)
