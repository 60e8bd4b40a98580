"""The spool on a real disk and real storage: what is acknowledged, what is uploaded, and what happens when parts fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import gc
import os
import stat
import subprocess
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import msgspec
import pytest

from process_server.reception.credit import CacheSpace, CreditPolicy
from process_server.reception.receiver import Machine
from process_server.service import watch_storage
from process_server.spool import epoch_log, machine_folder, machine_log, recovery, watermark
from process_server.spool import spool as spool_module
from process_server.spool.file import Readout, SpooledSegment
from process_server.spool.ownership import Patience
from process_server.spool.spool import MachineLog, Spool
from process_server.status import StatusBoard
from shared import durable
from shared.batch import NO_DIGEST, Buffer, encode
from shared.blob import BlobConfig, BlobCore, BlobStore, Content, Retry
from shared.errors import (
    BatchGapError,
    ContainerMissingError,
    EpochRefusedError,
    FencedError,
    LeaseHeldError,
    NotOpenError,
    SetAsideError,
    SilentPeerError,
    SpoolError,
    SpoolFullError,
    SpoolLeftoversError,
    SpoolLostError,
    SpoolStateError,
    SpoolVersionError,
    StorageForgotError,
    StorageKeyError,
    TransientError,
    UploadsStoppedError,
    UsageError,
)
from shared.log import names, segment
from shared.log.epochs import newest_epoch
from shared.log.writer import IndexWriter
from shared.machine_storage import MachineStorage
from shared.trouble import Trouble
from tests.azurite import Azurite
from tests.epoch_ids import id_in
from tests.logs import Made, make_batch, make_chain
from tests.loopdisk import loop_disk
from tests.spools import MACHINE, append_all, hello, hello_again, make_spool, read_log, same_batches
from tests.storage_faults import Answer, FaultProxy

T = TypeVar("T")


@asynccontextmanager
async def started(spool: Spool) -> AsyncIterator[MachineLog]:
    """The machine's log, which no agent has begun yet; the spool is closed at the end."""
    await spool.start()
    try:
        yield await spool.open_machine(hello(0))
    finally:
        await spool.close()


