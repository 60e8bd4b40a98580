"""Who may write a machine's log: several process servers, epochs that are over, and what each leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from process_server.reception.cache_level import CacheLevel
from process_server.reception.credit import CacheSpace, CreditPolicy
from process_server.reception.machine import Machine
from process_server.spool import recovery
from process_server.spool.machine_log import MachineLog
from process_server.spool.ownership import Patience
from process_server.status import StatusBoard
from shared.blob import BlobStore
from shared.daemon.trouble import Trouble
from shared.errors import (
    EpochRefusedError,
    FencedError,
    NotOpenError,
    SetAsideError,
    SilentPeerError,
    SpoolError,
    StorageForgotError,
)
from shared.host import durable
from shared.log import names, segment
from shared.log.epochs import EpochDisk, allocate_epoch, newest_epoch
from shared.log.reader import LogReader
from shared.log.writer import IndexWriter
from tests.epoch_ids import id_in
from tests.lives import copied, set_back
from tests.logs import Made, make_chain
from tests.spools import (
    append_all,
    epoch_folders,
    hello,
    hello_again,
    left_behind,
    make_spool,
    opened,
    read_log,
    same_batches,
    spool_files,
    started,
    until,
    uploaded,
)


@contextlib.asynccontextmanager
async def machine_at_a(
    store: BlobStore,
    tmp_path: Path,
    listed: Iterable[Made],
    rest: Iterable[Made],
    *,
    check_seconds: float = 3600.0,
) -> AsyncIterator[MachineLog]:
    """Process server a has the machine, in a new epoch: some batches are listed, the rest is spooled there only."""
    async with opened(make_spool(tmp_path / "a", store, owner="a", check_seconds=check_seconds)) as log:
        await append_all(log, listed)
        await log.flush()
        await append_all(log, rest)
        yield log


def machine_at_b(store: BlobStore, tmp_path: Path) -> contextlib.AbstractAsyncContextManager[MachineLog]:
    """The machine goes on with that epoch at process server b."""
    return opened(make_spool(tmp_path / "b", store, owner="b"), epoch=1)


async def test_the_stale_one_of_two_process_servers_never_says_uploaded(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(12)
    async with machine_at_a(store, tmp_path, chain[:4], chain[4:6]) as at_a:
        async with machine_at_b(store, tmp_path) as at_b:
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
    async with machine_at_a(store, tmp_path, chain[:3], chain[3:5], check_seconds=0.05) as at_a:
        machine = Machine("m1", CreditPolicy())
        machine.problem = SilentPeerError("The agent is silent")
        receiver: Any = SimpleNamespace(
            machines={"m1": machine}, copies={}, cache=CacheSpace(total_b=1, free_b=1)
        )
        spool: Any = SimpleNamespace(machines={"m1": at_a})
        board = StatusBoard(receiver, spool, Trouble("storage", lambda: None), CacheLevel(CreditPolicy()))
        assert [p.code for p in board.report().machines["m1"].errors] == [SilentPeerError.code]
        async with machine_at_b(store, tmp_path) as at_b:
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
    async with machine_at_a(store, tmp_path, chain[:5], chain[5:]):
        pass
    async with machine_at_b(store, tmp_path) as at_b:
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


@pytest.mark.parametrize("left", ["whole", "garbled", "bare"])
async def test_what_a_lost_server_took_and_never_continued_is_listed_after_its_silence(
    store: BlobStore, tmp_path: Path, left: str
) -> None:
    """B takes the term and burns down; the agent is gone as well. A still has 6 to 10. Nor does it need to know who B was."""
    chain = make_chain(10)
    async with machine_at_a(store, tmp_path, chain[:5], chain[5:]):
        pass
    taken = (await IndexWriter.take(store, "m1", await id_in(store, 1), "b")).taken
    if left != "whole":
        document = names.term_document(1, taken.number)
        await store.delete(document)
        await store.create(document, b"{", {"claim": taken.claim} if left == "garbled" else {})
    patience = Patience(silent_s=0.2)
    again = make_spool(tmp_path / "a", store, owner="a", check_seconds=0.05, patience=patience)
    async with started(again) as log:
        await until(log, lambda: log.elsewhere and log.pending_b > 0)
        await until(log, lambda: uploaded(log) == 10)
        assert log.pending_b == 0
    assert same_batches(await read_log(store, tmp_path / "a"), chain)
    assert spool_files(tmp_path / "a") == []


@pytest.mark.parametrize(("over", "goes_on"), [(False, False), (True, False), (False, True)])
async def test_what_was_seen_of_a_log_before_storage_was_set_back_decides_nothing(
    store: BlobStore, tmp_path: Path, over: bool, goes_on: bool
) -> None:
    """A still has 4 to 6. B listed 4 and 5, and A has seen that; then storage forgot it, or has another history, in which C listed all."""
    chain = make_chain(6)
    async with machine_at_a(store, tmp_path, chain[:3], chain[3:]):
        pass
    forgot = await copied(store)
    async with machine_at_b(store, tmp_path) as at_b:
        await append_all(at_b, chain[3:5])
        await at_b.flush()
    seen = await copied(store)
    if goes_on:
        await set_back(store, forgot)
        async with opened(make_spool(tmp_path / "c", store, owner="c"), epoch=1) as at_c:
            for made in chain[3:]:
                await append_all(at_c, [made])
                await at_c.flush()
        forgot = await copied(store)
        await set_back(store, seen)
        await store.leases.acquire(names.index(1, 1))  # B's
    if over:
        disks = [EpochDisk(0, "sda", "s0", 8)]
        info = await allocate_epoch(store, "m1", disks=disks, reason="test", agent_id="b")
        forgot |= await copied(store, names.epoch_folder(info.epoch))
    async with started(make_spool(tmp_path / "a", store, owner="a")) as log:
        await until(log, lambda: log.pending_b > 0)
        await set_back(store, forgot)
        log.resume()
        await until(log, lambda: spool_files(tmp_path / "a") == [] and log.pending_b == 0)
        assert log.aside_b == 0
    assert same_batches(await read_log(store, tmp_path / "a", 1), chain)


async def test_of_an_epoch_that_is_over_what_storage_forgot_is_listed_again_if_it_is_still_here(
    store: BlobStore, tmp_path: Path
) -> None:
    """Its file was listed, and not deleted yet (a disk that would not, a power cut); then storage was set back."""
    chain = make_chain(6)
    folder = tmp_path / "ps1"
    await left_behind(folder, store, chain)
    (file,) = folder.rglob("*.seg")
    kept, forgot = file.read_bytes(), await copied(store)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 6 and spool_files(folder) == [])
    file.write_bytes(kept)
    await set_back(store, forgot)
    await allocate_epoch(store, "m1", disks=[EpochDisk(0, "sda", "s0", 8)], reason="test", agent_id="b")
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: "00000001" not in epoch_folders(folder))
        assert log.aside_b == 0
    assert same_batches(await read_log(store, folder, 1), chain)


async def test_two_servers_with_rests_of_one_epoch_come_to_an_end(store: BlobStore, tmp_path: Path) -> None:
    """What one lists first decides, and the other's batches are set aside, none deleted."""
    chain = make_chain(6)
    other = [*chain[:3], *make_chain(2, first=4, predecessor=chain[2].digest, seed=7)]
    async with machine_at_a(store, tmp_path, chain[:3], chain[3:]):
        pass
    async with machine_at_b(store, tmp_path) as at_b:
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
    async with machine_at_a(store, tmp_path, chain[:2], chain[2:]) as at_a:  # one file: 3 to 7
        async with machine_at_b(store, tmp_path) as at_b:
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
    async with machine_at_a(store, tmp_path, chain[:4], chain[4:]) as at_a:
        async with machine_at_b(store, tmp_path) as at_b:
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


