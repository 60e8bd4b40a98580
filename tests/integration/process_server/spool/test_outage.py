"""While storage takes nothing: what is tried, what waits on the disk, and what memory holds."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from process_server.spool import spool as spool_module
from process_server.spool.file import Readout, SpooledSegment
from shared.blob import BlobConfig, BlobStore
from shared.machine.storage import MachineStorage
from tests.azurite import Azurite
from tests.logs import Made, make_chain
from tests.spools import (
    Gated,
    append_all,
    hello,
    make_spool,
    opened,
    read_log,
    same_batches,
    spool_files,
    started,
    until,
    uploaded,
)
from tests.storage_faults import Answer, FaultProxy


async def test_memory_in_an_outage_is_bounded_by_segments_not_by_batches(
    blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(4000, sectors=1)
    async with Gated.connect(blob_config) as store:
        store.gate = asyncio.Event()
        async with opened(make_spool(folder, store, size_b=40_000)) as log:

            async def append(made: list[Made]) -> None:
                for at in range(0, len(made), 200):
                    await asyncio.gather(*(log.append(*m) for m in made[at : at + 200]))

            await append(chain[:1500])
            before = len(spool_files(folder))
            assert before > 5, "more than are uploaded at a time: those are in memory, whole"
            gc.collect()
            tracemalloc.start()
            try:
                await append(chain[1500:])
                gc.collect()
                ours = [tracemalloc.Filter(True, f"*/{part}/*") for part in ("process_server", "shared/log")]
                held = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
            finally:
                tracemalloc.stop()
            closed = len(spool_files(folder)) - before
            assert 0 < closed < 60
            # At most one file is open, and remembers its batches; of the others, a few kilobytes each.
            growth_b = sum(part.size for part in held)
            assert growth_b < 200 * 500 + closed * 8192
            store.gate.set()
            await log.flush()
        assert same_batches(await read_log(store, folder), chain)


async def test_while_storage_takes_nothing_one_segment_is_tried_and_the_others_wait_on_the_disk(
    azurite: Azurite,
    store: BlobStore,
    blob_config: BlobConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = make_chain(8)
    read: list[str] = []

    def noted(segment: SpooledSegment) -> Readout:
        read.append(segment.path.name)
        return really(segment)

    really = SpooledSegment.read
    with FaultProxy(azurite) as proxy:
        async with (
            BlobStore.connect(proxy.config(blob_config.container)) as faulty,
            opened(make_spool(folder, faulty, size_b=1)) as log,
        ):
            refused = proxy.add(Answer(503, "ServerBusy"), blob="logs/*.seg", times=None)
            await append_all(log, chain[:1])
            await until(log, lambda: log.upload_trouble is not None)
            monkeypatch.setattr(SpooledSegment, "read", noted)
            await append_all(log, chain[1:])
            struck = refused.struck
            while refused.struck < struck + 2:  # noqa: ASYNC110 - the proxy's thread has no event of this loop
                await asyncio.sleep(0.05)
            assert set(read) == {"000000000001.seg"}
            proxy.clear()
            await log.flush()
    assert len(set(read)) == 8
    assert same_batches(await read_log(store, folder), chain)


async def test_machines_whose_storage_takes_nothing_keep_no_other_from_uploading(
    machine_storage: MachineStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_UPLOADS", 1)
    spool = make_spool(folder, machine_storage)
    async with started(spool) as good:
        retired = msgspec.structs.replace(hello(0), machine="retired")
        gone = await spool.open_machine(retired)
        await gone.begin(retired)
        await good.begin(hello(0))
        await (await machine_storage.find("retired"))._core.container.delete_container()
        await append_all(gone, make_chain(2))
        flushing = asyncio.create_task(gone.flush())
        await until(gone, lambda: gone.upload_trouble is not None)
        await append_all(good, make_chain(2))
        async with asyncio.timeout(20):
            await good.flush()
        assert (uploaded(good), uploaded(gone)) == (2, 0)
        flushing.cancel()


async def test_between_two_attempts_no_segment_is_in_memory(
    azurite: Azurite, store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(5, sectors=1024)  # 512 KiB each, every other incompressible
    read = [tracemalloc.Filter(True, "*/process_server/spool/file.py", all_frames=True)]
    held_b: list[int] = []
    gc.disable()  # what only a collection lets go of may stay for minutes
    tracemalloc.start(8)
    try:
        with FaultProxy(azurite) as proxy:
            async with (
                BlobStore.connect(proxy.config(blob_config.container)) as faulty,
                opened(make_spool(folder, faulty, size_b=1)) as log,
            ):
                refused = proxy.add(Answer(503, "ServerBusy"), blob="logs/*.seg", times=None)
                await append_all(log, chain)

                def between_attempts() -> None:
                    if refused.struck > len(chain) and log.upload_trouble is not None:
                        held = tracemalloc.take_snapshot().filter_traces(read).statistics("filename")
                        held_b.append(sum(part.size for part in held))

                log.on_change = between_attempts
                async with asyncio.timeout(20):
                    while len(held_b) < 3:  # noqa: ASYNC110 - what is waited for is the hook's own doing
                        await asyncio.sleep(0.05)
                log.on_change = None
                proxy.clear()
                await log.flush()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert max(held_b) < 256 * 1024
    assert same_batches(await read_log(store, folder), chain)
