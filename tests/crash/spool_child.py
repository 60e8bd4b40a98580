"""The process that the crash tests kill: a spool with its uploader, fed by an agent that always has the next batch."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from shared import crashpoints
from shared.blob import BlobConfig, BlobStore
from shared.log import names
from tests.logs import make_chain
from tests.spools import hello_again, make_spool

FILE_B = 1500
"""Spool files are closed at this size: two or three batches."""
BLOCKS = 5
"""Lines of an index blob."""


class Work(msgspec.Struct, frozen=True):
    config: BlobConfig
    folder: Path
    journal: Path
    """Gets a line for each thing that the process server told the agent: `epoch N`, `begun N`, `acked N`, `uploaded N`."""
    crash_at: str
    """Empty: run to the end."""
    batches: int
    """Send up to this one."""
    loses_leases: bool = False
    """Somebody breaks the leases of its index again and again, as a stale owner does, or storage that is set back."""


def run(work: Work) -> None:
    """What the child does; its exit code is 0 only if everything is uploaded."""
    if work.crash_at:
        crashpoints.arm(work.crash_at)
    asyncio.run(_run(work))


async def _run(work: Work) -> None:
    journal = os.open(work.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(what: str, number: int) -> None:
        os.write(journal, f"{what} {number}\n".encode())

    async with BlobStore.connect(work.config) as store:
        spool = make_spool(work.folder, store, size_b=FILE_B, max_blocks=BLOCKS)
        await spool.start()
        known = read_journal(work.journal).get("epoch", [0])
        said = await hello_again(store, known[-1])
        log = await spool.open_machine(said)
        position = await log.begin(said)
        say("epoch", position.epoch)
        say("begun", position.spooled)
        uploaded = 0
        moved = asyncio.Event()

        def changed() -> None:
            nonlocal uploaded
            moved.set()
            newest = log.last_indexed  # none once it is being closed
            if newest is not None and newest.number > uploaded:
                uploaded = newest.number
                say("uploaded", uploaded)

        log.on_change = changed
        changed()
        chain = make_chain(work.batches, epoch=position.epoch)
        for made in chain[position.spooled :]:
            await log.append(*made)
            say("acked", made.batch.number)
            if work.loses_leases and made.batch.number % 5 == 0:
                await _break_leases(store, position.epoch)
        await log.flush()
        while len(list((work.folder / log.machine).iterdir())) > 1:  # the rest of older epochs
            moved.clear()
            await moved.wait()
        await spool.close()
    os.close(journal)


async def _break_leases(store: BlobStore, epoch: int) -> None:
    for name in [
        info.name async for info in store.list(names.epoch_folder(epoch)) if names.is_index(info.name)
    ]:
        await store.leases.break_now(name)


def read_journal(path: Path) -> dict[str, list[int]]:
    """The numbers said of each kind, in order."""
    said: dict[str, list[int]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            what, number = line.split()
            said.setdefault(what, []).append(int(number))
    return said
