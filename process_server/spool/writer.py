"""The spool's writing end for one epoch of one machine: batches in, durable files out (group commit).

    append ─► sealing, in threads ─► writer: one group of batches at a time, write + fdatasync ─► `spooled`
                                       └─ file full, old, or asked for ─► `on_closed`

Order: batches enter the queue in the order of the `append` calls, each the successor of the one before; the
writer takes them from its head only. Everything that was sealed while one group was being synced makes the
next group, so there is one sync in flight and its cost is shared. After an error nothing behind it is
written: the whole queue is refused, and the next batch that is taken is again the successor of the last
durable one. So `spooled` always stands for a gapless, durable run (I5).
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from process_server.spool.file import SpooledSegment, SpoolFile
from process_server.spool.level import LEVELS
from shared.batch import NO_DIGEST, Batch, Buffer
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.daemon.trouble import Trouble
from shared.errors import BatchGapError, SpoolError, StoppingError, UnderstudyError
from shared.keys import sealing
from shared.keys.sealing import FileKey, MachineKey
from shared.log import segment
from shared.log.epoch_id import EpochId
from shared.log.segment import BatchRow, FileHeader, Frame

_GROUP_B: Final = 64 * 1024 * 1024
_PLAIN_FACTOR: Final = 4
_BATCHES_PER_SALT: Final = 1 << 20
"""Far below the 2^32 messages that may be sealed under one key with random nonces."""

_log = logging.get()


class SegmentLimits(msgspec.Struct, frozen=True):
    """When a file is closed: at this size, at this age, or when its batches, opened, take four times this
    size (readers hold them in memory).
    """

    size_b: int = 32 * 1024 * 1024
    age_s: float = 5.0


class Point(NamedTuple):
    """A batch as a position: number, last seq, digest; and when it was captured (0: not known)."""

    number: int
    seq: int
    digest: bytes
    captured_ns: int

    @classmethod
    def of(cls, row: BatchRow) -> Point:
        return cls(row.number, row.end_seq, bytes.fromhex(row.digest), row.captured_ns)


START: Final = Point(0, 0, NO_DIGEST, 0)
"""Before the first batch."""


class _Pending:
    """A batch on its way to the disk."""

    def __init__(self, batch: Batch, digest: bytes, sealed: asyncio.Future[Frame], salt: bytes) -> None:
        self.point = Point(batch.number, batch.end_seq, digest, batch.captured_ns)
        self.sealed = sealed
        self.salt = salt
        self.durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, error: UnderstudyError | None) -> None:
        if error is None:
            self.durable.set_result(None)
        else:
            self.durable.set_exception(error)
            self.durable.exception()  # that nobody waits any more is no bug


class Compression:
    """How hard batches are compressed from now on: one for all machines (level.py)."""

    def __init__(self) -> None:
        self.level = LEVELS[0]


class SpoolWriter:
    """`append` and `run` it; `stop` ends `run` when all is durable, `fail` refuses everything from now on."""

    def __init__(
        self,
        machine: str,
        epoch: EpochId,
        key: MachineKey,
        folder: Path,
        *,
        spooled: Point,
        limits: SegmentLimits,
        sealers: Executor,
        disk: Executor,
        compression: Compression,
        on_spooled: Callable[[], None],
        on_closed: Callable[[SpooledSegment], None],
    ) -> None:
        self.spooled = spooled
        """The last durable batch."""
        self.accepted = spooled
        """The last batch that was taken."""
        self.trouble: Final = Trouble("cache disk", on_spooled, machine=machine, epoch=epoch)
        """From the first write that failed until one succeeds."""
        self._machine = machine
        self._epoch = epoch
        self._key = key
        self._folder = folder
        self._limits = limits
        self._sealers = sealers
        self._disk = disk
        self._compression = compression
        self._on_spooled = on_spooled
        self._on_closed = on_closed
        self._queue: Final[deque[_Pending]] = deque()
        self._wake: Final = asyncio.Event()
        self._file: SpoolFile | None = None
        self._file_timer: asyncio.TimerHandle | None = None
        self._close_due = False
        self._stopping = False
        self._refusal: UnderstudyError | None = None
        self._salt, self._file_key, self._sealed = b"", FileKey(sealing.new_key()), _BATCHES_PER_SALT
        self._loop = asyncio.get_running_loop()

    # ---- for the log ----

    @property
    def open_b(self) -> int:
        """Bytes in the file that is open."""
        return self._file.draft.size_b if self._file is not None else 0

    async def append(self, encoded: Buffer, batch: Batch, digest: bytes) -> None:
        """Returns when the batch, and all before it, are durable. `encoded` must not change until then.

        BatchGapError if it is not the next one; SpoolFullError or SpoolError if the disk fails: then it was
        not taken.
        """
        if self._refusal is not None:
            raise self._refusal
        if batch.number != self.accepted.number + 1 or batch.predecessor != self.accepted.digest:
            raise BatchGapError(
                f"Batch {batch.number} of {self._machine} is not the next one",
                cause=f"batch {self.accepted.number} is the last one that was taken",
            )
        pending = _Pending(batch, digest, self._seal(encoded, batch, digest), self._salt)
        self.accepted = pending.point
        self._queue.append(pending)
        self._wake.set()
        try:
            await asyncio.shield(pending.durable)
        finally:
            if not pending.sealed.done():  # cancelled, or refused early: the buffer must outlive the sealing
                await asyncio.wait([pending.sealed])

    async def drained(self) -> None:
        """Until every batch that was taken is durable, or refused."""
        while self._queue:
            await asyncio.wait([self._queue[-1].durable])

    def request_close(self) -> None:
        """Close the open file soon, although it is neither full nor old."""
        self._close_due = True
        self._wake.set()

    def fail(self, error: UnderstudyError) -> None:
        """Refuse what waits and what may come."""
        if self._refusal is None:
            self._refusal = error
            self._refuse(error)

    def stop(self) -> None:
        """Take no more; `run` returns when what was taken is durable and the file is closed."""
        self._stopping = True
        self._refusal = StoppingError(f"The log of {self._machine} is being closed")
        self._wake.set()

    async def run(self) -> None:
        try:
            while self._queue or not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._write_group(await self._next_group())
                    if self._close_due or self._is_full():
                        await self._close_file()
                if self._close_due or self._stopping:
                    await self._close_file()
        finally:
            if self._file_timer is not None:
                self._file_timer.cancel()
            if self._file is not None:
                self._file.close()

    # ---- inside ----

    def _seal(self, encoded: Buffer, batch: Batch, digest: bytes) -> asyncio.Future[Frame]:
        if self._sealed >= _BATCHES_PER_SALT:
            self._salt, self._sealed = sealing.new_salt(), 0
            self._file_key = self._key.file_key(self._salt)
        self._sealed += 1
        return self._loop.run_in_executor(
            self._sealers,
            segment.seal_frame,
            self._file_key,
            self._machine,
            self._epoch.claim,
            encoded,
            batch,
            digest,
            self._compression.level,
        )

    async def _next_group(self) -> list[_Pending]:
        """The head of the queue, once it is sealed, and what follows and is sealed as well."""
        head = self._queue[0]
        await asyncio.wait([head.sealed])
        group: list[_Pending] = []
        size_b = 0
        for pending in self._queue:
            if not pending.sealed.done() or pending.salt != head.salt or size_b > _GROUP_B:
                break
            group.append(pending)
            size_b += len(pending.sealed.result().data)
        return group

    async def _write_group(self, group: Sequence[_Pending]) -> None:
        if self._file is not None and self._file.draft.header.salt_bytes != group[0].salt:
            await self._close_file()
        if self._file is None:
            self._file = SpoolFile(self._folder, self._header(group[0]))
        frames = [pending.sealed.result() for pending in group]
        try:
            await in_thread(self._file.append, frames, executor=self._disk)
        except SpoolError as exc:
            self.trouble.report(
                type(exc)(
                    f"Batches of machine {self._machine} cannot be written to the cache disk",
                    cause=exc.cause,
                    action=exc.action,
                )
            )
            self._refuse(exc)
            # A full disk: let go of what can be uploaded. A failed sync: the file must not be written any
            # more.
            await self._close_file()
            return
        self.spooled = group[-1].point
        if self.trouble.error is not None:
            self.trouble.report(None)
        for pending in group:
            # If it was refused meanwhile (the log failed), the queue is empty, and that it is durable does
            # no harm.
            if self._queue and self._queue[0] is pending:
                self._queue.popleft().answer(None)
        if self._file_timer is None:
            self._file_timer = self._loop.call_later(self._limits.age_s, self.request_close)
        self._on_spooled()

    def _header(self, pending: _Pending) -> FileHeader:
        return FileHeader(
            machine=self._machine,
            epoch=self._epoch.number,
            claim=self._epoch.claim,
            first=pending.point.number,
            predecessor=self.spooled.digest.hex(),
            key_id=self._key.key_id,
            wrapped=base64.b64encode(self._key.wrapped).decode(),
            salt=base64.b64encode(pending.salt).decode(),
            created_ns=time.time_ns(),
        )

    def _refuse(self, error: UnderstudyError) -> None:
        """Nothing that waits is written; the next batch to be taken is again the one after the last durable
        one.
        """
        self.accepted = self.spooled
        if self._queue:
            _log.warning(
                "batches refused",
                machine=self._machine,
                epoch=self._epoch.number,
                count=len(self._queue),
                **error.as_dict(),
            )
        while self._queue:
            self._queue.popleft().answer(error)

    def _is_full(self) -> bool:
        if self._file is None:
            return False
        draft, limit_b = self._file.draft, self._limits.size_b
        return draft.size_b >= limit_b or draft.plain_b >= _PLAIN_FACTOR * limit_b

    async def _close_file(self) -> None:
        self._close_due = False
        if self._file_timer is not None:
            self._file_timer.cancel()
            self._file_timer = None
        if self._file is not None:
            spooled = await in_thread(self._file.close, executor=self._disk)
            self._file = None
            if spooled is not None:
                self._on_closed(spooled)
