"""Reading the index of an epoch, blob after blob, and going on from where the last reading ended."""

from __future__ import annotations

from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, IndexDamagedError, StorageForgotError
from shared.log import names
from shared.log.index import Fold, decode_lines


class IndexChain:
    """The index as far as it was read. `fold` says what it means; the next line stands at `size_b` of
    `blob`.
    """

    def __init__(self, store: BlobStore, machine: str, epoch: int) -> None:
        self.store = store
        self.machine = machine
        self.epoch = epoch
        self.fold = Fold(f"machine {machine}, epoch {epoch}")
        self.size_b = 0
        self.lines = 0
        """In the current blob."""
        self._damage: IndexDamagedError | None = None

    @property
    def blob(self) -> str:
        """The blob of the chain in which the next line will stand."""
        return names.index(self.machine, self.epoch, self.fold.number)

    async def read_on(self) -> None:
        """Reads what was added. One small request when nothing was. Raises StorageForgotError,
        IndexDamagedError.
        """
        if self._damage is not None:
            raise self._damage
        try:
            await self._read_on()
        except IndexDamagedError as exc:
            self._damage = exc  # the fold stopped in the middle of what was read: it cannot go on from here
            raise

    async def _read_on(self) -> None:
        while True:
            blob = self.blob
            try:
                size_b = (await self.store.properties(blob)).size_b
            except BlobNotFoundError as exc:
                if self.size_b:
                    raise self.forgot(f"index blob {blob} is gone") from exc
                return  # not created yet
            if size_b < self.size_b:
                raise self.forgot(f"{blob} has {size_b} bytes and had {self.size_b}")
            if size_b == self.size_b:
                return
            data = await self.store.read(blob, self.size_b)
            for line in decode_lines(data, blob):
                self.fold.add(line)
            self.size_b += len(data)
            self.lines += data.count(b"\n")
            if self.blob == blob:
                return
            self.next_blob()

    def next_blob(self) -> None:
        """The current blob was closed."""
        self.size_b = self.lines = 0

    def forgot(self, cause: str) -> StorageForgotError:
        return StorageForgotError(
            f"Storage lost part of the log of machine {self.machine}, epoch {self.epoch}", cause=cause
        )
