"""What of the source is missing on a machine's seed disks (shared/recovery/unreadable.py), over restarts.

A disk's own state (targets/state.py) names by a digest what is missing at its cursor, and what will be at `pending`. It changes in the
requests that move these anyway, under the disk's lease and ETag. What the digests stand for lies in one blob, the *record*: so it costs
no request while nothing is missing, and one when that changes. Nothing is taken from the record but by the digest that a disk has. So
it does not matter whose it is, of which copy of storage, or of which history of the log: what is found was noted for just this, and what
is not found is *not known*. Then the whole disk is named, as a cover ("up to"), which shrinks as it is written; apply goes on, and the
machine's status says how it is known exactly again.

- *A kill, anywhere.* `note` makes the record hold what is missing at the cursors of all disks, and behind the interval on those that it is
  applied to; only then is it begun. So what `cursor` names is in the record before and behind a `finish`, on each disk by itself, and the
  interval is noted anew from there, from the same state, to whichever end. What `pending` names is needed only once it is the cursor.
- *A log that is set back.* Behind the disks' cursor, also when more was noted: the record holds both, and the cursor says which is true.
  Before the cursor: nothing is applied then (targets/state.py).
- *A disk that begins the epoch anew*, since it is a new one or its blob was lost: nothing is missing on it, whatever it holds. The batches
  from the first on are the full replication, which writes or names each sector; and none of them is a point before it is over.
- *Points* name what the disks' cursors name, where they stand when their snapshots are taken; each snapshot has the digest, too.

- *A disk that a version from before this record wrote* names nothing. That version kept one blob an epoch, and wrote into it whatever
  batches named, before they were applied; it took nothing out. So that blob covers what is missing, and where there is none, nothing is.
  But this version may have had the disk before that one (an upgrade that was undone, and done again): what was missing then is in the
  record, which held what the cursors named and which that version did not touch. So both together are the cover. A kill behind our own
  note changes nothing of that: the record then holds this cover.

One writer. What the record held is read once by an owner, before it needs it, and written again at once: from then on, each change that an
earlier owner still has under way fails by its ETag; and before he tries again he finds that the roll is not his any more. A blob that he
creates so late stands where this owner had found none and needs none, or is replaced. Should either be lost none the less, its disks are
*not known*: never less than what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from master_target.apply import DiskTarget, Interval
from shared import decoding
from shared.batch import SECTOR, Range
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    MissingUnknownError,
    PreconditionError,
)
from shared.log.epoch_id import EpochId
from shared.recovery.seed import SEED_DISKS
from shared.recovery.unreadable import Unreadable, after, written_by

_log = logging.get()

RECORD: Final = f"{SEED_DISKS}unreadable.json"
_VERSION: Final = 1


class DiskMissing(msgspec.Struct, frozen=True):
    """On one disk, at one place of the log. See Unreadable."""

    ranges: tuple[Range, ...]
    covers: bool
    unknown: bool
    """It began as a cover of the whole disk."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def behind(self, interval: Interval, disk: int) -> DiskMissing:
        named = interval.unreadable.of({disk})
        if not self and not named:
            return NOTHING
        runs = {disk: interval.runs[disk]} if disk in interval.runs else {}
        new = after(Unreadable(self.ranges, self.covers), written_by(runs), named)
        return DiskMissing(new.ranges, new.covers, self.unknown and bool(new))


NOTHING: Final = DiskMissing((), False, False)


class _Record(msgspec.Struct, frozen=True):
    states: tuple[DiskMissing, ...]
    v: int


