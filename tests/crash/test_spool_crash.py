"""SIGKILL at every named point of spool and uploader; then recovery: what was acknowledged is there once, in order."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import crashpoints
from shared.blob import BlobConfig, BlobStore
from shared.log import names
from shared.log.epochs import EpochDisk, allocate_epoch
from shared.log.reader import LogReader
from tests.crash.spool_child import Work, read_journal, run
from tests.epoch_ids import id_in
from tests.logs import make_chain
from tests.spools import MACHINE, read_log, same_batches, vault_at

BATCHES = 24
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.spool_child", "azure.storage.blob.aio", "aiohttp"])

Child = Callable[..., int]


@pytest.fixture
def child(blob_config: BlobConfig, tmp_path: Path) -> Child:
    """Runs the child until it ends or kills itself; gives its exit code."""
    vault_at(tmp_path)

    def start(crash_at: str = "", *, loses_leases: bool = False) -> int:
        work = Work(blob_config, tmp_path / "spool", tmp_path / "journal", crash_at, BATCHES, loses_leases)
        process = _processes.Process(target=run, args=(work,))
        process.start()
        process.join(60)
        assert process.exitcode is not None, "the child hangs"
        code: int = process.exitcode
        process.close()
        return code

    return start


async def listed(store: BlobStore, epoch: int) -> int:
    entries = await LogReader(store, MACHINE).entries(await id_in(store, epoch))
    return entries[-1].last if entries else 0


async def check_after_kill(store: BlobStore, tmp_path: Path) -> None:
    """What the killed process had said was true."""
    said = read_journal(tmp_path / "journal")
    if "epoch" in said:
        assert await listed(store, said["epoch"][-1]) >= max(said.get("uploaded", [0]))


async def check_at_end(child: Child, store: BlobStore, tmp_path: Path, epoch: int = 1) -> None:
    """Recovery continues behind everything acknowledged, the whole log is there, and the next run finds nothing to do."""
    acked = max(read_journal(tmp_path / "journal").get("acked", [0]))
    assert child() == 0
    said = read_journal(tmp_path / "journal")
    assert said["epoch"][-1] == epoch
    assert said["begun"][-1] >= acked
    chain = make_chain(BATCHES, epoch=epoch)
    assert same_batches(await read_log(store, tmp_path / "spool", epoch), chain)
    assert list((tmp_path / "spool").rglob("*.seg")) == []
    blobs = [b.name async for b in store.list("")]
    assert child() == 0
    assert read_journal(tmp_path / "journal")["begun"][-1] == BATCHES
    added = {b.name async for b in store.list("")}.difference(blobs)
    assert len(added) <= 2, "only a term document and perhaps the next index blob"


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "point",
    [
        p
        for p in crashpoints.POINTS
        if p.startswith(("spool.", "upload.", "index.")) and p != "index.after-rotation"
    ],
)
async def test_after_a_kill_everything_acknowledged_is_there_once_and_in_order(
    point: str, count: int, child: Child, store: BlobStore, tmp_path: Path
) -> None:
    assert child(f"{point}:{count}") == -signal.SIGKILL
    await check_after_kill(store, tmp_path)
    await check_at_end(child, store, tmp_path)


@pytest.mark.parametrize("point", ["take.after-term", "take.after-claim", "index.after-rotation"])
async def test_a_kill_while_the_log_is_taken_again_or_rotated_loses_nothing(
    point: str, child: Child, store: BlobStore, tmp_path: Path
) -> None:
    assert child("spool.after-fdatasync:8") == -signal.SIGKILL
    assert child(point) == -signal.SIGKILL
    await check_after_kill(store, tmp_path)
    await check_at_end(child, store, tmp_path)


@pytest.mark.parametrize(
    "point", ["doubt.after-lease", "doubt.after-look", "doubt.after-look:2", "index.after-rotation"]
)
async def test_a_kill_of_an_owner_that_lost_its_lease_loses_nothing(
    point: str, child: Child, store: BlobStore, tmp_path: Path
) -> None:
    """From then on each segment is looked up before it is listed, for storage may have been set back: as here, where what was not listed is
    gone. The next owner need not know of the doubt: it uploads anew."""
    assert child(point, loses_leases=True) == -signal.SIGKILL
    await check_after_kill(store, tmp_path)
    counts = {entry.blob for entry in await LogReader(store, MACHINE).entries(await id_in(store, 1))}
    for name in [info.name async for info in store.list(names.LOGS) if info.name.endswith(".seg")]:
        if name not in counts:
            await store.delete(name)
    await check_at_end(child, store, tmp_path)


async def test_a_kill_after_an_epoch_was_allocated_only_skips_its_number(
    child: Child, store: BlobStore, tmp_path: Path
) -> None:
    assert child("epoch.after-create") == -signal.SIGKILL
    await check_at_end(child, store, tmp_path, epoch=2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "point", ["take.after-term", "take.after-claim", "upload.after-create", "index.after-append"]
)
async def test_a_kill_while_the_rest_of_an_older_epoch_is_uploaded_loses_none_of_it(
    point: str, count: int, child: Child, store: BlobStore, tmp_path: Path
) -> None:
    assert child("spool.after-fdatasync:8") == -signal.SIGKILL
    acked = max(read_journal(tmp_path / "journal")["acked"])
    await allocate_epoch(store, MACHINE, disks=[EpochDisk(0, "sda", "", 8)], reason="test", agent_id="a")
    with (tmp_path / "journal").open("a") as journal:
        journal.write("epoch 2\n")
    assert child(f"{point}:{count}") == -signal.SIGKILL
    assert child() == 0
    for epoch, least in ((1, acked), (2, BATCHES)):
        found = await read_log(store, tmp_path / "spool", epoch)
        assert len(found) >= least
        assert same_batches(found, make_chain(len(found), epoch=epoch))


async def test_kills_at_one_point_after_the_other_lose_nothing(
    child: Child, store: BlobStore, tmp_path: Path
) -> None:
    points = ["spool.after-fdatasync:3", "upload.after-create:2", "take.after-claim", "index.after-append:2"]
    points += [
        "upload.before-delete",
        "spool.before-fdatasync:2",
        "spool.before-footer:2",
        "index.before-append",
    ]
    for point in points:
        assert child(point) in (-signal.SIGKILL, 0)
        await check_after_kill(store, tmp_path)
    await check_at_end(child, store, tmp_path)
