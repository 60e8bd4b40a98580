"""An epoch's number comes back with another claim: what a process server believes, and what becomes of what it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from process_server.spool import machine_log
from process_server.spool.machine_log import MachineLog
from shared.blob import BlobStore, Retry
from shared.errors import (
    OtherEpochError,
    SetAsideError,
    StorageError,
    StorageForgotError,
    TransientError,
)
from shared.log import names
from shared.log.epochs import newest_epoch
from shared.log.writer import IndexWriter
from shared.machine.storage import MachineStorage
from shared.recovery import point_store
from shared.recovery.points import logged_point
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob
from shared.wire.messages import Hello
from tests.azurite import Azurite
from tests.epoch_ids import CLAIM
from tests.lives import forget_log, other_life
from tests.logs import make_chain
from tests.spools import (
    DISKS,
    append_all,
    hello,
    hello_again,
    left_behind,
    make_spool,
    read_log,
    same_batches,
    started,
    until,
)

NOW = make_chain(3, seed=2)
OLD = make_chain(5, seed=1)


def unlisted(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "m1/unlisted").glob("*.seg"))


@pytest.mark.parametrize("open_here", [True, False])
async def test_an_agent_of_another_life_is_not_continued_and_hears_who_has_the_epoch(
    store: BlobStore, tmp_path: Path, open_here: bool
) -> None:
    async with started(make_spool(tmp_path / "spool", store)) as log:
        await log.begin(hello(0))
        theirs = await hello_again(store, 1)
    async with started(make_spool(tmp_path / "spool", store)) as log:
        if open_here:
            await log.begin(theirs)
        await other_life(store, "m1", 1)
        with pytest.raises(
            OtherEpochError, match="was begun by twin, boot b2, through process server ps9"
        ) as caught:
            await log.begin(theirs)
        assert caught.value.ends_epoch


async def test_a_log_is_not_gone_on_with_when_its_machine_lies_in_another_container_now(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """Another history, which has the same number. That is no outage, in which the open log goes on."""
    async with started(make_spool(tmp_path / "spool", machine_storage)) as log:
        await log.begin(hello(0))
        first = await machine_storage.find("m1")
        theirs = await hello_again(first, 1)
        await machine_storage.vault.delete("machines/m1.json")
        await first._core.container.delete_container()
        second = await MachineStorage(machine_storage.vault).find_or_create("m1")
        await other_life(second, "m1", 1)
        with pytest.raises(OtherEpochError, match="through process server ps9"):
            await log.begin(theirs)


async def test_an_open_log_does_not_go_on_where_another_life_has_taken_as_many_terms(
    store: BlobStore, tmp_path: Path
) -> None:
    async with started(make_spool(tmp_path / "spool", store)) as log:
        await log.begin(hello(0))
        theirs = await hello_again(store, 1)
        other = await other_life(store, "m1", 1)
        assert (await IndexWriter.take(store, "m1", other.id, "ps9")).term == 1  # as ours
        with pytest.raises(OtherEpochError):
            await log.begin(theirs)


async def test_a_hello_without_a_claim_continues_nothing(store: BlobStore, tmp_path: Path) -> None:
    async with started(make_spool(tmp_path / "spool", store)) as log:
        await log.begin(hello(0))
        with pytest.raises(OtherEpochError, match="without a claim"):
            await log.begin(Hello(machine="m1", epoch=1, disks=DISKS))


@pytest.mark.parametrize("data", [None, b"{}"])
async def test_an_epoch_whose_document_is_gone_or_garbled_ends(
    store: BlobStore, tmp_path: Path, data: bytes | None
) -> None:
    async with started(make_spool(tmp_path / "spool", store)) as log:
        await log.begin(hello(0))
        theirs = await hello_again(store, 1)
        await store.delete(names.epoch_document(1))
        if data is not None:
            await store.create(names.epoch_document(1), data)
        with pytest.raises(StorageForgotError, match="cannot go on") as caught:
            await log.begin(theirs)
        assert caught.value.ends_epoch
        assert (await log.begin(hello(0))).epoch == 2


async def test_while_storage_is_away_only_the_agent_of_the_open_epoch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Azurite(tmp_path / "azurite", persistent=True) as server:
        async with (
            BlobStore.connect(server.config("test")) as store,
            started(make_spool(tmp_path / "spool", store)) as log,
        ):
            await log.begin(hello(0))
            theirs = await hello_again(store, 1)
            monkeypatch.setattr(machine_log, "_BRIEFLY", Retry(deadline_s=0.2))
            server.stop()
            assert (await log.begin(theirs)).epoch == 1
            monkeypatch.setattr(machine_log, "_BEGIN_S", 5.0)
            with pytest.raises(StorageError):
                await log.begin(msgspec.structs.replace(theirs, claim=CLAIM))
            assert log.position.epoch == 1
            server.start()


@pytest.mark.parametrize("closed", [True, False])
async def test_spool_files_of_another_life_are_set_aside_and_never_listed(
    store: BlobStore, tmp_path: Path, closed: bool
) -> None:
    folder = tmp_path / "spool"
    await left_behind(folder, store, OLD)
    file = folder / "m1/00000001/000000000001.seg"
    if not closed:
        file.write_bytes(file.read_bytes()[:-20])  # as a kill leaves it: no footer
    before = file.read_bytes()
    await other_life(store, "m1", 1)
    async with started(make_spool(folder, store)) as log:
        assert (await log.begin(await hello_again(store, 1))).spooled == 0
        await append_all(log, NOW)
        await log.flush()
        assert [type(error) for error in log.errors] == [SetAsideError]
        assert "they are of epoch 1" in log.errors[0].cause
    assert same_batches(await read_log(store, folder), NOW)
    assert unlisted(folder) == ["00000001-000000000001.seg"]
    assert (folder / "m1/unlisted/00000001-000000000001.seg").read_bytes() == before


async def test_without_an_agent_files_of_another_life_are_not_uploaded_either(
    store: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    await left_behind(folder, store, OLD)
    await other_life(store, "m1", 1)
    async with started(make_spool(folder, store, check_seconds=0.05)) as log:
        await until(log, lambda: bool(unlisted(folder)))
    assert await read_log(store, folder) == []


async def test_files_of_another_life_of_an_epoch_that_is_over_are_set_aside(
    store: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    await left_behind(folder, store, OLD)
    await other_life(store, "m1", 1)
    async with started(make_spool(folder, store)) as log:
        assert (await log.begin(hello(0))).epoch == 2
        await until(log, lambda: bool(unlisted(folder)) and not (folder / "m1/00000001").exists())
    assert await read_log(store, folder) == []


async def test_files_of_an_epoch_whose_document_is_gone_stay_and_are_told(
    store: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    await left_behind(folder, store, OLD)
    await forget_log(store)
    async with started(make_spool(folder, store)) as log:
        assert (await log.begin(hello(0))).epoch == 2
        await until(log, lambda: any(isinstance(error, StorageForgotError) for error in log.errors))
    assert (folder / "m1/00000001/000000000001.seg").exists()


async def test_what_was_listed_of_another_life_is_not_missed_in_this_one(
    store: BlobStore, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    async with started(make_spool(folder, store)) as log:
        await log.begin(hello(0))
        await append_all(log, OLD)
        await log.flush()
    assert (folder / "m1/00000001/state.json").exists()
    await other_life(store, "m1", 1)
    async with started(make_spool(folder, store)) as log:
        assert (await log.begin(await hello_again(store, 1))).spooled == 0


@pytest.mark.parametrize("seen_by", ["agent", "disk", "point"])
async def test_a_new_epoch_is_above_every_number_that_anybody_has_seen(
    store: BlobStore, tmp_path: Path, seen_by: str
) -> None:
    said = hello(0)
    await store.ensure_container()
    if seen_by == "agent":
        said = msgspec.structs.replace(said, seen=7)
    elif seen_by == "disk":
        await store.pages.create(seed_blob("sda"), 1 << 20, {"cursor": "6-5", "pending": "7-3"})
    else:
        await point_store.write_new(store, logged_point("m1", Position.of(7, 3), CLAIM, 1, "crash", ["m"]))
    async with started(make_spool(tmp_path / "spool", store)) as log:
        assert (await log.begin(said)).epoch == 8


async def test_two_process_servers_at_once_begin_one_epoch(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either begins."""
    looked = asyncio.Barrier(2)
    real = MachineLog._highest_seen

    async def look(self: MachineLog, there: BlobStore, said: Hello, newest: int) -> int:
        found = await real(self, there, said, newest)
        await looked.wait()
        return found

    monkeypatch.setattr(MachineLog, "_highest_seen", look)
    spools = [make_spool(tmp_path / name, store, owner=name) for name in ("a", "b")]
    async with started(spools[0]) as at_a, started(spools[1]) as at_b:
        done = await asyncio.gather(at_a.begin(hello(0)), at_b.begin(hello(0)), return_exceptions=True)
        assert sorted(type(one).__name__ for one in done) == ["Standing", "TransientError"]
        told = next(one for one in done if isinstance(one, TransientError))
        assert "through process server" in told.cause
    assert await newest_epoch(store) == 1


@pytest.mark.parametrize("seen", [0, 1])
async def test_the_agent_of_a_wish_that_two_servers_heard_finds_its_epoch(
    store: BlobStore, tmp_path: Path, seen: int
) -> None:
    """Unless it knows that number: then it was in that epoch, and has left it."""
    said = msgspec.structs.replace(hello(0), agent_id="agent", boot="b1", seen=seen)
    async with started(make_spool(tmp_path / "a", store, owner="a")) as at_a:
        await at_a.begin(msgspec.structs.replace(said, seen=0))
    async with started(make_spool(tmp_path / "b", store, owner="b")) as at_b:
        assert (await at_b.begin(said)).epoch == 1 + seen
        assert (await at_b.begin(msgspec.structs.replace(said, reason="another wish"))).epoch == 2 + seen
