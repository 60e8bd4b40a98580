"""What of the source is missing on a machine's seed disks (shared/recovery/unreadable.py), kept over a restart in one blob an epoch.

It is noted before an interval is applied. That is done only when all disks have the snapshots of the point where they stood, if there is
one (stepping.py), and only its last batch may be a point: so no point is made with what was noted for a later position. Whoever is killed
in between applies, and notes, the interval again, or one that ends elsewhere before the next mark; and the state at that mark is what the
batches up to it say, however often they were noted.

A disk that begins the epoch anew (its blob was lost) takes all batches again. The first are the full replication, which writes or names
each sector: nothing that was said of it before is left, be it of another history of the log. While it catches up, intervals are of it
alone, and change nothing that is said of the others.

One writer. What the blob held is read once by an owner, and written again at once: from then on, each change that an earlier owner still
has under way fails by its ETag; and before he tries again he finds that the roll is not his any more. A blob that he creates so late names
what this owner's first interval names, or more. The owner's own memory is the truth: who deletes the blob, or damages it, finds it written
again with the next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import msgspec

from master_target.apply import Interval
from shared import decoding
from shared.batch import Range
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    IntegrityError,
    PreconditionError,
)
from shared.log.epoch_id import NO_EPOCH, EpochId
from shared.recovery.seed import SEED_DISKS
from shared.recovery.unreadable import Unreadable, after, written_by


class UnreadableRecord:
    """Of one machine. `check` raises LeaseLostError when another owner has it."""

    def __init__(self, store: BlobStore, check: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._check = check
        self._epoch = NO_EPOCH
        self._known = Unreadable()
        self._etag: str | None = None

    async def at(self, epoch: EpochId) -> Unreadable:
        """What is missing behind the last interval of the epoch that was noted. Raises IntegrityError."""
        if epoch != self._epoch:
            await self._take(epoch)
        return self._known

    async def note(self, epoch: EpochId, interval: Interval, numbers: Collection[int]) -> None:
        """Before the interval is applied to the disks with these numbers."""
        before = await self.at(epoch)
        if not self._known and not interval.unreadable:
            return
        written = {number: runs for number, runs in interval.runs.items() if number in numbers}
        named = interval.unreadable.of(numbers)
        new = await asyncio.to_thread(lambda: after(before, written_by(written), named))
        if new != self._known:
            await self._write(_blob(epoch), new)
            reach("unreadable.after-note")

    async def _take(self, epoch: EpochId) -> None:
        name = _blob(epoch)
        known, etag = Unreadable(), None
        while etag is None and (found := await self._store.read_versioned(name)) is not None:
            known = _decoded(name, found[0])
            try:
                etag = await self._store.replace(name, msgspec.json.encode(known), found[1])
            except (PreconditionError, BlobNotFoundError):
                await self._check()
                known = Unreadable()
        self._epoch, self._known, self._etag = epoch, known, etag

    async def _write(self, name: str, new: Unreadable) -> None:
        data = msgspec.json.encode(new)
        while True:
            try:
                if self._etag is None:
                    self._etag = await self._store.create(name, data)
                else:
                    self._etag = await self._store.replace(name, data, self._etag)
                break
            except (BlobExistsError, PreconditionError, BlobNotFoundError):
                found = await self._store.read_versioned(name)
                self._etag = None if found is None else found[1]
                if found is not None and found[0] == data:
                    break  # our own try, of which the answer was lost
                await self._check()
        self._known = new


def _blob(epoch: EpochId) -> str:
    return f"{SEED_DISKS}unreadable-{epoch.number:08d}-{epoch.claim}.json"


def _decoded(name: str, data: bytes) -> Unreadable:
    """Older versions wrote the ranges alone, and only added to them: they cover what is missing."""
    try:
        found = decoding.decode(data, type=Unreadable | tuple[Range, ...])
    except UNDECODABLE as exc:
        raise IntegrityError(
            f"{name} could not be read",
            cause=str(exc),
            action="Delete it; points then do not list what the source disk could not read until now.",
        ) from exc
    return found if isinstance(found, Unreadable) else Unreadable(found, covers=bool(found))