@asynccontextmanager
async def opened(spool: Spool, epoch: int = 0) -> AsyncIterator[MachineLog]:
    """The machine's log, begun; the spool is closed at the end."""
    async with started(spool) as log:
        store = await spool._resources.storage.find_or_create(MACHINE)
        await log.begin(await hello_again(store, epoch))
        yield log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a spool of the test is."""
    return tmp_path / "spool"


async def left_behind(folder: Path, store: BlobStore, made: Iterable[Made]) -> None:
    """A process server took these batches of a new epoch, and stopped before any was uploaded."""
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, made)


def everything_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def spool_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.seg"))


def epoch_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "m1").iterdir())


async def until(log: MachineLog, condition: Callable[[], bool]) -> None:
    """Waits for it; it is looked at whenever the log says that something has changed."""
    changed = asyncio.Event()
    log.on_change = changed.set
    async with asyncio.timeout(20):
        while not condition():
            changed.clear()
            await changed.wait()


def uploaded(log: MachineLog) -> int:
    return log.last_indexed.number if log.last_indexed is not None else 0


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


# ---- who may write ----


async def test_the_stale_one_of_two_process_servers_never_says_uploaded(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(12)
    a, b = make_spool(tmp_path / "a", store, owner="a"), make_spool(tmp_path / "b", store, owner="b")
    async with opened(a) as at_a:
        await append_all(at_a, chain[:4])
        await at_a.flush()
        await append_all(at_a, chain[4:6])  # spooled at a only
        async with opened(b, epoch=1) as at_b:
            assert at_b.position.spooled == 4
            await append_all(at_b, chain[4:8])
            with pytest.raises(FencedError):
                await at_a.flush()
            assert at_a.position.uploaded == 4
            assert isinstance(at_a.failure, FencedError)
            with pytest.raises(FencedError):
                await at_a.append(*chain[6])
            await at_b.flush()
            assert at_b.position.uploaded == 8
        # The agent comes back to a: what a still held is listed already.
        position = await at_a.begin(await hello_again(store, 1))
        assert (position.spooled, position.uploaded) == (8, 8)
        assert at_a.errors == []
        await append_all(at_a, chain[8:])
        await at_a.flush()
    assert same_batches(await read_log(store, tmp_path / "a"), chain)
    assert spool_files(tmp_path) == []


async def test_a_machine_that_moved_away_is_no_trouble_and_its_files_go_once_they_are_listed(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(8)
    a = make_spool(tmp_path / "a", store, owner="a", check_seconds=0.05)
    async with opened(a) as at_a:
        machine = Machine("m1", CreditPolicy())
        machine.problem = SilentPeerError("The agent is silent")
        receiver = SimpleNamespace(machines={"m1": machine}, copies={}, cache=CacheSpace(total_b=1, free_b=1))
        board = StatusBoard(receiver, a, Trouble("storage", lambda: None))  # type: ignore[arg-type]
        await append_all(at_a, chain[:3])
        await at_a.flush()
        await append_all(at_a, chain[3:5])
        assert [p.code for p in board.report().machines["m1"].errors] == [SilentPeerError.code]
        async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
            await append_all(at_b, chain[3:4])
            await at_b.flush()
            await until(at_a, lambda: at_a.elsewhere and spool_files(tmp_path / "a") == ["000000000004.seg"])
            await until(at_a, lambda: at_a.pending_b > 0)
            assert board.report().machines["m1"].errors == []
            assert isinstance(at_a.failure, FencedError), "a session that is still here must end"
            assert spool_files(tmp_path / "a") == ["000000000004.seg"], "batch 5 is nowhere else"
            await append_all(at_b, chain[4:6])
            await at_b.flush()
            await until(at_a, lambda: epoch_folders(tmp_path / "a") == [])
            await append_all(at_b, chain[6:7])
        position = await at_a.begin(await hello_again(store, 1))  # and back
        assert position.spooled == 6
        await append_all(at_a, chain[6:])
        await at_a.flush()
    assert same_batches(await read_log(store, tmp_path / "a"), chain)


async def test_what_a_machine_left_behind_is_listed_in_its_old_epoch_when_that_is_over(
    store: BlobStore, tmp_path: Path
) -> None:
    """A lists 1 to 5 and spools 6 to 10, which the agent lets go; it moves to B, which cannot go on behind 10."""
    chain = make_chain(10)
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:5])
        await at_a.flush()
        await append_all(at_a, chain[5:])
    async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
        assert at_b.position.spooled == 5
        again = make_spool(tmp_path / "a", store, owner="a", check_seconds=0.05)
        async with started(again) as log:
            await until(log, lambda: log.elsewhere)
            assert log.errors == []
            assert log.pending_b > 0, "it waits for upload, although another has the log"
            assert (await at_b.begin(hello(0, "lost continuity"))).epoch == 2
            await append_all(at_b, make_chain(2, epoch=2))
            await until(log, lambda: epoch_folders(tmp_path / "a") == [])
            assert log.pending_b == log.aside_b == 0
        await at_b.flush()
        assert at_b.errors == []
    assert same_batches(await read_log(store, tmp_path / "a", 1), chain)
    assert same_batches(await read_log(store, tmp_path / "a", 2), make_chain(2, epoch=2))


async def test_what_a_lost_server_took_and_never_continued_is_listed_after_its_silence(
    store: BlobStore, tmp_path: Path
) -> None:
    """B takes the term and burns down; the agent is gone as well. A still has 6 to 10."""
    chain = make_chain(10)
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:5])
        await at_a.flush()
        await append_all(at_a, chain[5:])
    await IndexWriter.take(store, "m1", await id_in(store, 1), "b")
    patience = Patience(silent_s=0.2)
    again = make_spool(tmp_path / "a", store, owner="a", check_seconds=0.05, patience=patience)
    async with started(again) as log:
        await until(log, lambda: log.elsewhere and log.pending_b > 0)
        await until(log, lambda: uploaded(log) == 10)
        assert log.pending_b == 0
    assert same_batches(await read_log(store, tmp_path / "a"), chain)
    assert spool_files(tmp_path / "a") == []


async def test_two_servers_with_rests_of_one_epoch_come_to_an_end(store: BlobStore, tmp_path: Path) -> None:
    """What one lists first decides, and the other's batches are set aside, none deleted."""
    chain = make_chain(6)
    other = [*chain[:3], *make_chain(2, first=4, predecessor=chain[2].digest, seed=7)]
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:3])
        await at_a.flush()
        await append_all(at_a, chain[3:])
    async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
        await append_all(at_b, other[3:])
    assert await newest_epoch(store) == 1
    async with opened(make_spool(tmp_path / "c", store, owner="c")) as at_c:
        assert at_c.position.epoch == 2
    patience = Patience(silent_s=0.1, over_s=0.1)
    a, b = (
        make_spool(tmp_path / name, store, owner=name, check_seconds=0.05, patience=patience)
        for name in ("a", "b")
    )
    async with started(a) as at_a, started(b) as at_b:
        await until(at_a, lambda: "00000001" not in epoch_folders(tmp_path / "a"))
        await until(at_b, lambda: "00000001" not in epoch_folders(tmp_path / "b"))
        aside = [log.aside_b for log in (at_a, at_b)]
        assert sorted(map(bool, aside)) == [False, True]
        loser = at_a if at_a.aside_b else at_b
        (problem,) = loser.errors
        assert isinstance(problem, SetAsideError)
        assert "batches 4 to" in problem.cause
        (kept,) = (tmp_path / ("a" if loser is at_a else "b") / "m1/unlisted").glob("*.seg")
        assert segment.check_body(kept.read_bytes(), "kept").rows[0].number == 4
    listed = await read_log(store, tmp_path / "a")
    assert same_batches(listed, chain) or same_batches(listed, other)


async def test_of_a_file_that_another_server_listed_in_part_the_rest_is_listed(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(7)
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:2])
        await at_a.flush()
        await append_all(at_a, chain[2:])  # one file: 3 to 7
        async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
            await append_all(at_b, chain[2:4])
            await at_b.flush()
        position = await at_a.begin(await hello_again(store, 1))
        assert (position.spooled, position.uploaded) == (7, 4)
        await at_a.flush()
    assert same_batches(await read_log(store, tmp_path / "a"), chain)
    assert spool_files(tmp_path / "a") == []


