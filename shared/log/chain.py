"""Reading the index of an epoch, blob after blob, and going on from where the last reading ended.

An index may be hundreds of megabytes long. It is read in pieces, and a large piece is decoded in a thread: what is in memory, and how
long the event loop is held up, does not depend on its length.

A blob of the chain that is not there has not been made yet, or was lost; who took the one for the other would call an old state the newest.
A further blob is made before the line that leads to it (writer.py): it was lost. The first one is made when the log is taken, before
any segment: it was lost if there is one, or another blob of the index. That costs a listing, only while the first one is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, IndexDamagedError, IndexMissingError, StorageForgotError
from shared.log import names
from shared.log.epoch_id import EpochId
from shared.log.index import Fold, IndexEntry, Line, decode_up_to_damage

_PIECE_B: Final = 1024 * 1024
"""Some 2000 lines, which take 3 MB and 10 ms."""
_INLINE_B: Final = 32 * 1024
"""Up to here a thread costs more than it spares."""


class IndexChain:
    """The index as far as it was read. `fold` says what it means; the next line stands at `size_b` of
    `blob`.
    """

    def __init__(self, store: BlobStore, machine: str, epoch: EpochId) -> None:
        self.store = store
        self.machine = machine
        self.epoch = epoch.number
        self.fold = Fold(machine, epoch)
        self.size_b = 0
        self.lines = 0
        """In the current blob."""
        self.damage: IndexDamagedError | None = None
        """From there on nothing can be read any more."""

    @property
    def blob(self) -> str:
        """The blob of the chain in which the next line will stand."""
        return names.index(self.epoch, self.fold.number)

    async def read_to_end(self) -> None:
        """As `read_on`, for those whom `fold` tells enough."""
        async for _ in self.read_on():
            pass

    async def read_on(self) -> AsyncIterator[list[IndexEntry]]:
        """Reads what was added, piece by piece, and yields the segments in it that count. One small request when nothing was added.

        Raises StorageForgotError; IndexDamagedError, when it has yielded what stands before the damage.
        """
        if self.damage is not None:
            raise self.damage
        while True:
            blob = self.blob
            try:
                size_b = (await self.store.properties(blob)).size_b
            except BlobNotFoundError as exc:
                if self.size_b:
                    raise self.forgot(f"index blob {blob} is gone") from exc
                if not await self._was_there():
                    return  # not made yet
                raise IndexMissingError(
                    f"The log index of machine {self.machine}, epoch {self.epoch} is not whole",
                    cause=f"{blob} is gone, and what is left of the log says that it was there",
                ) from exc
            if size_b < self.size_b:
                raise self.forgot(f"{blob} has {size_b} bytes and had {self.size_b}")
            while self.size_b < size_b:
                data = await self._piece(blob, size_b)
                if len(data) > _INLINE_B:
                    lines, damage = await asyncio.to_thread(decode_up_to_damage, data, blob)
                else:
                    lines, damage = decode_up_to_damage(data, blob)
                counting: list[Line] = []
                try:
                    for line in lines:
                        if self.fold.add(line):
                            counting.append(line)
                except IndexDamagedError as exc:
                    damage = exc
                self.damage = damage
                self.size_b += len(data)
                self.lines += len(lines)
                yield [line for line in counting if isinstance(line, IndexEntry)]
                if damage is not None:
                    raise damage
            if self.blob == blob:
                return
            self.next_blob()

    async def _was_there(self) -> bool:
        """Whether the current blob, which was not there a moment ago, had been."""
        if self.fold.number == 1:
            async for info in self.store.list(names.epoch_folder(self.epoch)):
                if names.follows_the_first_index(info.name):
                    break
            else:
                return False
        try:
            await self.store.properties(self.blob)
        except BlobNotFoundError:
            return True
        return False  # made meanwhile: the next reading sees it

    async def _piece(self, blob: str, end_b: int) -> bytes:
        """What stands in `blob` from `size_b` on: to `end_b`, or whole lines of about a piece's length."""
        most_b = _PIECE_B
        while True:
            length_b = min(most_b, end_b - self.size_b)
            data = await self.store.read(blob, self.size_b, length_b)
            if len(data) < length_b:
                raise self.forgot(f"{blob} has {self.size_b + len(data)} bytes and had {end_b}")
            if self.size_b + length_b == end_b:
                return data  # a line that is not whole is damage
            if whole_b := data.rfind(b"\n") + 1:
                return data[:whole_b]
            most_b *= 2

    def next_blob(self) -> None:
        """The current blob was closed."""
        self.size_b = self.lines = 0

    def forgot(self, cause: str) -> StorageForgotError:
        return StorageForgotError(
            f"Storage lost part of the log of machine {self.machine}, epoch {self.epoch}", cause=cause
        )
