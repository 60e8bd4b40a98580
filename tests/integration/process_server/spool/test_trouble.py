"""What is told while storage or the disk does not do its part, and that it is over when it does."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import CacheSpace, CreditPolicy
from process_server.service import watch_storage
from process_server.spool import epoch_log, machine_log
from process_server.spool.spool import Spool
from process_server.status import StatusBoard
from shared.blob import BlobConfig, BlobCore, BlobStore, Retry
from shared.daemon.trouble import Trouble
from shared.errors import (
    LeaseHeldError,
    SpoolError,
    StorageKeyError,
    TransientError,
    UploadsStoppedError,
)
from shared.host import durable
from shared.machine.storage import MachineStorage
from tests.azurite import Azurite
from tests.logs import make_chain
from tests.spools import (
    MACHINE,
    Gated,
    T,
    append_all,
    hello,
    hello_again,
    left_behind,
    make_spool,
    opened,
    started,
    until,
)
from tests.storage_faults import Answer, FaultProxy


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
    receiver: Any = SimpleNamespace(machines={}, copies={}, cache=CacheSpace(total_b=1, free_b=1))
    level = CacheLevel(CreditPolicy())
    return StatusBoard(receiver, spool, storage or Trouble("storage", lambda: None), level)


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
