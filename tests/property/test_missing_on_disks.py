"""What is missing on seed disks, as a master target knows it, against a set of sectors: killed anywhere, with requests that land late, and
in storage that is not what it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import hypothesis.strategies as st
import msgspec
from hypothesis import example, given

from master_target.apply import DiskTarget, Interval, due
from master_target.targets.base import Target
from master_target.targets.state import DiskState
from master_target.unreadable import RECORD, UnreadableRecord, older_record
from shared.batch import SECTOR, Op, Range
from shared.blob import BlobStore
from shared.errors import BlobExistsError, BlobNotFoundError, PreconditionError
from shared.recovery.coalesce import coalesce
from shared.recovery.position import Position
from shared.recovery.unreadable import named_in
from tests.epoch_ids import CLAIM, eid
from tests.property.test_coalesce import DISK_SECTORS, Row, rows
from tests.property.test_unreadable import batches_of, expected, named, sectors_of

_DISK_B = DISK_SECTORS * SECTOR

Log = list[tuple[list[Row], list[Range]]]
on_disks = named.map(lambda rs: [(disk, first, min(n, DISK_SECTORS - first)) for disk, first, n in rs])
batch = st.tuples(st.lists(rows, max_size=2), on_disks)
more = st.lists(batch, min_size=1, max_size=4)


class _Killed(Exception):
    """The process ends here. Its request may land, now or later."""


class _Blob:
    """The record's, as storage has it. `killing`: the next change is one that its owner does not live to see."""

    def __init__(self) -> None:
        self.of_older_version: list[Range] | None = None
        self.data: bytes | None = None
        self.version = 0
        self.older: list[bytes | None] = [None]
        self.killing = False
        self.late: list[tuple[int | None, bytes]] = []
        """(the version that it changes, or None: it creates it)"""

    def put(self, data: bytes | None) -> None:
        self.older.append(self.data)
        self.data, self.version = data, self.version + 1

    def land(self) -> None:
        version, data = self.late.pop()
        if version == (self.version if self.data is not None else None):
            self.put(data)

    async def read_versioned(self, name: str) -> tuple[bytes, str] | None:
        if name == older_record(eid(1)):
            named = self.of_older_version
            return None if named is None else (msgspec.json.encode(named), "")
        assert name == RECORD
        return None if self.data is None else (self.data, str(self.version))

    async def create(self, name: str, data: bytes) -> str:
        self._maybe_killed(None, data)
        if self.data is not None:
            raise BlobExistsError(name)
        self.put(data)
        return str(self.version)

    async def replace(self, name: str, data: bytes, etag: str) -> str:
        self._maybe_killed(int(etag), data)
        if self.data is None:
            raise BlobNotFoundError(name)
        if etag != str(self.version):
            raise PreconditionError(name)
        self.put(data)
        return str(self.version)

    def _maybe_killed(self, version: int | None, data: bytes) -> None:
        if self.killing:
            self.late.append((version, data))
            raise _Killed


class _Disk(msgspec.Struct):
    """As far as it is asked here."""

    state: DiskState
    name: str = "sda"


async def _ours() -> None:
    """The roll says so: an earlier owner does nothing here but what it had under way."""


class _World:
    def __init__(self, log: Log) -> None:
        self.blob = _Blob()
        self.log: Log = []
        self.histories = 0
        self.named: set[tuple[int, int]] = set()
        """In any of them."""
        self.made: list[int] = []
        """In which of them each batch was."""
        self.more(log)
        self.disks = [DiskTarget(n, _DISK_B, cast(Target, _Disk(DiskState(disk_b=_DISK_B)))) for n in (0, 1)]
        self.tampered = self.upgraded = False
        self.restart()

    def restart(self) -> None:
        self.blob.killing = False
        self.record = UnreadableRecord(cast(BlobStore, self.blob), _ours)

    def disk(self, n: int) -> _Disk:
        return cast(_Disk, self.disks[n].target)

    @property
    def states(self) -> list[DiskState]:
        return [disk.target.state for disk in self.disks]

    def digest(self, n: int) -> str:
        return f"{self.made[n - 1]}-{n}" if n else ""

    def interval(self, first: int, end: int) -> Interval:
        part = batches_of(self.log[first:end])
        return Interval(
            Position.of(1, first),
            Position.of(1, end),
            CLAIM,
            self.digest(first),
            self.digest(end),
            coalesce(part),
            0,
            named_in(part),
        )

    def begin_anew(self, behind: Log) -> None:
        """The log is set back to where the disks stand, and goes on otherwise."""
        at = self.states[0].cursor.batch
        self.histories += 1
        del self.log[at:], self.made[at:]
        self.more(behind)

    def more(self, batches: Log) -> None:
        self.log += batches
        self.named |= {
            (n, first + i) for _, ranges in batches for n, first, most in ranges for i in range(most)
        }
        self.made += [self.histories] * len(batches)

    @property
    def of_older_version(self) -> bool:
        return any(not (s.cursor_missing and s.pending_missing) and s.pending.batch for s in self.states)

    @property
    def settled(self) -> bool:
        return all(s.clean and s.cursor == self.states[0].cursor for s in self.states)

    async def step(self, longest: int, kill_at: int, *, older: bool = False) -> None:
        """One interval, by this version or an older one; killed at the nth of the places where it may be."""
        next_ = due(self.states, eid(1))
        first = next_.start.batch
        last = next_.limit.batch if next_.limit else len(self.log)
        end = next_.end.batch if next_.end else min(first + longest, last)
        if end == first:
            return
        interval = self.interval(first, end)
        if older:
            named = [range_ for _, ranges in self.log[first:end] for range_ in ranges]
            if named:
                self.blob.of_older_version = [*(self.blob.of_older_version or []), *named]
            missing = {}
        else:
            self.blob.killing = kill_at == 0
            missing = await self.record.note(interval, self.disks, next_.members)
        for place, i in enumerate((*next_.members, *next_.members)):
            if place + 1 == kill_at:
                raise _Killed
            disk = self.disk(i)
            if place < len(next_.members):
                disk.state = disk.state.begin(interval.on(self.disks[i], missing.get(i, "")))
                if older:  # it writes its own keys alone
                    disk.state = msgspec.structs.replace(disk.state, cursor_missing="", pending_missing="")
            else:
                disk.state = disk.state.finish()

    async def check(self) -> None:
        at = self.states[0].cursor.batch
        if not (self.settled and at):
            return
        found, true = await self.record.at(self.disks), expected(self.log[:at])
        assert sectors_of(found) >= true
        if not found.covers:
            assert sectors_of(found) == true
            assert self.record.problem is None
        if not self.tampered:
            assert self.record.problem is None
            assert sectors_of(found) <= self.named
            assert self.upgraded or not found.covers