class UnreadableRecord:
    """Of one machine. `check` raises LeaseLostError when another owner has it."""

    def __init__(self, store: BlobStore, check: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._check = check
        self._held: dict[str, DiskMissing] | None = None
        """By digest, what the blob holds; None: it was not looked at."""
        self._etag: str | None = None
        self._damaged = False
        """It was there, and told nothing."""
        self._older: dict[EpochId, tuple[Range, ...] | None] = {}
        """What older versions wrote; None: it cannot be read. Whoever wrote there last does not have the disks any more: so it stays."""
        self.problem: MissingUnknownError | None = None
        """Which disks the last call found not known, now or since."""

    async def at(self, disks: Sequence[DiskTarget]) -> Unreadable:
        """What is missing on `disks` where they stand, clean."""
        found = [await self._at_cursor(disk) for disk in disks]
        # What is not known stays so, whatever becomes of what could not be read.
        if unknown := {one.digest: one for one in found if one.unknown}:
            await self._hold({**(self._held or {}), **unknown})
        self._say(disks, found)
        ranges = tuple(range_ for one in found for range_ in one.ranges)
        return after(Unreadable(ranges, any(one.covers for one in found)), {}, Unreadable())

    async def note(
        self, interval: Interval, disks: Sequence[DiskTarget], members: Sequence[int]
    ) -> dict[int, str]:
        """Before the interval is applied to the `members` (indices) of `disks`, which are all disks of the epoch: what each of them is to
        name as missing behind it, by its number.
        """
        epoch = EpochId(interval.start.epoch, interval.claim)
        before = [
            await self._at_cursor(disk) if disk.target.state.reached(epoch).batch else NOTHING
            for disk in disks
        ]
        behind = await asyncio.to_thread(
            lambda: {i: before[i].behind(interval, disks[i].number) for i in members}
        )
        await self._hold({one.digest: one for one in (*before, *behind.values()) if one})
        self._say(disks, [behind.get(i, there) for i, there in enumerate(before)])
        return {disks[i].number: one.digest for i, one in behind.items()}

    async def _at_cursor(self, disk: DiskTarget) -> DiskMissing:
        digest = disk.target.state.cursor_missing
        if digest == NOTHING.digest:
            return NOTHING
        held = self._held if self._held is not None else await self._look()
        found = held.get(digest) if digest else await self._left_by_older(disk, held)
        whole = ((disk.number, 0, disk.disk_b // SECTOR),)
        return found if found is not None else DiskMissing(whole, covers=True, unknown=True)

    async def _left_by_older(self, disk: DiskTarget, held: dict[str, DiskMissing]) -> DiskMissing | None:
        """On a disk that an older version wrote; None: not known."""
        epoch = disk.target.state.cursor_epoch
        if epoch not in self._older:
            self._older[epoch] = await _read_older(self._store, epoch)
        older = self._older[epoch]
        if older is None or self._damaged:
            return None
        ours = [one for one in held.values() if any(number == disk.number for number, *_ in one.ranges)]
        every = Unreadable((*older, *(range_ for one in ours for range_ in one.ranges)), covers=True)
        cover = await asyncio.to_thread(lambda: after(every.of({disk.number}), {}, Unreadable()))
        return DiskMissing(cover.ranges, cover.covers, any(one.unknown for one in ours))

    async def _look(self) -> dict[str, DiskMissing]:
        etag, held = None, dict[str, DiskMissing]()
        while etag is None and (found := await self._store.read_versioned(RECORD)) is not None:
            try:
                etag = await self._store.replace(RECORD, found[0], found[1])
            except (PreconditionError, BlobNotFoundError):
                await self._check()
            else:
                known = _decoded(found[0])
                held, self._damaged = known or {}, known is None
        self._held, self._etag = held, etag
        return held

    async def _hold(self, states: dict[str, DiskMissing]) -> None:
        """Have the blob hold these. What else it holds is dropped when it must be written for them."""
        if not states:
            return
        held = self._held if self._held is not None else await self._look()
        if states.keys() <= held.keys():
            return
        data = msgspec.json.encode(_Record(tuple(states.values()), _VERSION))
        self._held = None  # whoever fails here does not know what it holds
        while True:
            try:
                if self._etag is None:
                    self._etag = await self._store.create(RECORD, data)
                else:
                    self._etag = await self._store.replace(RECORD, data, self._etag)
                break
            except (BlobExistsError, PreconditionError, BlobNotFoundError):
                found = await self._store.read_versioned(RECORD)
                self._etag = None if found is None else found[1]
                if found is not None and found[0] == data:
                    break  # our own try, of which the answer was lost
                await self._check()
        self._held = states
        reach("unreadable.after-note")

    def _say(self, disks: Sequence[DiskTarget], found: Iterable[DiskMissing]) -> None:
        names = [disk.target.name for disk, one in zip(disks, found, strict=True) if one.unknown]
        problem = MissingUnknownError.of(names, RECORD) if names else None
        if problem is not None and self.problem is None:
            _log.warning("what is missing on seed disks is not known", **problem.as_dict())
        self.problem = problem


def _decoded(data: bytes) -> dict[str, DiskMissing] | None:
    """None when it cannot be read here (damaged, or of another version): whoever needs something of it does not find it."""
    try:
        record = decoding.decode(data, type=_Record)
    except UNDECODABLE as exc:
        _log.warning("record of what is missing not used", blob=RECORD, cause=str(exc))
        return None
    return {one.digest: one for one in record.states} if record.v == _VERSION else None


def older_record(epoch: EpochId) -> str:
    """The name of the blob in which older versions kept all that batches of the epoch named: a list of ranges."""
    return f"{SEED_DISKS}unreadable-{epoch.number:08d}-{epoch.claim}.json"


async def _read_older(store: BlobStore, epoch: EpochId) -> tuple[Range, ...] | None:
    name = older_record(epoch)
    found = await store.read_versioned(name) if epoch.is_known else None
    if found is None:
        return () if epoch.is_known else None
    try:
        return await asyncio.to_thread(decoding.decode, found[0], type=tuple[Range, ...])
    except UNDECODABLE as exc:
        _log.warning("older record of what is missing not used", blob=name, cause=str(exc))
        return None