async def test_what_another_server_listed_otherwise_sets_ours_aside(store: BlobStore, tmp_path: Path) -> None:
    """After an agent crash batch boundaries differ: b has another batch 5 than a."""
    chain = make_chain(6)
    other = [*chain[:4], *make_chain(3, first=5, predecessor=chain[3].digest, seed=7)]
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:4])
        await at_a.flush()
        await append_all(at_a, chain[4:])
        async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
            await append_all(at_b, other[4:5])
            await at_b.flush()
        position = await at_a.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (5, other[4].digest)
        assert [type(error) for error in at_a.errors] == [SetAsideError]
        (kept,) = (tmp_path / "a/m1/unlisted").glob("*.seg")
        assert [row.number for row in segment.check_body(kept.read_bytes(), "kept").rows] == [5, 6]
        await append_all(at_a, other[5:])
        await at_a.flush()
    assert same_batches(await read_log(store, tmp_path / "a"), other)


async def test_a_restart_leaves_a_log_alone_that_another_server_took(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(6)
    async with opened(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await append_all(at_a, chain[:3])
    async with opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1) as at_b:
        again = make_spool(tmp_path / "a", store, owner="a")
        await again.start()
        await until(again.machines["m1"], lambda: again.machines["m1"].elsewhere)
        with pytest.raises(NotOpenError):
            _ = again.machines["m1"].position
        await again.close()
        await append_all(at_b, chain)
        await at_b.flush()
        assert at_b.failure is None
    assert same_batches(await read_log(store, tmp_path / "a"), chain)


async def test_epochs_that_are_over_or_unknown_are_refused(store: BlobStore, folder: Path) -> None:
    spool = make_spool(folder, store)
    async with opened(spool) as log:
        assert (await log.begin(hello(0, "again"))).epoch == 2
        with pytest.raises(EpochRefusedError, match=r"epoch 2 .* was begun by"):
            await log.begin(await hello_again(store, 1))
        with pytest.raises(StorageForgotError, match="newest epoch that storage knows is 2"):
            await log.begin(await hello_again(store, 7))
        assert (await log.begin(await hello_again(store, 2))).epoch == 2


async def test_the_rest_of_an_epoch_is_uploaded_beside_the_next_one(store: BlobStore, folder: Path) -> None:
    old, new = make_chain(5), make_chain(3, epoch=2)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, old)
        assert (await log.begin(hello(0, "lost continuity"))).epoch == 2
        await append_all(log, new)
        await log.flush()
        await until(log, lambda: epoch_folders(folder) == ["00000002"])
        assert log.pending_b == 0
    assert not (await store.properties(names.index(1, 1))).leased
    assert same_batches(await read_log(store, folder, 1), old)
    assert same_batches(await read_log(store, folder, 2), new)


@contextlib.contextmanager
def failing(part: str) -> Iterator[Callable[[], None]]:
    """Files whose path has `part` cannot be synced, nor recovered, until what it gives is called."""
    real = durable.sync_data

    def fail(fd: int) -> None:
        if part in os.readlink(f"/proc/self/fd/{fd}"):  # noqa: PTH115 - the link itself
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    real_ends = recovery._read_ends

    def fail_ends(path: Path) -> object:
        if part in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real_ends(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "sync_data", fail)
        patch.setattr(recovery, "_read_ends", fail_ends)
        yield patch.undo


async def test_the_rest_of_an_epoch_stays_until_it_is_uploaded_whatever_fails_meanwhile(
    store: BlobStore, folder: Path
) -> None:
    old, new = make_chain(5), make_chain(3, epoch=2)
    await left_behind(folder, store, old)
    with failing("/00000001/") as repair:
        async with started(make_spool(folder, store)) as log:
            assert (await log.begin(hello(0, "reboot"))).epoch == 2
            await append_all(log, new)
            await until(log, lambda: any(isinstance(e, SpoolError) for e in log.errors))
            assert spool_files(folder / "m1/00000001") == ["000000000001.seg"]
            repair()
            await until(log, lambda: epoch_folders(folder) == ["00000002"] and log.errors == [])
            await log.flush()
    assert same_batches(await read_log(store, folder, 1), old)
    assert same_batches(await read_log(store, folder, 2), new)


@pytest.mark.parametrize("epoch", [0, 1])
async def test_a_log_is_ours_although_a_kill_kept_its_last_term_from_the_spool(
    store: BlobStore, folder: Path, epoch: int
) -> None:
    chain = make_chain(5)
    await left_behind(folder, store, chain)
    # What a process does that is killed right after it:
    await IndexWriter.take(store, "m1", await id_in(store, 1), "ps1")
    async with started(make_spool(folder, store)) as log:
        if epoch == 0:
            assert (await log.begin(hello(0, "reboot"))).epoch == 2
            await until(log, lambda: epoch_folders(folder) == ["00000002"])
        else:
            await until(log, lambda: uploaded(log) == 5)
    assert same_batches(await read_log(store, folder), chain)


async def test_a_spool_that_cannot_be_resumed_is_tried_again(store: BlobStore, folder: Path) -> None:
    chain = make_chain(5)
    await left_behind(folder, store, chain)
    with failing("/00000001/") as repair:
        async with started(make_spool(folder, store)) as log:
            await until(log, lambda: any(isinstance(e, SpoolError) for e in log.errors))
            repair()
            await until(log, lambda: uploaded(log) == 5 and log.errors == [])
    assert same_batches(await read_log(store, folder), chain)