acts = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 4), st.integers(-2, 5)),
    st.tuples(st.just("step"), st.integers(1, 2), st.integers(-1, 1)),
    st.tuples(st.just("fail"), st.integers(1, 4)),
    st.tuples(st.just("older version"), st.integers(1, 4), st.integers(-2, 5)),
    st.tuples(st.sampled_from(["restart", "land", "delete", "damage", "lose disk"])),
    st.tuples(st.just("older"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["set back", "more"]), more),
)


async def _act(world: _World, act: Sequence[Any]) -> None:
    blob = world.blob
    match act:
        case ["step", longest, kill_at]:
            try:
                await world.step(longest, kill_at)
            except _Killed:
                world.restart()
            blob.killing = False
        case ["fail", longest]:  # the same owner tries again
            with contextlib.suppress(_Killed):
                await world.step(longest, 0)
            blob.killing = False
        # Of two mishaps at once, a record that is lost and an upgrade that was undone, nothing is said.
        case ["older version", longest, kill_at] if not world.tampered:
            world.upgraded = True
            with contextlib.suppress(_Killed):
                await world.step(longest, kill_at, older=True)
            world.restart()
        case ["delete" | "older", *_] if world.of_older_version:
            pass
        case ["restart"]:
            world.restart()
        case ["land"] if blob.late:
            blob.land()
        case ["delete"]:
            blob.put(None)
            world.tampered = True
        case ["damage"]:
            blob.put(b'{"states":[],"x":1}')
            world.tampered = True
        case ["older", n] if n < len(blob.older):
            blob.put(blob.older[n])
            world.tampered = True
        case ["lose disk"]:
            world.disk(0).state = DiskState(disk_b=_DISK_B)
        case ["set back", behind] if world.settled:
            world.begin_anew(behind)
        case ["more", behind]:
            world.more(behind)
        case _:
            pass


def _row(first: int, sectors: int) -> tuple[list[Row], list[Range]]:
    return [(0, first, sectors, Op.ZERO)], []


_NAMED: tuple[list[Row], list[Range]] = ([], [(0, 0, 8)])


@given(more, st.lists(acts, max_size=14))
# Killed behind the note: what is missing at the cursor is needed again.
@example([_NAMED, _row(0, 4)], [("step", 1, -1), ("step", 1, 1)])
# A change of the owner before lands when the next one has come to need what it drops.
@example(
    [_NAMED, _row(0, 4), _row(4, 2), _NAMED],
    [("step", 1, -1), ("step", 1, -1), ("step", 1, 0), ("step", 2, -1), ("land",), ("restart",)],
)
# So does his creation of the record, which this owner never came to need.
@example([_NAMED, _row(0, 8)], [("step", 1, 0), ("restart",), ("step", 2, -1), ("land",), ("restart",)])
# Noted, and killed; then the log goes on otherwise.
@example([_NAMED, _row(0, 8)], [("step", 1, -1), ("step", 1, 1), ("set back", [_row(8, 8)])])
# Upgraded; and upgraded, undone, and upgraded again.
@example([_NAMED, _row(0, 4)], [("older version", 1, -1), ("step", 1, 1), ("step", 1, -1)])
@example([_NAMED, _row(8, 4), _NAMED], [("step", 1, -1), ("older version", 1, -1), ("step", 1, 2)])
# What this version had noted by then cannot be read any more.
@example([_NAMED, _row(8, 4)], [("step", 1, -1), ("older version", 1, -1), ("damage",)])
async def test_no_sector_that_is_missing_is_left_out_and_only_who_lost_the_record_names_others(
    log: Log, acts: list[Sequence[Any]]
) -> None:
    world = _World(log)
    for act in acts:
        await _act(world, act)
        await world.check()
    world.restart()
    while not (world.settled and world.states[0].cursor.batch == len(world.log)):
        await world.step(4, -1)
    await world.check()
