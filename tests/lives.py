"""Storage that is not what it was: the log of a machine gone, or begun again under the same number, as after a restore from a copy."""

from __future__ import annotations

from shared.blob import BlobStore
from shared.errors import LeaseHeldError
from shared.log import names
from shared.log.epochs import EpochDisk, EpochInfo, allocate_epoch


async def forget_log(store: BlobStore, epoch: int | None = None) -> None:
    """Everything of the epoch's log is gone; without `epoch`, that of all epochs."""
    folder = names.LOGS if epoch is None else names.epoch_folder(epoch)
    for name in [info.name async for info in store.list(folder)]:
        try:
            await store.delete(name)
        except LeaseHeldError:
            await store.leases.break_now(name)
            await store.delete(name)


async def copied(store: BlobStore, prefix: str = names.LOGS) -> dict[str, tuple[bytes, dict[str, str]]]:
    """What lies there now: content and metadata by name."""
    return {info.name: (await store.read(info.name), info.metadata) async for info in store.list(prefix)}


async def set_back(store: BlobStore, copy: dict[str, tuple[bytes, dict[str, str]]]) -> None:
    """Storage has that log again, and nothing else of it."""
    await forget_log(store)
    for name, (data, metadata) in copy.items():
        if "/index-" in name:
            await store.append_create(name)
            if data:
                await store.append(name, data, None, 0)
        else:
            await store.create(name, data, metadata)


async def other_life(store: BlobStore, machine: str, epoch: int) -> EpochInfo:
    """Another epoch bears the number from now on; its log is empty."""
    await forget_log(store, epoch)
    disks = [EpochDisk(0, "sda", "s0", 1 << 20)]
    return await allocate_epoch(
        store,
        machine,
        disks=disks,
        reason="another life",
        agent_id="other",
        identity="twin",
        boot="b2",
        owner="ps9",
        above=epoch - 1,
    )
