"""Epochs of a machine: integers, allocated in storage by a conditional create of their document. The
highest is the machine's epoch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec

from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    IndexDamagedError,
    IndexMissingError,
)
from shared.log import names


class EpochDisk(msgspec.Struct, frozen=True):
    """A disk as the epoch's batches refer to it."""

    number: Annotated[int, msgspec.Meta(ge=0)]
    name: names.DiskName
    """The disk's stable id (agent/capture/binding.py)."""
    serial: str
    sectors: int
    """Size in 512-byte sectors."""


class EpochInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`epoch.json`."""

    v: int = 1
    machine: str
    epoch: int
    disks: Annotated[tuple[EpochDisk, ...], msgspec.Meta(min_length=1)]
    reason: str
    """Why it began, for people."""
    suspect_since_ns: int = 0
    """Points of earlier epochs captured from then on (Unix ns) may lack writes: capture had missed some. 0: none."""
    agent_id: str = ""
    created_ns: int
    claim: str
    """Random: tells who made it when the answer to the create was lost."""


async def newest_epoch(store: BlobStore) -> int:
    """The machine's epoch; 0 if it has none."""
    return max(await epoch_numbers(store), default=0)


async def epoch_numbers(store: BlobStore) -> list[int]:
    folders = await store.list_folders(names.LOGS)
    return sorted(int(folder) for folder in folders if folder.isdecimal())


async def read_epoch(store: BlobStore, epoch: int) -> EpochInfo:
    """Of an epoch that `epoch_numbers` lists. Raises IndexDamagedError; IndexMissingError when the document is gone: it is the first
    thing that there is of an epoch.
    """
    name = names.epoch_document(epoch)
    try:
        data = await store.read(name)
    except BlobNotFoundError as exc:
        raise IndexMissingError(f"The epoch document {name} cannot be read", cause="it is gone") from exc
    try:
        return msgspec.json.decode(data, type=EpochInfo)
    except UNDECODABLE as exc:
        raise IndexDamagedError(f"The epoch document {name} cannot be read", cause=str(exc)) from exc


async def allocate_epoch(
    store: BlobStore,
    machine: str,
    *,
    disks: Sequence[EpochDisk],
    reason: str,
    agent_id: str,
    suspect_since_ns: int = 0,
    above: int = 0,
) -> EpochInfo:
    """The machine's next epoch. Two callers at a time get different ones. Its number is higher than any that storage knows, and than
    `above`: the highest that the caller ever saw, since storage may have forgotten some.
    """
    while True:
        info = EpochInfo(
            machine=machine,
            epoch=max(await newest_epoch(store), above) + 1,
            disks=tuple(disks),
            reason=reason,
            suspect_since_ns=suspect_since_ns,
            agent_id=agent_id,
            created_ns=time.time_ns(),
            claim=secrets.token_hex(8),
        )
        name = names.epoch_document(info.epoch)
        try:
            await store.create(name, msgspec.json.encode(info))
        except BlobExistsError:
            if (await read_epoch(store, info.epoch)).claim != info.claim:
                continue
        reach("epoch.after-create")
        return info
