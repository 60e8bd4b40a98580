"""A process server that is killed while it drops a machine that was deleted: the next start, told again, has nothing left of it; and what
was of the next machine of that name is as it was.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from pathlib import Path

import pytest

from process_server.spool.aside import Kind, Note
from shared.blob import BlobConfig
from shared.crashpoints import FORGET_POINTS
from shared.machine.storage import MachineStorage
from tests.crash.forget_child import Work, run
from tests.deleted_machines import parts, remove
from tests.logs import make_chain
from tests.marks import some
from tests.spools import MACHINE, append_all, read_log, same_batches

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.forget_child", "azure.storage.blob.aio", "aiohttp"])


async def killed(work: Work) -> None:
    process = _processes.Process(target=run, args=(work,))
    process.start()
    await asyncio.to_thread(process.join, 90)
    assert process.exitcode == -signal.SIGKILL
    process.close()


_SHORT = [("forget.aside-file-gone", False), ("forget.epoch-moved", False), ("forget.epoch-gone", True)]
_CASES = [(point, False) for point in FORGET_POINTS] + [(point, True) for point in FORGET_POINTS[:-1]]
"""Where the name is used again, what lies beside the spool is the new machine's, and the last point is not reached."""


@pytest.mark.parametrize(("crash_at", "again"), some(_CASES, short=_SHORT))
async def test_what_a_kill_left_of_a_deleted_machine_goes_with_the_next_word(
    blob_config: BlobConfig,
    machine_storage: MachineStorage,
    tmp_path: Path,
    crash_at: str,
    *,
    again: bool,
) -> None:
    """With `again`, the name was given to another machine meanwhile, of which batches wait here, too."""
    folder, chain = tmp_path / "spool", make_chain(3)
    async with parts(folder, MachineStorage(machine_storage.vault)) as made:
        log = await made.begun()
        await append_all(log, chain)
        deleted = str(await machine_storage.named(MACHINE))
        damaged = tmp_path / "damaged.seg"
        damaged.write_bytes(b"batches")
        note = Note(epoch=1, first=7, last=9, cause="damaged", container=deleted)
        log._folder.aside.put(Kind.DAMAGED, damaged, note)
    await remove(machine_storage)
    if again:
        async with parts(folder, MachineStorage(machine_storage.vault)) as made:
            log = await made.begun()
            await append_all(log, chain := make_chain(3, epoch=log.position.epoch))
    await killed(Work(blob_config, folder, deleted, crash_at))
    async with parts(folder, MachineStorage(machine_storage.vault)) as made:
        for _ in range(2):
            if MACHINE in made.spool.machines:
                await made.log.look()
            await made.hears(deleted)
        if again:
            async with asyncio.timeout(20):
                while made.log.pending_b or made.log.errors:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.02)
            assert made.log.containers == {await machine_storage.named(MACHINE)}
        else:
            assert (made.here(), list(folder.glob("*")), made.report().machines) == (
                [],
                [folder / ".lock"],
                {},
            )
    if again:
        store = await machine_storage.find(MACHINE)
        assert same_batches(await read_log(store, folder, chain[0].batch.epoch), chain)
