"""Storage that lost, or moved, what it had: epochs, containers, names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.blob import BlobStore
from shared.errors import (
    ContainerMissingError,
    IndexDamagedError,
    StorageForgotError,
)
from shared.log import names
from shared.log.epochs import newest_epoch
from shared.log.reader import LogReader
from shared.machine.storage import MachineStorage
from tests.azurite import Azurite
from tests.logs import make_chain
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
)
from tests.storage_faults import Answer, FaultProxy


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


async def test_a_damaged_index_ends_the_epoch_and_what_it_can_not_list_is_set_aside(
    store: BlobStore, folder: Path
) -> None:
    chain = make_chain(6)
    async with opened(make_spool(folder, store)) as log:
        for part in (chain[:2], chain[2:4]):
            await append_all(log, part)
            await log.flush()
        await append_all(log, chain[4:])
    index = names.index(1, 1)
    data = await store.read(index)
    await store.leases.break_now(index)
    await store.delete(index)
    await store.append_create(index)
    await store.append(index, data[:-20], None, 0)
    spool = make_spool(folder, store, check_seconds=0.05)
    async with started(spool) as log:
        with pytest.raises(StorageForgotError, match="is damaged") as caught:
            await log.begin(await hello_again(store, 1))
        assert caught.value.ends_epoch
        assert (await log.begin(hello(0))).epoch == 2
        await until(log, lambda: "00000001" not in epoch_folders(folder))
        assert log.aside_b
    reader = LogReader(store, "m1")
    (epoch, _) = await reader.epochs()
    with pytest.raises(IndexDamagedError):
        await reader.entries(epoch.id)
    assert [(e.first, e.last) for e in reader.before_damage(epoch.id)] == [(1, 2)]


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
