"""From closed spool files to listed segments: several uploads at a time, listed in order.

Input: `SpooledSegment`s in the order of their batches. Output: block blobs, index entries, then deleted
files. It blocks on storage only, for as long as it takes: what one try does not bring there goes by a patient store, one
segment at a time. A segment is read for each attempt anew: while storage is away, what waits is in no memory, however long
and however much it is.

Order of things, each step durable before the next: blob (created once, never overwritten) → index entry →
`on_indexed` (`uploaded` advances) → the spool file is deleted. A crash between two of them repeats the
earlier step: a blob that is there already has the name of its term, so it is our own and must have the same
size and digest; an entry that stands already makes the file superfluous at recovery.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from process_server.spool.file import SpooledSegment
from shared.blob import BlobStore, Content, Retry
from shared.crashpoints import reach
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.errors import BlobExistsError, SegmentAlteredError, StorageRefusedError, TransientError
from shared.log import names
from shared.log.index import IndexEntry, entry_for
from shared.log.writer import IndexWriter

_log = logging.get()


class Uploader:
    """Uploads one epoch's segments. `put` them in order; `run` until cancelled.

    `run` raises what ends the epoch's log here: FencedError, StorageForgotError, SpoolLostError,
    IntegrityErrors.
    """

    def __init__(
        self,
        store: BlobStore,
        index: IndexWriter,
        *,
        slots: asyncio.Semaphore,
        ahead: int,
        threads: Executor,
        on_indexed: Callable[[SpooledSegment], None],
        forget: Callable[[Sequence[SpooledSegment]], Awaitable[None]],
    ) -> None:
        """`slots` bounds the quick tries of all machines at a time, `ahead` the uploads of this one.

        Once segments are listed, `on_indexed` is called for each, and then `forget` for all.
        """
        self._store = store
        self._hasty = store.with_retry(Retry(deadline_s=0.0))
        self._patience: Final = asyncio.Lock()
        self._index = index
        self._index_lock: Final = asyncio.Lock()
        self._slots = slots
        self._room: Final = asyncio.Semaphore(ahead)
        self._threads = threads
        self._on_indexed = on_indexed
        self._forget = forget
        self._waiting: Final[asyncio.Queue[SpooledSegment]] = asyncio.Queue()
        self._started: Final[deque[tuple[SpooledSegment, asyncio.Task[IndexEntry]]]] = deque()
        self._any_started: Final = asyncio.Event()

    def put(self, segment: SpooledSegment) -> None:
        self._waiting.put_nowait(segment)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._list_in_order(), name="list segments")
            while True:
                segment = await self._waiting.get()
                await self._room.acquire()
                task = tasks.create_task(self._upload(segment), name=f"upload {segment.path.name}")
                self._started.append((segment, task))
                self._any_started.set()

    async def check(self) -> None:
        """Whether the log is still ours and whole; see IndexWriter.check."""
        async with self._index_lock:
            await self._index.check()

    async def release(self) -> None:
        """See IndexWriter.release."""
        async with self._index_lock:
            await self._index.release()

    async def _upload(self, segment: SpooledSegment) -> IndexEntry:
        """While storage takes nothing, one segment at a time is tried; the others wait on the disk.

        A slot is held for one attempt, which ends by itself. Who waits storage out holds none: a container that is gone keeps
        its machine waiting for days, and eight of those would keep everybody. They are one for each log, and each of their
        attempts takes its turn in the lane of transfers (shared/blob/lanes.py), before it reads its segment.
        """
        if not self._patience.locked():
            try:
                async with self._slots:
                    return await self._upload_to(self._hasty, segment)
            except (TransientError, StorageRefusedError):
                pass  # storage trouble, which the patient store tells of
        async with self._patience:
            return await self._upload_to(self._store, segment)

    async def _upload_to(self, store: BlobStore, segment: SpooledSegment) -> IndexEntry:
        index = self._index
        name = names.segment(index.epoch, index.term, index.taken.claim, segment.first.number)
        entry: IndexEntry | None = None

        async def content() -> Content:
            nonlocal entry
            read = await in_thread(segment.read, executor=self._threads)
            entry = entry_for(
                read.footer,
                blob=name,
                size_b=len(read.data),
                digest=read.digest,
                predecessor=segment.header.predecessor,
                term=index.term,
                written_ns=time.time_ns(),
            )
            reach("upload.before-create")
            return Content(read.data, {"digest": entry.digest})

        started = time.monotonic()
        try:
            await store.create_from(name, content, segment.size_b)
        except BlobExistsError:
            assert entry is not None, "storage was given the content"
            await _check_same(store, entry)
        reach("upload.after-create")
        assert entry is not None
        _log.debug("segment uploaded", blob=name, size_b=entry.bytes, took_s=time.monotonic() - started)
        return entry

    async def _list_in_order(self) -> None:
        while True:
            while not self._started:
                self._any_started.clear()
                await self._any_started.wait()
            await asyncio.wait([self._started[0][1]])
            done: list[tuple[SpooledSegment, IndexEntry]] = []
            while self._started and self._started[0][1].done():
                segment, task = self._started.popleft()
                done.append((segment, task.result()))
            async with self._index_lock:
                await self._index.append([entry for _, entry in done])
            for segment, entry in done:
                self._on_indexed(segment)
                self._room.release()
                _log.debug(
                    "segment listed",
                    machine=self._index.machine,
                    epoch=self._index.epoch,
                    term=entry.term,
                    first=entry.first,
                    last=entry.last,
                    size_b=entry.bytes,
                )
            reach("upload.before-delete")
            await self._forget([segment for segment, _ in done])


async def _check_same(store: BlobStore, entry: IndexEntry) -> None:
    """That the blob of this name is the segment: then it is our own."""
    there = await store.properties(entry.blob)
    if (there.size_b, there.metadata.get("digest")) != (entry.bytes, entry.digest):
        raise SegmentAlteredError(
            f"Segment {entry.blob} could not be written", cause="another blob has its name"
        )
