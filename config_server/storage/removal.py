"""What is done in storage to delete a machine, and what is looked at before. Everything may be done again, wherever it was cut off.

One container goes, by the name that was its machine's when the deletion was asked for, and with it all that is the machine's: log,
points, seed disks with their snapshots, the key. Nothing is deleted by a prefix. It goes on the condition that it was not changed since
it was looked at: one that was made anew under the name, or whose policies somebody changed, stays. Then its entry goes out of the
registry, if that names it still. (The other way round the entry would be made again from the container's metadata.)

**A request to delete may arrive late**: its sender has given up, and it is still on its way, or was sent a second time by the connection
beneath. So nobody who did not get the answer that it is done takes for granted that it is not done yet. He *fences*: he changes the
container's metadata, until storage says that this counts as a later change. Every request to delete bears the time of a change that was
seen before it was sent, and these times only grow; so each that was sent before the fence is refused from then on (412), and one that
was faster has done it, which the fence is told (there is no container). What was fenced can be looked at anew, or kept.
"""

from __future__ import annotations

import datetime as dt

from config_server.rules.deletion import Found
from config_server.storage import deletion_note
from config_server.storage.deletion_note import Written
from shared.blob import BlobStore, Retry
from shared.crashpoints import reach
from shared.errors import ContainerMissingError, StorageRoleError, UsageError
from shared.log import names
from shared.log.epochs import newest_epoch
from shared.machine import active_side
from shared.machine.storage import MachineStorage

_ONCE = Retry(deadline_s=0.0)
"""The next look knows better than the next attempt."""


async def look(storage: MachineStorage, machine: str, container: str) -> Found:
    """`container`: which the deletion is of; empty: none. Raises StorageError, IntegrityError."""
    named = await storage.named(machine) or ""
    vault = storage.vault.container
    if container:
        store = storage.vault.in_container(container)
        try:
            return await _look_into(store, named, vault)
        except ContainerMissingError:
            if await storage.is_listed(container):  # it is disabled, or is being made or deleted
                raise
    return Found(named=named, vault=vault)


async def _look_into(store: BlobStore, named: str, vault: str) -> Found:
    info = await store.container_info()
    side = await active_side.find(store)
    granted, date = await _granted(store)
    return Found(
        named=named,
        vault=vault,
        metadata=info.metadata,
        noted=await deletion_note.read(store),
        changed=info.changed,
        identity=side.identity if side is not None else active_side.UNKNOWN,
        date=date,
        written=await _written(store),
        granted=granted,
    )


async def _granted(store: BlobStore) -> tuple[str, dt.datetime]:
    """A policy under which somebody may read the container now, empty for none; and storage's time."""
    try:
        policies = await store.policies.look()
    except StorageRoleError:
        # An identity whose role does not cover policies (getAcl, which *Storage Blob Data Contributor* lacks). Where there is no account
        # key nobody signs grants; those of a key from before live for hours at most. Any other refusal says nothing of it, and hinders.
        return "", await store.date()
    granted = [
        policy.id
        for policy in policies.policies
        if policy.id.startswith("understudy-") and (policy.until is None or policy.until > policies.date)
    ]
    return granted[0] if granted else "", policies.date


async def remove_container(storage: MachineStorage, container: str, changed: dt.datetime) -> None:
    """Deletes it, if it was not changed since then. Raises StorageError; ContainerMissingError when it is gone. Whatever is raised, it may
    be done yet: `fence` ends that.
    """
    if not container.startswith(f"{storage.vault.container}-"):
        raise UsageError(f"Container {container} was not deleted", cause="it is no machine's")
    await storage.vault.with_retry(_ONCE).in_container(container).delete_container(changed)
    reach("deletion.container-gone")


async def fence(storage: MachineStorage, container: str) -> None:
    """No request to delete it that was sent before does anything from now on. Raises StorageError; ContainerMissingError when it is gone,
    or disabled."""
    await storage.vault.in_container(container).change_container()


async def note(storage: MachineStorage, container: str, deletion: str) -> Written:
    """From now on that one stands, by its container; `deletion_note.NONE`: none. Fence behind it: who looked before then deletes nothing,
    and who looks from now on finds it. Raises StorageError; ContainerMissingError."""
    return await deletion_note.write(storage.vault.in_container(container), deletion)


async def renew(storage: MachineStorage, container: str, deletion: str) -> Written | None:
    """As deletion_note.renew."""
    return await deletion_note.renew(storage.vault.in_container(container), deletion)


async def take_out(storage: MachineStorage, container: str, deletion: str) -> Written | None:
    """As deletion_note.take_out."""
    return await deletion_note.take_out(storage.vault.in_container(container), deletion)


async def take_back(storage: MachineStorage, container: str, written: Written) -> None:
    """As deletion_note.take_back."""
    await deletion_note.take_back(storage.vault.in_container(container), written)


async def noted(storage: MachineStorage, container: str) -> str:
    """Which deletion of it stands, by the last word that was said; empty: none, or there is no container. Raises
    StorageError."""
    return (
        await deletion_note.read(storage.vault.in_container(container)) if container else deletion_note.NONE
    )


async def is_gone(storage: MachineStorage, container: str) -> bool:
    """By the account's list: what does not answer is not gone."""
    return not await storage.is_listed(container)


async def others(storage: MachineStorage, machine: str, container: str) -> list[str]:
    """Further containers whose metadata name the machine: such as it had before, and were brought back. Whoever bears the name next, and is
    not in the registry, takes one up. Raises StorageError."""
    vault = storage.vault
    said = {"machine": machine, "vault": vault.container}
    return [
        name
        async for name, metadata in vault.list_containers(f"{vault.container}-")
        if name != container and said.items() <= metadata.items()
    ]


async def _written(store: BlobStore) -> dt.datetime | None:
    """When the newest epoch was allocated, or its index was written last."""
    epoch = await newest_epoch(store)
    if not epoch:
        return None
    own = (names.epoch_document(epoch), f"{names.epoch_folder(epoch)}index-")
    return max([blob.last_modified for prefix in own async for blob in store.list(prefix)], default=None)
