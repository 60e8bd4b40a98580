"""Where machines lie: one container each, named by the registry; on a real blob service."""

from __future__ import annotations

import asyncio
import datetime as dt
import json

import pytest

from shared.blob import BlobStore, Retry
from shared.errors import (
    ContainerMissingError,
    IntegrityError,
    MachineNotFoundError,
    PreconditionError,
    StorageForgotError,
    UsageError,
)
from shared.machine.storage import MachineStorage

ONCE = Retry(deadline_s=0.0)


def anew(storage: MachineStorage) -> MachineStorage:
    """As another process sees it, which knows nothing yet."""
    return MachineStorage(storage.vault)


async def containers(storage: MachineStorage) -> list[str]:
    return [name async for name, _ in storage.vault.list_containers(f"{storage.vault.container}-")]


async def delete_container(store: BlobStore) -> None:
    await store._core.container.delete_container()


async def test_a_machine_gets_a_container_that_says_whose_it_is(machine_storage: MachineStorage) -> None:
    store = await machine_storage.find_or_create("web1")
    assert (await machine_storage.find("web1")).container == store.container
    assert (await anew(machine_storage).find("web1")).container == store.container
    [(name, metadata)] = [c async for c in store.list_containers(f"{machine_storage.vault.container}-")]
    assert name == store.container
    assert (metadata["machine"], metadata["vault"]) == ("web1", machine_storage.vault.container)
    other = await machine_storage.find_or_create("web2")
    await other.create("side.json", b"2")
    assert [blob.name async for blob in store.list("")] == []


async def test_two_that_meet_a_new_machine_at_once_get_one_container(machine_storage: MachineStorage) -> None:
    found = await asyncio.gather(*(anew(machine_storage).find_or_create("web1") for _ in range(8)))
    assert len({store.container for store in found}) == 1
    assert await containers(machine_storage) == [found[0].container]


async def test_an_entry_whose_container_was_not_made_gets_it(machine_storage: MachineStorage) -> None:
    store = await machine_storage.find_or_create("web1")
    await delete_container(store)  # as if whoever registered it had been killed before
    again = await anew(machine_storage).find_or_create("web1")
    assert again.container == store.container
    await again.create("side.json", b"1")


async def test_a_machine_that_nobody_registered_is_not_found_and_not_made(
    machine_storage: MachineStorage,
) -> None:
    with pytest.raises(MachineNotFoundError, match="holds nothing of machine 'web1'"):
        await machine_storage.find("web1")
    with pytest.raises(UsageError, match="is not a machine name"):
        await machine_storage.find_or_create("../x")
    assert await containers(machine_storage) == []
    assert await machine_storage.machines() == {}


async def test_with_the_registry_lost_the_containers_say_the_same(machine_storage: MachineStorage) -> None:
    web1, web2 = [await machine_storage.find_or_create(name) for name in ("web1", "web2")]
    known = {"web1": web1.container, "web2": web2.container}
    assert await machine_storage.machines() == known
    await machine_storage.vault.delete("machines/web2.json")
    assert await machine_storage.machines() == {"web1": web1.container}
    assert await machine_storage.machines(thorough=True) == known
    await delete_container(machine_storage.vault)
    lost = anew(machine_storage)
    assert await lost.machines() == known
    assert (await lost.find("web2")).container == web2.container
    # And whoever replicates the machine goes on in the same container, and makes its entry again.
    assert (await lost.find_or_create("web1")).container == web1.container
    assert await anew(machine_storage).machines() == {"web1": web1.container}


async def test_another_vault_beside_it_is_not_its_machines(machine_storage: MachineStorage) -> None:
    """Its name begins with ours."""
    longer = MachineStorage(machine_storage.vault.in_container(f"{machine_storage.vault.container}-b"))
    await longer.find_or_create("web1")
    assert await machine_storage.machines(thorough=True) == {}
    with pytest.raises(MachineNotFoundError):
        await machine_storage.find("web1")


async def test_of_two_containers_of_one_name_the_younger_is_the_machines(
    machine_storage: MachineStorage,
) -> None:
    old = await machine_storage.find_or_create("web1")
    young = machine_storage.vault.in_container(f"{machine_storage.vault.container}-{'0' * 16}")
    await young.ensure_container(
        {"machine": "web1", "vault": machine_storage.vault.container, "created": str(2**62)}
    )
    assert (await anew(machine_storage).find("web1")).container == old.container, "the registry decides"
    await machine_storage.vault.delete("machines/web1.json")
    assert (await anew(machine_storage).find("web1")).container == young.container


async def test_a_container_that_is_gone_is_for_an_operator_while_the_registry_names_it(
    machine_storage: MachineStorage,
) -> None:
    store = await machine_storage.find_or_create("web1")
    await delete_container(store)
    with pytest.raises(ContainerMissingError):
        await store.read("side.json")
    assert (await machine_storage.find_or_create("web1")).container == store.container
    await store.create("side.json", b"1")


@pytest.mark.parametrize("patient", [False, True])
async def test_a_name_that_is_another_machines_now_is_storage_that_forgot_and_nothing_is_written_there(
    machine_storage: MachineStorage, patient: bool
) -> None:
    storage = machine_storage.patient() if patient else machine_storage.with_retry(ONCE)
    old = await storage.find_or_create("web1")
    await machine_storage.vault.delete("machines/web1.json")
    await delete_container(old)
    new = await anew(machine_storage).find_or_create("web1")
    assert new.container != old.container
    for request in (old.create("a", b""), old.append_create("b"), old.read("c"), old.list_folders("d/")):
        with pytest.raises(StorageForgotError, match="forgot machine web1"):
            await request
    assert [blob.name async for blob in new.list("")] == []
    assert (await storage.find_or_create("web1")).container == new.container


