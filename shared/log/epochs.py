"""Epochs of a machine: allocated in storage by a conditional create of their document, which names their claim (epoch_id.py). The one with
the highest number is the machine's epoch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import msgspec

from shared import decoding
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    IndexDamagedError,
    IndexMissingError,
    StorageForgotError,
    TransientError,
)
from shared.log import names
from shared.log.epoch_id import Claim, EpochId, new_claim


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
    """Since when (Unix ns, for people) capture may have missed writes, which points of earlier epochs then lack. 0: none does."""
    suspect_after: tuple[int, int] | None = None
    """(epoch, batch): the last position that does not. Order never depends on a clock: the time decides nothing."""
    agent_id: str = ""
    identity: str = ""
    boot: str = ""
    """Which copy of the machine asked for it (Hello), and…"""
    owner: str = ""
    """…through which process server."""
    created_ns: int
    claim: Claim
    """Random: with the number it is the epoch's identity. Tells as well who made it when the answer to the create was lost."""

    @property
    def id(self) -> EpochId:
        return EpochId(self.epoch, self.claim)

    def doubts(self, position: tuple[int, int]) -> bool:
        """Whether capture may have missed writes before that position of an earlier epoch. By a document that has a time alone (of an older
        agent, or process server) every one is in doubt: no clock tells which are not."""
        if position[0] >= self.epoch:
            return False
        if self.suspect_after is None:
            return self.suspect_since_ns != 0
        return position > self.suspect_after

    @property
    def begun_by(self) -> str:
        """For people: which copy began it, and where."""
        who = f"{self.identity or 'a machine without an identity'}, boot {self.boot or 'unknown'}"
        return f"epoch {self.id} was begun by {who}, through process server {self.owner or 'unknown'}"


async def newest_epoch(store: BlobStore) -> int:
    """The machine's epoch; 0 if it has none."""
    return max(await epoch_numbers(store), default=0)


async def epoch_numbers(store: BlobStore) -> list[int]:
    folders = await store.list_folders(names.LOGS)
    return sorted(number for folder in folders if (number := names.epoch_of(folder)) is not None)


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
        return decoding.decode(data, type=EpochInfo)
    except UNDECODABLE as exc:
        raise IndexDamagedError(f"The epoch document {name} cannot be read", cause=str(exc)) from exc


async def known_epoch(store: BlobStore, machine: str, number: int) -> EpochInfo:
    """The epoch that bears this number in storage. Raises StorageForgotError when its document is gone or cannot be read: then nothing of
    it can be restored, nor told from another's.
    """
    try:
        return await read_epoch(store, number)
    except IndexDamagedError as exc:
        raise StorageForgotError(
            f"Epoch {number} of machine {machine} cannot go on",
            cause="its document is gone"
            if isinstance(exc, IndexMissingError)
            else f"{exc.what}: {exc.cause}",
        ) from exc


async def allocate_epoch(
    store: BlobStore,
    machine: str,
    *,
    disks: Sequence[EpochDisk],
    reason: str,
    agent_id: str,
    identity: str = "",
    boot: str = "",
    owner: str = "",
    suspect_since_ns: int = 0,
    suspect_after: tuple[int, int] | None = None,
    above: int | None = None,
) -> EpochInfo:
    """The machine's next epoch: the number after `above`, the highest that the caller saw anywhere (None: the newest in storage), which is
    so the epoch that it means to end.

    Raises TransientError when another took that number meanwhile. An epoch that has just begun is nobody's to end without another look,
    and the next number would do that.
    """
    if above is None:
        above = await newest_epoch(store)
    info = EpochInfo(
        machine=machine,
        epoch=above + 1,
        disks=tuple(disks),
        reason=reason,
        suspect_since_ns=suspect_since_ns,
        suspect_after=suspect_after,
        agent_id=agent_id,
        identity=identity,
        boot=boot,
        owner=owner,
        created_ns=time.time_ns(),
        claim=new_claim(),
    )
    try:
        await store.create(names.epoch_document(info.epoch), msgspec.json.encode(info))
    except BlobExistsError as exc:
        there = await read_epoch(store, info.epoch)
        if there.id != info.id:
            raise TransientError(
                f"No epoch of machine {machine} was begun", cause=f"{there.begun_by}, at the same time"
            ) from exc
    reach("epoch.after-create")
    return info
