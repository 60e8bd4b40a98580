"""An epoch of which the document alone is gone, or damaged: what its index, and the points that have snapshots, still say of it.

The index names the epoch's claim in its first line, and of each segment its batches, their order and their marks; a segment opens only as
one of that claim. What neither says is which disk bears which number in the batches: the seed disks have names, the batches numbers. The
document of a point with snapshots says it, as the epoch's did, and names the claim. So where there is such a point, all of the
epoch's log restores. Where there is none, nothing of it does: data that is written to a disk that was guessed is worse than none. Then its
marks are listed with the reason.

Unknown stays what the document said of earlier epochs: after which position capture may have missed writes. Their points count as suspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shared.blob import BlobStore
from shared.errors import BlobNotFoundError
from shared.log import names
from shared.log.epoch_id import EpochId
from shared.log.epochs import EpochInfo
from shared.log.index import Claim, decode_up_to_damage
from shared.recovery.points import PointDoc

_FIRST_B: Final = 16 * 1024
"""Holds the first line, which is a claim."""


async def id_of(store: BlobStore, number: int) -> EpochId | None:
    """The epoch whose log this is, as its index says; None when that is gone, too."""
    index = names.index(number, 1)
    try:
        lines, _ = decode_up_to_damage(await store.read(index, 0, _FIRST_B), index)
    except BlobNotFoundError:
        return None
    found = EpochId(number, lines[0].epoch_claim) if lines and isinstance(lines[0], Claim) else None
    return found if found is not None and found.is_known else None


def rebuilt(machine: str, epoch: EpochId, docs: Sequence[PointDoc], cause: str) -> EpochInfo | None:
    """What can be said of the epoch; None when no point says which disks it had, or two contradict each other."""
    said = {doc.disks for doc in docs if doc.epoch_id == epoch and doc.restores_alone and doc.disks}
    if len(said) != 1:
        return None
    return EpochInfo(
        machine=machine,
        epoch=epoch.number,
        disks=said.pop(),
        reason=f"not known: {cause}",
        created_ns=0,
        claim=epoch.claim,
    )