async def test_a_failed_begin_does_not_stop_the_uploads(store: BlobStore, folder: Path) -> None:
    chain = make_chain(5)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain)
        await IndexWriter.take(
            store, "m1", await id_in(store, 1), "ps1"
        )  # so the agent's return opens it anew
        with failing("/00000001/"), pytest.raises(SpoolError):
            await log.begin(await hello_again(store, 1))
        await until(log, lambda: uploaded(log) == 5)
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.parametrize("left", [b"", b"\xff\xfe", b"[" * 100_000], ids=["empty", "garbage", "too deep"])
async def test_a_damaged_state_document_locks_nobody_out(store: BlobStore, folder: Path, left: bytes) -> None:
    chain = make_chain(6)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:3])
        await log.flush()
        await append_all(log, chain[3:])
    (folder / "m1/00000001/state.json").write_bytes(left)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 6)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 6
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
async def test_a_state_document_that_the_disk_does_not_give_for_long_locks_nobody_out(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(9)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:3])
        await log.flush()
        await append_all(log, chain[3:6])
    state = folder / "m1/00000001/state.json"
    state.unlink()
    os.mknod(state, 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # nothing answers behind it
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("state.json could not be read" in error.what for error in log.errors))
        with pytest.raises(SpoolError, match="could not be read") as caught:
            await log.begin(await hello_again(store, 1))
        assert not caught.value.ends_epoch, "for a while it is waited for"
        monkeypatch.setattr(machine_folder, "UNREADABLE_S", 0.0)
        await until(log, lambda: uploaded(log) == 6)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 6
        await append_all(log, chain[6:])
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert state.is_file(), "written anew"


async def test_a_spool_file_of_a_newer_version_stays_and_its_machine_says_so(
    store: BlobStore, folder: Path
) -> None:
    chain = make_chain(3)
    await left_behind(folder, store, chain)
    path = folder / "m1/00000001/000000000001.seg"
    ours = path.read_bytes()
    path.write_bytes(ours[:8] + b"\3" + ours[9:])
    async with started(make_spool(folder, store, check_seconds=0.05)) as log:
        await until(log, lambda: any(isinstance(e, SpoolVersionError) for e in log.errors))
        with pytest.raises(SpoolVersionError, match="cannot be read"):
            await log.begin(await hello_again(store, 1))
    assert path.read_bytes() == ours[:8] + b"\3" + ours[9:]
    path.write_bytes(ours)  # the program that wrote it is back
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 3)
    assert same_batches(await read_log(store, folder), chain)


async def test_behind_a_damaged_spool_file_the_log_goes_on_where_it_still_can_and_the_loss_is_told(
    store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(9)
    async with opened(make_spool(folder, store, size_b=1)) as log:
        await append_all(log, chain[:3])
        await log.flush()
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=1), epoch=1) as log:
            await append_all(log, chain[3:9])  # a file each
    damaged = folder / "m1/00000001/000000000006.seg"
    data = bytearray(damaged.read_bytes())
    data[30] ^= 1
    damaged.write_bytes(data)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 5)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 5, (
            "an agent that has let go of 6 begins a new epoch"
        )
        lost, unlisted = log.errors
        assert isinstance(lost, SpoolLostError)
        assert "batches 6 to 6 of epoch 1" in lost.cause
        assert isinstance(unlisted, SetAsideError)
        assert "batches 6 to 6 before them are lost" in unlisted.cause
    assert (folder / "m1/damaged/00000001-000000000006.seg").read_bytes() == data
    assert len(list((folder / "m1/unlisted").glob("*.seg"))) == 3
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: len(log.errors) == 2)  # after a restart as well
        for kind in ("damaged", "unlisted"):
            for path in (folder / "m1" / kind).iterdir():
                path.unlink()
        await log.begin(hello(0))
        await until(log, lambda: log.errors == [])
    assert same_batches(await read_log(store, folder), chain[:5])


async def test_damage_that_only_the_upload_finds_is_set_aside_and_the_rest_goes_on(
    store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(9)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=2500)) as log:
            await append_all(log, chain)
    files = sorted((folder / "m1/00000001").glob("*.seg"))
    assert len(files) > 2
    data = bytearray(files[1].read_bytes())
    data[1000] ^= 1
    files[1].write_bytes(data)
    first = int(files[1].stem)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("Damaged spool files" in e.what for e in log.errors))
        await until(log, lambda: uploaded(log) >= first - 1 and log.upload_trouble is None)
        position = await log.begin(await hello_again(store, 1))
        assert first - 1 <= position.spooled < int(files[2].stem)
        await append_all(log, chain[position.spooled :])  # this agent still has them
        await log.flush()
    assert (folder / f"m1/damaged/00000001-{files[1].name}").read_bytes() == data
    assert same_batches(await read_log(store, folder), chain)


async def test_the_number_of_an_epoch_that_storage_forgot_is_not_used_again(
    store: BlobStore, folder: Path
) -> None:
    old, new = make_chain(3), make_chain(2, seed=5, epoch=2)
    await left_behind(folder, store, old)
    for blob in [b.name async for b in store.list(names.epoch_folder(1))]:
        await store.leases.break_now(blob)
        await store.delete(blob)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any(isinstance(e, StorageForgotError) for e in log.errors))
        assert spool_files(folder) == ["000000000001.seg"]
        assert (await log.begin(hello(0))).epoch == 2, (
            "else files of the old epoch 1 would be taken for its own"
        )
        await append_all(log, new)
        await log.flush()
    assert same_batches(await read_log(store, folder, 2), new)


