"""A host that for a moment has no room for one more thread: nothing is lost, distrusted, or ended for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from process_server.machine_files import MachineFiles
from process_server.spool.epoch_log import _judged
from shared.blob import BlobStore
from shared.daemon.threads import Threads
from shared.errors import FencedError, NoThreadError, SideFileError, SpoolError, SpoolLostError
from tests.logs import make_chain
from tests.no_threads import all_busy, no_room
from tests.spools import (
    append_all,
    hello_again,
    make_spool,
    opened,
    read_log,
    same_batches,
    spool_files,
    until,
    uploaded,
)


async def test_a_log_that_could_not_write_says_so_is_not_distrusted_and_goes_on(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(6)
    spool = make_spool(tmp_path / "spool", store)
    async with opened(spool) as log:
        await append_all(log, chain[:3])
        with all_busy(spool._disk), no_room(), pytest.raises(NoThreadError, match="no room"):
            await append_all(log, chain[3:])
        assert isinstance(log.failure, NoThreadError)
        assert log._folder._distrusted == set()
        assert (await log.begin(await hello_again(store, 1))).spooled == 3
        await append_all(log, chain[3:])
        await log.flush()
    assert same_batches(await read_log(store, tmp_path / "spool"), chain)


async def test_work_that_fails_for_want_of_memory_does_not_make_the_spool_distrusted(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(2)

    def full(*_: object) -> None:
        raise MemoryError

    async with opened(make_spool(tmp_path / "spool", store)) as log:
        await append_all(log, chain[:1])
        with monkeypatch.context() as patch, pytest.raises(NoThreadError):
            patch.setattr("process_server.spool.file.SpoolFile.append", full)
            await append_all(log, chain[1:])
        assert log._folder._distrusted == set()
        assert (await log.begin(await hello_again(store, 1))).spooled == 1


async def test_files_that_are_listed_are_deleted_when_there_is_a_thread_for_it_and_the_log_goes_on(
    store: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    spool = make_spool(folder, store, check_seconds=0.2)
    async with opened(spool) as log:
        current = log._current
        assert current is not None
        await append_all(log, make_chain(3))
        with all_busy(spool._reading), no_room():
            await current._forget([])
            await current._remember()
        assert {error.code for error in current.cache_troubles} == {"US604"}
        assert current.failure is None
        await log.flush()
        await until(log, lambda: uploaded(log) == 3 and not current.cache_troubles)
    assert spool_files(folder) == []


async def test_what_is_kept_beside_a_spool_is_stored_when_there_is_a_thread_for_it(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(Threads())
    files = MachineFiles(tmp_path, "side.json", "active sides", SideFileError)
    with no_room():
        await files.keep("m1", b"first")
    assert files.trouble.error is not None
    assert "new thread" in files.trouble.error.cause
    await files.store_again()
    assert files.trouble.error is None
    assert files.path("m1").read_bytes() == b"first"


BUG, FULL, LOST, FENCED = (
    ZeroDivisionError(),
    MemoryError(),
    SpoolLostError("Batches are gone"),
    FencedError("Another server has it"),
)


@pytest.mark.parametrize(
    ("found", "said", "is_suspect"),
    [
        ([FULL], NoThreadError, False),
        ([FULL, LOST], SpoolLostError, True),
        ([LOST, FULL], SpoolLostError, True),
        ([ExceptionGroup("", [FULL]), LOST], SpoolLostError, True),
        ([FENCED], FencedError, False),
        ([FENCED, LOST], FencedError, True),
        ([LOST, FENCED], SpoolLostError, True),
        ([BUG], SpoolError, True),
        ([BUG, FULL], SpoolError, True),
        ([FULL, BUG], SpoolError, True),
        ([BUG, FENCED], FencedError, True),
        ([FENCED, BUG], FencedError, True),
    ],
)
def test_of_several_errors_one_is_told_a_bug_is_logged_and_what_concerns_the_spool_is_not_forgotten(
    found: list[Exception], said: type[Exception], is_suspect: bool
) -> None:
    with capture_logs() as logged:
        error, suspect = _judged(ExceptionGroup("", found))
    assert (type(error), suspect) == (said, is_suspect)
    assert [entry["event"] for entry in logged] == ["log stopped: this is a bug"] * (BUG in found)
