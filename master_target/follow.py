"""Following the log of one machine: the index as it grows, and the intervals in it.

An interval is a run of whole batches behind the cursor. It ends at the first mark at which the stream is ordered, because there all
disks must stand still for their snapshots; else when its payload would exceed the bound on memory, or the log ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from master_target.apply import Interval, make_interval
from master_target.tail import EpochTail
from shared.batch import Batch
from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, IntegrityError, UnderstudyError
from shared.keys.vault import Vault
from shared.log import epochs
from shared.log.chain import IndexChain
from shared.log.epochs import EpochInfo
from shared.log.index import IndexEntry
from shared.log.reader import LogReader
from shared.recovery import point_store
from shared.recovery.history import marked_points
from shared.recovery.plan import replay_steps
from shared.recovery.points import PointDoc
from shared.recovery.position import Position


class Follower:
    """`refresh` sees what is new; the other methods answer from what it saw. One reader at a time for each."""

    def __init__(self, store: BlobStore, vault: Vault, machine: str) -> None:
        self.machine = machine
        self._store = store
        self._vault = vault
        self._reader = LogReader(store, machine)
        self._epochs: dict[int, EpochInfo] = {}
        self._chains: dict[int, IndexChain] = {}
        self._tails: dict[int, EpochTail] = {}
        self.damaged: list[UnderstudyError] = []
        """What the last `refresh` could not read of epochs that a newer one has made superfluous."""
        self._opened: list[Batch] = []
        """Batches that were read and not yet handed out; all of one epoch, consecutive."""
        self._ahead: tuple[IndexEntry, asyncio.Task[Sequence[Batch]]] | None = None
        """The segment that is being opened ahead, at most one."""

    async def close(self) -> None:
        if self._ahead is not None:
            await _cancelled(self._ahead[1])

    @property
    def newest_epoch(self) -> int:
        """0 while there is none."""
        return max(self._epochs, default=0)

    def epoch(self, number: int) -> EpochInfo | None:
        return self._epochs.get(number)

    def is_mark(self, position: Position) -> bool:
        """Whether a mark asked for a point at `position`, which is not forgotten."""
        return self._tail(position.epoch).is_mark(position.batch)

    def forget(self, position: Position) -> None:
        """Nothing will be asked for that lies before `position`."""
        for epoch, tail in self._tails.items():
            if epoch < position.epoch:
                tail.forget_all()
        self._tail(position.epoch).forget(position.batch)

    async def refresh(self, from_epoch: int) -> list[PointDoc]:
        """Read on in the index of all epochs from `from_epoch` on, older ones first; the points that are new, in log order.

        An older epoch is read to its end only after a newer one was seen: its writers are fenced by then.

        Raises IntegrityErrors and StorageErrors; but what is damaged in an epoch before the newest is only noted, in `damaged`, once the
        newest has batches.
        """
        damaged: dict[int, UnderstudyError] = {}
        numbers = await epochs.epoch_numbers(self._store)
        # Storage that was set back may not have the epoch from which we would go on: then what it has is the machine's log.
        from_epoch = min(from_epoch, max(numbers, default=from_epoch))
        for number in numbers:
            if number >= from_epoch and number not in self._epochs:
                try:
                    self._epochs[number] = await epochs.read_epoch(self._store, number)
                except IntegrityError as exc:
                    damaged[number] = exc
        found: list[PointDoc] = []
        for number in sorted(self._epochs):
            if number < from_epoch:
                continue
            try:
                await self._read_index(number, found)
            except IntegrityError as exc:
                damaged[number] = exc
        usable = self.newest_epoch if self.end(self.newest_epoch).batch else 0
        for number, error in damaged.items():
            if number >= usable:
                raise error
        self.damaged = list(damaged.values())
        return found

    async def _read_index(self, epoch: int, found: list[PointDoc]) -> None:
        """Read on in the index of `epoch`, and add the points in what is new to `found`: also when the index is damaged behind them."""
        if epoch not in self._chains:
            self._chains[epoch] = IndexChain(self._store, self.machine, self._epochs[epoch].id)
        claims = {epoch: self._epochs[epoch].claim}
        async for entries in self._chains[epoch].read_on():
            points = list(marked_points(self.machine, [(epoch, entry) for entry in entries], claims))
            # Both at once: `next` never sees an entry without its marks.
            self._tail(epoch).add(entries, [point.batch for point in points])
            found += points

    def _tail(self, epoch: int) -> EpochTail:
        return self._tails.setdefault(epoch, EpochTail())

    def end(self, epoch: int) -> Position:
        """The last indexed batch of the epoch."""
        return Position.of(epoch, self._tail(epoch).last)

    async def listed_ns(self, position: Position) -> int:
        """When storage got the segment that holds `position`, by its own clock, Unix ns: just before it was listed. 0: not known."""
        entry = self._tail(position.epoch).holding(position.batch)
        if entry is None or position.batch < entry.first:
            return 0
        try:
            return point_store.stored_ns_of(await self._store.properties(entry.blob))
        except BlobNotFoundError:
            return 0  # whoever applies it will say so

    def captured_ns(self, position: Position) -> int:
        """About when the image at `position` was captured: exact at the ends of segments."""
        entry = self._tail(position.epoch).holding(position.batch)
        if entry is None:
            return 0
        return entry.last_captured_ns if entry.last == position.batch else entry.first_captured_ns

    def behind(self, position: Position) -> tuple[float, int]:
        """Seconds of capture time and bytes of log between `position` and the end of the newest epoch."""
        rest = [
            found
            for epoch, tail in sorted(self._tails.items())
            if epoch >= position.epoch
            and (found := tail.behind(position.batch if epoch == position.epoch else 0))
        ]
        if not rest:
            return 0.0, 0
        applied_ns = self.captured_ns(position) or rest[0].first.first_captured_ns
        seconds = max(rest[-1].newest.last_captured_ns - applied_ns, 0) / 1e9
        return seconds, sum(found.plain_b for found in rest)

    async def next(self, start: Position, limit: Position | None, most_b: int) -> Interval | None:
        """The interval behind `start`: up to `limit` at most, and of at most `most_b` payload (or one batch). None at the end of the
        (known) log of its epoch.
        """
        self._drop_before(start)
        taken_b = count = 0
        while batch := await self._opened_or_read(start, count):
            if limit is not None and batch.number > limit.batch:
                break
            if count and taken_b + len(batch.payload) > most_b:
                break
            count += 1
            taken_b += len(batch.payload)
            if self._tail(start.epoch).is_mark(batch.number):
                break
        if not count:
            return None
        taken, self._opened = self._opened[:count], self._opened[count:]
        self._read_ahead(Position.of(start.epoch, taken[-1].number + len(self._opened)))
        end = Position.of(start.epoch, taken[-1].number)
        digest = self._opened[0].predecessor.hex() if self._opened else await self.digest(end)
        return await make_interval(start, end, taken, self._epochs[start.epoch], digest)

    async def digest(self, position: Position) -> str:
        """Of the batch there (hex). Empty when the log does not have it, or what was before it is forgotten."""
        entry = self._tail(position.epoch).holding(position.batch)
        if entry is None or position.batch < entry.first:
            return ""
        return await self._reader.digest(entry, position.batch)

    async def exactly(self, start: Position, end: Position) -> Interval:
        """The interval (start, end], which a crash left unfinished. Raises LogGapError when it is not all in the log."""
        self._opened = []
        batches: list[Batch] = []
        entries = self._tail(end.epoch).between(start.batch, end.batch)
        for step in replay_steps(entries, start.batch, end):
            batches += await self._read(end.epoch, step.entry, step.first, step.last)
        return await make_interval(start, end, batches, self._epochs[end.epoch], await self.digest(end))

    def _drop_before(self, start: Position) -> None:
        """Make `_opened` begin with the batch behind `start`, or be empty."""
        kept = [b for b in self._opened if b.epoch == start.epoch and b.number > start.batch]
        self._opened = kept if kept and kept[0].number == start.batch + 1 else []

    async def _opened_or_read(self, start: Position, nth: int) -> Batch | None:
        """The `nth` batch behind `start`, from 0; opens the next segment when it must. None at the end of the log."""
        if nth == len(self._opened):
            number = start.batch + nth + 1
            entry = self._tail(start.epoch).holding(number)
            if entry is None:
                return None
            self._opened += await self._read(start.epoch, entry, number, entry.last)
        return self._opened[nth]

    def _read_ahead(self, after: Position) -> None:
        """Begin to open the segment behind `after`, so that it is there when the interval has been applied."""
        entry = self._tail(after.epoch).holding(after.batch + 1)
        if entry is not None and entry.first == after.batch + 1 and self._ahead is None:
            opening = self._open_segment(after.epoch, entry, entry.first, entry.last)
            self._ahead = entry, asyncio.create_task(opening)

    async def _read(self, epoch: int, entry: IndexEntry, first: int, last: int) -> Sequence[Batch]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[0] is entry and (first, last) == (entry.first, entry.last):
                return await ahead[1]
            await _cancelled(ahead[1])
        return await self._open_segment(epoch, entry, first, last)

    async def _open_segment(self, epoch: int, entry: IndexEntry, first: int, last: int) -> Sequence[Batch]:
        return await self._reader.batches(self._epochs[epoch].id, entry, self._vault, first, last)


async def _cancelled(task: asyncio.Task[Sequence[Batch]]) -> None:
    """`task` is not needed any more, nor is its failure."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