@pytest.mark.parametrize("left", [None, b"garbled"])
async def test_what_is_listed_in_a_segment_that_is_lost_is_set_aside_and_keeps_nobody_out(
    store: BlobStore, tmp_path: Path, left: bytes | None
) -> None:
    """B listed 3 and 4, with 5 in one segment, which alone knows whether they are those of A; it may be that A's are all that is left."""
    chain = make_chain(10)
    async with machine_at_a(store, tmp_path, chain[:2], chain[2:4]) as at_a:
        async with machine_at_b(store, tmp_path) as at_b:
            await append_all(at_b, chain[2:5])
            await at_b.flush()
            for made in chain[5:9]:
                await append_all(at_b, [made])
                await at_b.flush()
        (lost,) = [
            entry.blob
            for entry in await LogReader(store, "m1").entries(await id_in(store, 1))
            if entry.first == 3
        ]
        await store.delete(lost)
        if left is not None:
            await store.create(lost, left)
        position = await at_a.begin(await hello_again(store, 1))
        assert position.spooled == 9
        assert [type(error) for error in at_a.errors] == [SetAsideError]
        (kept,) = (tmp_path / "a/m1/unlisted").glob("*.seg")
        assert [row.number for row in segment.check_body(kept.read_bytes(), "kept").rows] == [3, 4]
        await append_all(at_a, chain[9:])
        await at_a.flush()
        assert uploaded(at_a) == 10


async def test_a_restart_leaves_a_log_alone_that_another_server_took(
    store: BlobStore, tmp_path: Path
) -> None:
    chain = make_chain(6)
    async with machine_at_a(store, tmp_path, [], chain[:3]):
        pass
    async with machine_at_b(store, tmp_path) as at_b:
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