async def test_a_name_that_is_another_machines_now_ends_the_epoch_and_none_of_the_old_batches_gets_there(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    old, lost, new = make_chain(3), make_chain(5)[3:], make_chain(2, seed=5, epoch=2)
    folder = tmp_path / "spool"
    async with opened(make_spool(folder, machine_storage)) as log:
        await append_all(log, old)
        await log.flush()
        first = await machine_storage.find("m1")
        theirs = await hello_again(first, 1)
        await machine_storage.vault.delete("machines/m1.json")
        await first._core.container.delete_container()
        await MachineStorage(machine_storage.vault).find_or_create("m1")
        await append_all(log, lost)
        with pytest.raises(StorageForgotError, match="forgot machine m1"):
            await log.flush()
        with pytest.raises(StorageForgotError) as caught:
            await log.begin(theirs)
        assert caught.value.ends_epoch
        assert (await log.begin(hello(0))).epoch == 2
        await append_all(log, new)
        await log.flush()
        second = await machine_storage.find("m1")
        assert second.container != first.container
        assert same_batches(await read_log(second, folder, 2), new)
        assert not [b async for b in second.list(names.epoch_folder(1))]


async def test_a_name_that_was_given_to_another_container_is_not_served_in_the_old_one_that_is_still_there(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """Kept for its points, under another name: acknowledged there, batches would be where no restore looks."""
    async with opened(make_spool(tmp_path / "spool", machine_storage)) as log:
        await append_all(log, make_chain(3))
        await log.flush()
        old = await machine_storage.find("m1")
        theirs = await hello_again(old, 1)
        await old._core.container.set_container_metadata(
            {"machine": "m1-old", "vault": machine_storage.vault.container}
        )
        await machine_storage.vault.delete("machines/m1.json")
        with pytest.raises(StorageForgotError):
            await log.begin(theirs)
        assert (await log.begin(hello(0))).epoch == 2
        assert await newest_epoch(old) == 1
        new = await MachineStorage(machine_storage.vault).find("m1")
        assert new.container != old.container
        assert await newest_epoch(new) == 2


async def test_a_container_that_is_gone_is_made_anew_by_the_agent_and_by_nothing_in_the_background(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """Somebody may bring it back with all that it held, which an empty one under its name would prevent."""
    folder = tmp_path / "spool"
    async with opened(make_spool(folder, machine_storage)) as log:
        await append_all(log, make_chain(3))  # epoch 1, not listed
        await log.begin(hello(0))
        await append_all(log, make_chain(3, epoch=2))
        container = (await machine_storage.find("m1"))._core.container
    for path in folder.rglob("side.json"):
        path.unlink()
    await container.delete_container()
    spool = make_spool(folder, MachineStorage(machine_storage.vault), check_seconds=0.05)
    await spool.start()
    try:
        log = spool.machines["m1"]
        await until(log, lambda: any(isinstance(e, ContainerMissingError) for e in log.errors))
        log._older.drain(3)
        await until(log, lambda: log._older.trouble is not None)
        assert not await container.exists()
        await log.begin(hello(0))
        assert await container.exists()
    finally:
        await spool.close()


async def test_a_log_that_is_open_goes_on_although_nobody_can_say_where_its_machine_lies(
    machine_storage: MachineStorage, azurite: Azurite, tmp_path: Path
) -> None:
    chain = make_chain(4)
    with FaultProxy(azurite) as proxy:
        async with (
            MachineStorage.connect(proxy.config(machine_storage.vault.container)) as storage,
            opened(make_spool(tmp_path / "spool", storage)) as log,
        ):
            await append_all(log, chain[:2])
            theirs = await hello_again(await machine_storage.find("m1"), 1)
            proxy.add(Answer(503, "ServerBusy"), times=None)
            await append_all(log, chain[2:])
            assert (await log.begin(theirs)).spooled == 4, "a session may even begin anew"
            proxy.clear()
            await log.flush()
    assert same_batches(await read_log(await machine_storage.find("m1"), tmp_path / "spool"), chain)


async def test_storage_that_forgot_ends_the_epoch_when_the_agent_returns(
    store: BlobStore, folder: Path
) -> None:
    chain = make_chain(4)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain)
        await log.flush()
    index = names.index(1, 1)
    data = await store.read(index)
    await store.leases.break_now(index)
    await store.delete(index)
    await store.append_create(index)
    await store.append(index, data.splitlines(keepends=True)[0], None, 0)
    spool = make_spool(folder, store)
    await spool.start()
    try:
        log = await spool.open_machine(await hello_again(store, 1))
        with pytest.raises(StorageForgotError) as caught:
            await log.begin(await hello_again(store, 1))
        assert caught.value.ends_epoch
        assert (await log.begin(hello(0))).epoch == 2
        await until(log, lambda: epoch_folders(folder) == ["00000002"])
    finally:
        await spool.close()


async def test_storage_that_forgets_while_we_run_ends_the_epoch(store: BlobStore, folder: Path) -> None:
    async with opened(make_spool(folder, store, check_seconds=0.05)) as log:
        changed = asyncio.Event()
        log.on_change = changed.set
        await append_all(log, make_chain(2))
        await log.flush()
        index = names.index(1, 1)
        await store.leases.break_now(index)
        await store.delete(index)
        while log.failure is None:
            changed.clear()
            await changed.wait()
        assert isinstance(log.failure, StorageForgotError)
        with pytest.raises(StorageForgotError):
            await log.append(*make_chain(3)[2])


class AnswerLost(BlobCore):
    """Storage whose first answer to the creation of a segment is lost: it is tried again, and the blob is there."""

    lost = False

    async def call(self, what: str, attempt: Callable[[], Awaitable[T]], *, size_b: int = 0) -> T:
        async def cut() -> T:
            answer = await attempt()
            if what.endswith(".seg") and what.startswith("write") and not AnswerLost.lost:
                AnswerLost.lost = True
                raise ConnectionResetError("the answer was lost")
            return answer

        return await super().call(what, cut, size_b=size_b)


async def test_trouble_is_over_when_storage_has_answered_whatever_it_says(
    blob_config: BlobConfig, folder: Path
) -> None:
    async with (
        BlobStore(AnswerLost.connect(blob_config)) as store,
        opened(make_spool(folder, store)) as log,
    ):
        await append_all(log, make_chain(3))
        await log.flush()
        assert AnswerLost.lost
        assert log.errors == []


async def test_a_begin_that_takes_too_long_says_what_storage_answers(
    azurite: Azurite,
    store: BlobStore,
    blob_config: BlobConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await left_behind(folder, store, make_chain(2))
    monkeypatch.setattr(machine_log, "_BEGIN_S", 0.3)
    monkeypatch.setattr(machine_log, "_BRIEFLY", Retry(deadline_s=0.0))
    with FaultProxy(azurite) as proxy:
        proxy.add(Answer(503, "ServerBusy"), times=None)
        async with (
            BlobStore.connect(proxy.config(blob_config.container)) as busy,
            started(make_spool(folder, busy)) as log,
        ):
            await until(log, lambda: log.errors != [])
            with pytest.raises(TransientError, match="HTTP 503") as caught:
                await log.begin(await hello_again(store, 1))
            assert caught.value.what == "The log of m1 could not be opened"


async def test_a_begin_that_storage_refuses_says_so(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, folder: Path
) -> None:
    await left_behind(folder, store, make_chain(2))
    async with (
        BlobStore.connect(with_wrong_key(blob_config, tmp_path)) as refusing,
        started(make_spool(folder, refusing)) as log,
    ):
        await until(log, lambda: log.errors != [])
        with pytest.raises(StorageKeyError, match="HTTP 403"):
            await log.begin(await hello_again(store, 1))


async def test_a_look_that_storage_does_not_answer_keeps_no_agent_waiting(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_log, "_BEGIN_S", 10.0)
    async with opened(make_spool(tmp_path / "ps1", machine_storage)) as log:
        await append_all(log, make_chain(3))
    store = await machine_storage.find(MACHINE)
    async with opened(make_spool(tmp_path / "ps2", machine_storage, owner="ps2"), epoch=1):
        pass
    async with started(make_spool(tmp_path / "ps1", machine_storage, check_seconds=0.05)) as log:
        await until(log, lambda: log.elsewhere)  # it looks whether the other one is still at work
        await store._core.container.delete_container()
        await until(log, lambda: log.errors != [])
        assert (await log.begin(hello(0))).epoch == 2, "in a container that is made anew"


def board_of(spool: Spool, storage: Trouble | None = None) -> StatusBoard:
    receiver = SimpleNamespace(machines={}, copies={}, cache=CacheSpace(total_b=1, free_b=1))
    return StatusBoard(receiver, spool, storage or Trouble("storage", lambda: None))  # type: ignore[arg-type]


def with_wrong_key(config: BlobConfig, folder: Path) -> BlobConfig:
    key_file = folder / "wrong-key"
    key_file.write_text(base64.b64encode(bytes(32)).decode())
    return msgspec.structs.replace(config, account_key_file=key_file)


async def test_a_wrong_storage_key_shows_on_the_process_server_although_no_machine_is_there(
    blob_config: BlobConfig, tmp_path: Path, folder: Path
) -> None:
    told = asyncio.Event()
    storage = Trouble("storage", told.set)
    async with BlobStore.connect(with_wrong_key(blob_config, tmp_path)) as refusing:
        watching = asyncio.create_task(watch_storage(refusing, storage))
        async with asyncio.timeout(20):
            await told.wait()
        spool = make_spool(folder, refusing)
        (problem,) = board_of(spool, storage).report().errors
        watching.cancel()
        await asyncio.wait([watching])
    assert problem.code == StorageKeyError.code
    assert "HTTP 403" in problem.cause
    assert problem.action == StorageKeyError.default_action


async def test_what_storage_answered_once_is_over_when_it_answers_as_it_should(
    azurite: Azurite, store: BlobStore, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("process_server.service.PROBE_S", 0.01)
    changed = asyncio.Event()
    storage = Trouble("storage", changed.set)
    with FaultProxy(azurite) as proxy:
        proxy.add(Answer(409, "LeaseAlreadyPresent"))  # no trouble that passes, nor one for the operator
        async with BlobStore.connect(proxy.config(blob_config.container)) as faulty:
            watching = asyncio.create_task(watch_storage(faulty, storage))
            async with asyncio.timeout(20):
                await changed.wait()
                assert isinstance(storage.error, LeaseHeldError)
                while storage.error is not None:
                    changed.clear()
                    await changed.wait()
            watching.cancel()
            await asyncio.wait([watching])


async def test_uploads_that_storage_refuses_show_on_the_machine_and_on_the_process_server(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, folder: Path
) -> None:
    await left_behind(folder, store, make_chain(2))
    async with BlobStore.connect(with_wrong_key(blob_config, tmp_path)) as refusing:
        spool = make_spool(folder, refusing)
        async with started(spool) as log:
            await until(log, lambda: log.upload_trouble is not None)
            report = board_of(spool).report()
            assert [p.code for p in report.machines["m1"].errors] == [StorageKeyError.code]
    async with opened(make_spool(folder, store), epoch=1) as log:
        await log.flush()
        await append_all(log, make_chain(3)[2:])


async def test_uploads_that_hang_are_told_and_then_over(
    blob_config: BlobConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_log, "STALL_S", 0.2)
    async with Gated.connect(blob_config) as store:
        store.gate = asyncio.Event()
        spool = make_spool(folder, store)
        async with opened(spool) as log:
            await append_all(log, make_chain(2))
            flushing = asyncio.create_task(log.flush())
            await until(log, lambda: isinstance(log.upload_trouble, UploadsStoppedError))
            report = board_of(spool).report()
            assert [p.code for p in report.machines["m1"].errors] == [UploadsStoppedError.code]
            (whole,) = report.errors
            assert "Uploads have stopped for 1 machines" in whole.what
            assert "make no progress" in whole.cause
            store.gate.set()
            await flushing
            await until(log, lambda: log.upload_trouble is None)
            assert board_of(spool).report().errors == []


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


async def test_a_begin_that_waits_for_the_cache_disk_says_so(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, go = threading.Event(), threading.Event()

    def hang(_fd: int) -> None:
        syncing.set()
        go.wait()

    async with opened(make_spool(folder, store)) as log:
        monkeypatch.setattr(machine_log, "_BEGIN_S", 0.3)
        monkeypatch.setattr(durable, "sync_data", hang)
        appending = asyncio.create_task(log.append(*make_chain(1)[0]))
        await asyncio.to_thread(syncing.wait)
        try:
            with pytest.raises(SpoolError, match="cache disk is slow"):
                await log.begin(await hello_again(store, 1))
        finally:
            go.set()
        await appending


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


# ---- disks that fail for real ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_full_cache_disk_loses_nothing_and_goes_on_when_there_is_room(
    store: BlobStore, small_disk: Path, tmp_path: Path
) -> None:
    chain = make_chain(40, sectors=128)  # 64 KiB each, every other incompressible
    folder = small_disk / "spool"
    ballast = small_disk / "ballast"
    spool = make_spool(folder, store, size_b=8 << 20)
    async with opened(spool) as log:
        ballast.write_bytes(bytes(1 << 20))
        taken = 0
        with pytest.raises(SpoolFullError, match="No space left"):
            for m in chain:
                await log.append(*m)
                taken += 1
        assert 10 < taken < 40
        position = await log.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (taken, chain[taken - 1].digest)
        ballast.unlink()
        await append_all(log, chain[taken:])
        await log.flush()
        assert log.pending_b == 0
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left; removed, it gives it back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return ballast


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_restart_on_a_full_cache_disk_uploads_what_it_holds(
    store: BlobStore, small_disk: Path, tmp_path: Path
) -> None:
    chain = make_chain(100)  # so many that their footer needs room of its own
    folder = small_disk / "spool"
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain)
        fill(small_disk)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 100)
        assert (await log.begin(await hello_again(store, 1))).spooled == 100
        assert len([b async for b in store.list(names.term_prefix(1))]) == 2
    assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB on which even a folder takes room."""
    folder = tmp_path / "ext4"
    folder.mkdir()
    with loop_disk(tmp_path / "ext4.img", 8 << 20) as device:
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", device], check=True)
        subprocess.run(["mount", device, str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)


class Gated(BlobStore):
    """Storage that takes segments only while its gate is open."""

    gate: asyncio.Event

    async def create_from(self, name: str, content: Callable[[], Awaitable[Content]], size_b: int) -> str:
        if name.endswith(".seg"):
            await self.gate.wait()
        return await super().create_from(name, content, size_b)


@contextlib.contextmanager
def nothing_deletable(folder: Path) -> Iterator[None]:
    """Until the block ends, files can be made in the folder, but none can be deleted or replaced."""
    subprocess.run(["chattr", "+a", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-a", folder], check=True)


def kinds(log: MachineLog) -> set[type[Exception]]:
    return {type(error) for error in log.errors}


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_spool_files_that_cannot_be_deleted_are_told_and_go_when_they_can(
    store: BlobStore, small_ext4: Path
) -> None:
    folder = small_ext4 / "spool"
    chain = make_chain(4)
    async with opened(make_spool(folder, store, check_seconds=0.2)) as log:
        with nothing_deletable(folder / "m1/00000001"):
            await append_all(log, chain[:2])
            await log.flush()
            await until(log, lambda: kinds(log) >= {SpoolLeftoversError, SpoolStateError})
            assert len(spool_files(folder)) == 1
            await append_all(log, chain[2:])
            await log.flush()  # and it goes on meanwhile
        await until(log, lambda: not log.errors)
        assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


async def test_listed_files_that_a_restart_finds_before_a_gap_are_deleted_and_not_called_unlisted(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    home = folder / "m1/00000001"
    chain = make_chain(9)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated)) as log:
            await append_all(log, chain[:3])
            [first] = home.glob("*.seg")
            kept = first.read_bytes()
            gated.gate.set()
            await log.flush()
            await append_all(log, chain[3:6])
            await log.flush()
            await until(log, lambda: not spool_files(folder))
            gated.gate.clear()
            await append_all(log, chain[6:])
        first.write_bytes(kept)  # as if it could not be deleted
        gated.gate.set()
        async with opened(make_spool(folder, gated), epoch=1) as log:
            await log.flush()
            assert not log.errors
    assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


async def test_a_spool_file_that_the_disk_does_not_give_for_a_while_ends_no_epoch(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    chain = make_chain(3)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated)) as log:
            await append_all(log, chain)
    [path] = (folder / "m1/00000001").glob("*.seg")
    away = path.with_suffix(".away")
    path.rename(away)
    path.mkdir()  # reading it fails
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("Is a directory" in error.cause for error in log.errors))
        with pytest.raises(SpoolError) as caught:
            await log.begin(await hello_again(store, 1))
        assert not caught.value.ends_epoch
        path.rmdir()
        away.rename(path)
        assert (await log.begin(await hello_again(store, 1))).spooled == 3
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
@pytest.mark.parametrize("size_b", [1 << 20, 1], ids=["the only file", "the first of three"])
async def test_what_the_disk_does_not_give_for_long_is_set_aside_and_the_machine_goes_on(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_b: int
) -> None:
    """That there are later files says nothing about storage: what the first one held need not have been listed."""
    monkeypatch.setattr(machine_folder, "UNREADABLE_S", 0.0)
    folder = tmp_path / "spool"
    chain = make_chain(3)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=size_b)) as log:
            await append_all(log, chain)
    path = min((folder / "m1/00000001").glob("*.seg"))
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # nothing answers behind it
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any(isinstance(e, SpoolLostError) for e in log.errors))
        assert (await log.begin(await hello_again(store, 1))).spooled == 0
        await append_all(log, chain)  # this agent still has them
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_a_new_epoch_that_finds_no_room_is_allocated_once_and_the_old_one_drains(
    blob_config: BlobConfig, small_ext4: Path
) -> None:
    old, new = make_chain(20, sectors=128), make_chain(3, epoch=2)
    reboot = msgspec.structs.replace(hello(0, "reboot"), agent_id="agent")
    folder = small_ext4 / "spool"
    async with Gated.connect(blob_config) as store:
        store.gate = asyncio.Event()
        async with opened(make_spool(folder, store, size_b=64 << 20)) as log:
            await append_all(log, old)
            fill(small_ext4)
            for _ in range(3):
                with pytest.raises(SpoolFullError, match="No space left"):
                    await log.begin(reboot)
            assert await newest_epoch(store) == 2
            store.gate.set()
            await until(log, lambda: epoch_folders(folder) == [])
            assert len([b async for b in store.list(names.term_prefix(1))]) == 1, "it simply goes on"
            assert (await log.begin(reboot)).epoch == 2
            await append_all(log, new)
            await log.flush()
        assert same_batches(await read_log(store, folder, 1), old)
        assert same_batches(await read_log(store, folder, 2), new)


@pytest.fixture
def thin_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system whose block device has less room than it says, so that syncs fail; and a file whose removal makes room."""
    backing, folder = tmp_path / "backing", tmp_path / "thin"
    backing.mkdir()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(backing)], check=True)
    image = backing / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    loop = ""
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        made = subprocess.run(
            ["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True
        )
        loop = made.stdout.strip()
        subprocess.run(["mount", "-o", "errors=continue", loop, str(folder)], check=True)
        yield folder, backing / "ballast"
    finally:
        subprocess.run(["umount", str(folder)], check=False)
        if loop:
            subprocess.run(["losetup", "-d", loop], check=True)
        subprocess.run(["umount", str(backing)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_a_sync_that_really_fails_loses_nothing_that_was_acknowledged(
    store: BlobStore, thin_disk: tuple[Path, Path]
) -> None:
    disk, ballast = thin_disk
    folder = disk / "spool"
    chain = make_chain(23, sectors=1024)  # 512 KiB each, every other incompressible
    async with opened(make_spool(folder, store, size_b=16 << 20)) as log:
        await append_all(log, chain[:3])
        ballast.write_bytes(bytes(7 << 20))
        taken = 3
        with pytest.raises(SpoolError, match="sync failed"):
            for m in chain[3:]:
                await log.append(*m)
                taken += 1
        assert taken < 23
        position = await log.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (taken, chain[taken - 1].digest)
        ballast.unlink()
        for _ in range(5):  # as the agent does: the file system may report old errors once more
            position = await log.begin(await hello_again(store, 1))
            assert position.spooled >= taken
            try:
                await append_all(log, chain[position.spooled :])
            except SpoolError:
                continue
            break
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


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