async def test_a_machine_that_was_deleted_is_storage_that_forgot(machine_storage: MachineStorage) -> None:
    old = await machine_storage.find_or_create("web1")
    await machine_storage.vault.delete("machines/web1.json")
    await delete_container(old)
    with pytest.raises(StorageForgotError, match="names no machine of this name"):
        await old.read("side.json")


async def test_that_the_registry_is_gone_as_well_says_nothing_about_the_machine(
    machine_storage: MachineStorage,
) -> None:
    """A whole account that is not what it was: an operator must look."""
    old = await machine_storage.find_or_create("web1")
    await delete_container(machine_storage.vault)
    await delete_container(old)
    with pytest.raises(ContainerMissingError):
        await old.read("side.json")


@pytest.mark.parametrize(
    "data", [b"{", b'{"v":1,"machine":"web1","id":"../other","created_ns":1,"claim":"x"}']
)
async def test_an_entry_that_cannot_be_read_is_told(machine_storage: MachineStorage, data: bytes) -> None:
    store = await machine_storage.find_or_create("web1")
    other = await machine_storage.find_or_create("web2")
    await machine_storage.vault.replace("machines/web1.json", data)
    with pytest.raises(IntegrityError, match="cannot be read"):
        await anew(machine_storage).find("web1")
    assert await machine_storage.machines() == {"web2": other.container}
    assert await machine_storage.machines(thorough=True) == {
        "web1": store.container,
        "web2": other.container,
    }


async def test_an_entry_that_is_another_machines_is_refused_everywhere(
    machine_storage: MachineStorage,
) -> None:
    """As a copy of the blob is, or a rename that went half way."""
    store = await machine_storage.find_or_create("web1")
    data = await machine_storage.vault.read("machines/web1.json")
    await machine_storage.vault.create("machines/web2.json", data)
    for look in (anew(machine_storage).find, anew(machine_storage).find_or_create):
        with pytest.raises(IntegrityError, match="is of another machine: it was made for machine web1"):
            await look("web2")
    unreadable: list[IntegrityError] = []
    found = await anew(machine_storage).machines(unreadable=unreadable)
    assert found == {"web1": store.container}
    assert ["machines/web2.json" in str(error) for error in unreadable] == [True]
    await machine_storage.vault.delete("machines/web2.json")
    assert (await anew(machine_storage).find_or_create("web2")).container != store.container


async def test_a_container_that_says_it_is_another_machines_is_refused(
    machine_storage: MachineStorage,
) -> None:
    store = await machine_storage.find_or_create("web1")
    data = json.loads(await machine_storage.vault.read("machines/web1.json"))
    await machine_storage.vault.create("machines/web2.json", json.dumps({**data, "machine": "web2"}).encode())
    for look in (anew(machine_storage).find, anew(machine_storage).find_or_create):
        with pytest.raises(IntegrityError, match="its own metadata say machine web1"):
            await look("web2")
    assert (await anew(machine_storage).find("web1")).container == store.container
    # What says nothing contradicts nothing: a copy of the account has no metadata.
    await store._core.container.set_container_metadata({})
    assert (await anew(machine_storage).find("web1")).container == store.container


async def test_a_list_and_a_look_say_the_same_also_after_an_entry_was_changed(
    machine_storage: MachineStorage,
) -> None:
    old = await machine_storage.find_or_create("web1")
    other = anew(machine_storage)
    assert await other.machines() == {"web1": old.container}
    data = json.loads(await machine_storage.vault.read("machines/web1.json"))
    await machine_storage.vault.replace(
        "machines/web1.json",
        json.dumps({**data, "id": "0" * 16}).encode(),
        metadata={"id": old.container.rsplit("-", 1)[1]},
    )
    assert (await other.machines())["web1"] == (await anew(machine_storage).find("web1")).container
    assert (await other.machines())["web1"].endswith("0" * 16)


async def test_a_container_goes_only_as_it_was_looked_at(machine_storage: MachineStorage) -> None:
    store = await machine_storage.find_or_create("web1")
    await store.create("side.json", b"1")
    before = await store.container_info()
    assert before.metadata["machine"] == "web1"
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    await store.policies.put("understudy-1", until)  # in a later second of storage's
    with pytest.raises(PreconditionError):
        await store.delete_container(before.changed)
    assert [blob.name async for blob in store.list("")] == ["side.json"]
    plain = machine_storage.vault.in_container(store.container)
    await plain.delete_container((await plain.container_info()).changed)
    assert await containers(machine_storage) == []
    with pytest.raises(ContainerMissingError):
        await plain.delete_container(before.changed)


async def test_a_machine_leaves_the_registry_unless_that_names_another_container(
    machine_storage: MachineStorage,
) -> None:
    store = await machine_storage.find_or_create("web1")
    assert await anew(machine_storage).named("web1") == store.container
    await delete_container(store)
    assert await machine_storage.named("web1") == store.container, "it need not be there"
    await machine_storage.unregister("web1", f"{machine_storage.vault.container}-00000000000000aa")
    assert await machine_storage.named("web1") == store.container
    await machine_storage.unregister("web1", store.container)
    assert await machine_storage.named("web1") is None
    await machine_storage.unregister("web1", store.container)
    again = await machine_storage.find_or_create("web1")
    assert again.container != store.container
