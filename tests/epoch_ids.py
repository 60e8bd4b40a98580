"""Identities of epochs for tests that need no storage to make them."""

from __future__ import annotations

from typing import Final

from shared.blob import BlobStore
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochDisk, EpochInfo, read_epoch


def eid(number: int, life: int = 1) -> EpochId:
    """One epoch with this number; another `life`, another claim."""
    return EpochId(number, f"{life:04x}{number:012x}")


CLAIM: Final = eid(1).claim


def epoch_info(*disks: EpochDisk, number: int = 1) -> EpochInfo:
    id_ = eid(number)
    return EpochInfo(machine="web1", epoch=number, disks=disks, reason="test", created_ns=1, claim=id_.claim)


async def id_in(store: BlobStore, number: int) -> EpochId:
    """Of the epoch that bears this number in storage."""
    return (await read_epoch(store, number)).id
