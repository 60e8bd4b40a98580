"""The spool on a real disk and real storage: what is acknowledged, what is uploaded, and what a restart finds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from process_server.spool import watermark
from shared.batch import NO_DIGEST, Buffer, encode
from shared.blob import BlobConfig, BlobCore, BlobStore
from shared.errors import (
    BatchGapError,
    SpoolError,
    TransientError,
    UsageError,
)
from shared.host import durable
from shared.log import names
from tests.azurite import Azurite
from tests.epoch_ids import id_in
from tests.logs import Made, make_batch, make_chain
from tests.spools import (
    T,
    append_all,
    hello_again,
    left_behind,
    make_spool,
    opened,
    read_log,
    same_batches,
    spool_files,
    until,
    uploaded,
)


def everything_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_what_is_appended_and_flushed_is_read_back_and_leaves_the_spool(
    store: BlobStore, folder: Path
) -> None:
    chain = make_chain(30)
    async with opened(make_spool(folder, store)) as log:
        assert (log.position.epoch, log.position.spooled, log.position.uploaded) == (1, 0, 0)
        await append_all(log, chain[:10])
        position = log.position
        assert (position.spooled, position.spooled_seq, position.spooled_digest) == (
            10,
            1000,
            chain[9].digest,
        )
        assert position.uploaded == 0
        assert log.pending_b > 0
        await log.flush()
        assert (log.position.uploaded, log.position.uploaded_seq, log.pending_b) == (10, 1000, 0)
        await asyncio.gather(*(log.append(m.encoded, m.batch, m.digest) for m in chain[10:]))
        await log.flush()
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


async def test_a_batch_is_acknowledged_only_after_its_sync_and_others_share_the_next_one(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(6)
    syncs: list[int] = []
    syncing, go = threading.Semaphore(0), threading.Semaphore(0)
    real = durable.sync_data

    async with opened(make_spool(folder, store)) as log:

        def gated(fd: int) -> None:
            syncing.release()
            go.acquire()
            real(fd)
            syncs.append(fd)

        monkeypatch.setattr(durable, "sync_data", gated)
        first = asyncio.create_task(log.append(*chain[0]))
        await asyncio.to_thread(syncing.acquire)
        rest = [asyncio.create_task(log.append(*m)) for m in chain[1:]]
        done, _ = await asyncio.wait({first}, timeout=0.1)
        assert not done
        assert log.position.spooled == 0
        go.release()
        await first
        assert log.position.spooled == 1
        await asyncio.to_thread(syncing.acquire)
        assert not any(task.done() for task in rest)
        for _ in rest:
            go.release()
        await asyncio.gather(*rest)
        assert log.position.spooled == 6
        assert len(syncs) < 6, "batches that waited for a sync share the next one"


async def test_the_folder_of_a_new_file_is_synced_before_its_first_batch_is_acknowledged(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_data, real_folder = durable.sync_data, durable.sync_folder
    async with opened(make_spool(folder, store)) as log:

        def sync_data(fd: int) -> None:
            real_data(fd)
            calls.append("data")

        def sync_folder(path: Path) -> None:
            real_folder(path)
            calls.append("folder")

        monkeypatch.setattr(durable, "sync_data", sync_data)
        monkeypatch.setattr(durable, "sync_folder", sync_folder)
        await append_all(log, make_chain(2))
    assert calls == ["data", "folder", "data"]


@pytest.mark.parametrize(
    ("numbers", "size_b", "age_s"),
    [
        pytest.param([1, 3, 5], 30_000, 3600.0, id="size"),
        pytest.param([2, 4, 6], 8_000, 3600.0, id="what it holds when opened"),
        pytest.param([1, 2], 1 << 20, 0.05, id="age"),
    ],
)
async def test_a_segment_is_closed_at_its_size_at_what_it_holds_and_at_its_age(
    store: BlobStore, folder: Path, numbers: list[int], size_b: int, age_s: float
) -> None:
    made: list[Made] = []
    for number, kind in enumerate(numbers, 1):  # 32 KiB each; even kinds compress to nothing
        payload = make_batch(kind, sectors=64).batch.payload
        made.append(rebuilt(number, payload, made[-1].digest if made else NO_DIGEST))
    moved = asyncio.Event()
    async with opened(make_spool(folder, store, size_b=size_b, age_s=age_s)) as log:
        log.on_change = moved.set
        await append_all(log, made)
        while log.position.uploaded < len(made):  # nobody flushes
            moved.clear()
            await moved.wait()
    assert same_batches(await read_log(store, folder), made)


def rebuilt(number: int, payload: Buffer, predecessor: bytes) -> Made:
    batch = msgspec.structs.replace(make_batch(number, predecessor, sectors=64).batch, payload=payload)
    buffers, digest = encode(batch)
    return Made(b"".join(bytes(b) for b in buffers), batch, digest)


async def test_a_restart_goes_on_uploading_without_the_agent(store: BlobStore, folder: Path) -> None:
    chain = make_chain(9)
    await left_behind(folder, store, chain[:5])
    assert spool_files(folder) == ["000000000001.seg"]
    spool = make_spool(folder, store)
    await spool.start()
    log = spool.machines["m1"]
    await until(log, lambda: uploaded(log) == 5)
    position = await log.begin(await hello_again(store, 1))
    assert (position.spooled, position.uploaded, position.spooled_digest) == (5, 5, chain[4].digest)
    await append_all(log, chain[5:])
    await spool.close(flush_s=10)
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


async def test_a_batch_that_is_not_the_next_one_is_refused(store: BlobStore, folder: Path) -> None:
    chain = make_chain(4)
    async with opened(make_spool(folder, store)) as log:
        with pytest.raises(BatchGapError):
            await log.append(*chain[1])
        await log.append(*chain[0])
        with pytest.raises(BatchGapError):
            await log.append(*chain[0])
        with pytest.raises(BatchGapError):
            await log.append(*make_chain(2, seed=1)[1])
        await log.append(*chain[1])
        assert log.position.spooled == 2


async def test_nothing_is_lost_while_storage_is_down(tmp_path: Path, folder: Path) -> None:
    chain = make_chain(12)
    with Azurite(tmp_path / "azurite", persistent=True) as server:
        async with BlobStore.connect(server.config("test")) as store:
            async with opened(make_spool(folder, store, size_b=2000)) as log:
                await append_all(log, chain[:3])
                await log.flush()
                back = await hello_again(store, 1)
                server.stop()
                await append_all(log, chain[3:])
                assert log.position.spooled == 12
                changed = asyncio.Event()
                log.on_change = changed.set
                while not any(isinstance(e, TransientError) for e in log.errors):
                    changed.clear()
                    await changed.wait()
                # The agent may come back meanwhile: an open log goes on although storage cannot be asked.
                again = await log.begin(back)
                assert (again.spooled, again.uploaded) == (12, 3)
                server.start()
                await log.flush()
                assert log.errors == []
                assert log.pending_b == 0
            assert same_batches(await read_log(store, folder), chain)


async def test_after_a_failed_sync_the_agent_sends_again_and_nothing_is_lost_or_doubled(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(9)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:3])

        def fail(_fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(durable, "sync_data", fail)
        results = await asyncio.gather(*(log.append(*m) for m in chain[3:6]), return_exceptions=True)
        assert all(isinstance(r, SpoolError | BatchGapError) for r in results), results
        monkeypatch.undo()
        position = await log.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (3, chain[2].digest)
        await append_all(log, chain[3:])
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


async def test_a_cancelled_append_keeps_its_buffer_until_it_is_sealed(store: BlobStore, folder: Path) -> None:
    chain = make_chain(3, sectors=2000)
    async with opened(make_spool(folder, store)) as log:
        buffer = bytearray(chain[0].encoded)
        task = asyncio.create_task(log.append(buffer, chain[0].batch, chain[0].digest))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        buffer[:] = bytes(len(buffer))  # what a receiver may do once the call has ended
        position = await log.begin(await hello_again(store, 1))
        assert position.spooled == 1
        await append_all(log, chain[1:])
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)


class EveryTwice(BlobCore):
    """Storage whose first answer is always lost: each request is made twice, and only the second answer is seen."""

    async def call(self, what: str, attempt: Callable[[], Awaitable[T]], *, size_b: int = 0) -> T:
        with contextlib.suppress(Exception):
            await attempt()
        return await super().call(what, attempt, size_b=size_b)


async def test_requests_whose_first_answer_is_lost_do_nothing_twice(
    store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(20)
    async with BlobStore(EveryTwice.connect(blob_config)) as twice:
        for epoch, part in ((0, chain[:11]), (1, chain[11:])):
            async with opened(make_spool(folder, twice, size_b=2000, max_blocks=4), epoch) as log:
                await append_all(log, part)
                await log.flush()
                assert log.position.epoch == 1
        assert log.errors == []
    assert same_batches(await read_log(store, folder), chain)
    assert len([b async for b in store.list(names.term_prefix(1))]) == 2
    assert not [b async for b in store.list(names.epoch_folder(2))]


async def test_listing_segments_writes_no_document_on_the_cache_disk(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    real = durable.replace_file

    def replace(path: Path, data: Buffer, *, mode: int = 0o600, durable: bool = True) -> None:
        written.append(path)
        real(path, data, mode=mode, durable=durable)

    async with opened(make_spool(folder, store, size_b=1)) as log:
        monkeypatch.setattr(durable, "replace_file", replace)
        await append_all(log, make_chain(8))
        await log.flush()
        assert written == []
    assert [path.name for path in written] == ["state.json"]
    assert watermark.read(folder / "m1/00000001", (await id_in(store, 1)).claim).uploaded == 8


async def test_two_processes_cannot_use_one_spool(store: BlobStore, folder: Path) -> None:
    async with opened(make_spool(folder, store)):
        second = make_spool(folder, store)
        with pytest.raises(UsageError, match="in use"):
            await second.start()
        await second.close()


async def test_no_plaintext_is_in_the_spool_or_in_storage(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, folder: Path
) -> None:
    chain = make_chain(4, sectors=8)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:2])
        await log.flush()
        await append_all(log, chain[2:])
        stored = [await store.read(b.name) async for b in store.list("")]
        stored += [p.read_bytes() for p in everything_in(folder)]
    vault_key = (tmp_path / "vault.json").read_bytes()
    assert len(stored) > 5
    for m in chain:
        needle = bytes(m.batch.payload)[1000:1040]
        assert not any(needle in data for data in stored)
    assert not any(vault_key[60:90] in data for data in stored)
