"""The one interface of everything that disks are applied to. Implementations: page_blob.py, image_file.py.

A target is owned by whoever opened it, until `close`: page blobs by a lease, image files by a lock. The
order of calls is that of targets/state.py: `begin`, any number of concurrent `write`, `clear` and `read`,
`finish`; `snapshot` only in between. Offsets and lengths are bytes, multiples of 512, within the source
disk's size. Every method raises StorageError (also LeaseLostError, when another owner took over) and
SeedDiskError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from master_target.targets.state import DiskInterval, DiskState
from shared.blob import BlobStore
from shared.errors import UnderstudyError
from shared.recovery.position import Position


class Snapshot(msgspec.Struct, frozen=True):
    """Of the disk named `disk`. `position` is what the snapshot itself names; None when it names none, or was taken in mid-interval."""

    disk: str
    id: str
    position: Position | None
    taken_s: float
    """Unix time by the clock of whoever keeps the snapshot."""


class Target(Protocol):
    @property
    def kind(self) -> str:
        """`page-blob` or `image`, as point documents name it."""
        ...

    @property
    def name(self) -> str:
        """The disk's name."""
        ...

    @property
    def state(self) -> DiskState: ...

    @property
    def problem(self) -> UnderstudyError | None:
        """What was found wrong with it, and is not right again yet. The work goes on."""
        ...

    async def begin(self, interval: DiskInterval) -> None:
        """Record that it is being applied. At the start of an epoch the disk also gets the size for `disk_b`."""

    async def write(self, offset_b: int, data: memoryview) -> None:
        """At most 4 MiB."""

    async def clear(self, offset_b: int, length_b: int) -> None: ...

    async def read(self, offset_b: int, length_b: int) -> bytes: ...

    async def finish(self) -> None:
        """Record that the begun interval is on the disk, durably; its data is durable before."""

    async def snapshot(self) -> str:
        """Freeze the state at the cursor; the snapshot names that position. Raises SeedDiskError in
        mid-interval.
        """
        ...

    async def shows_as_it_is(self, snapshot: str) -> bool:
        """Whether that snapshot of this disk is there, and of the place where the disk stands."""
        ...

    async def snapshots(self) -> list[Snapshot]:
        """Of all disks of the machine in this place: also of those that left the machine, which no target is open for."""
        ...

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        """Harmless when it is gone already. `disk` is any of the machine's."""

    async def close(self) -> None:
        """Give up ownership."""


OpenTarget = Callable[[BlobStore, str, str, int], Awaitable[Target]]
"""(store, machine, disk name, disk size in bytes) → the opened target, taken from whoever had it."""
