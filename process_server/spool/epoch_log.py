"""One epoch of one machine's log on this process server: the spool in front, the uploads behind it.

    append ─► SpoolWriter ─► `spooled` ─► (closed file) ─► Uploader ─► `uploaded`

It is opened by recovering the spool folder and taking the next term of the epoch's index, and ends when it
is closed or when it fails: fenced by another owner, storage that forgot, a damaged spool. A failed log
takes nothing more; opening it anew finds out where things stand.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, NamedTuple

import msgspec

from process_server.spool import watermark
from process_server.spool.evidence import sort_files
from process_server.spool.file import SpooledSegment
from process_server.spool.machine_folder import MachineFolder, Recovered
from process_server.spool.ownership import LONGEST_UPLOAD_S, Patience
from process_server.spool.uploader import Uploader
from process_server.spool.watermark import Watermark
from process_server.spool.writer import START, Compression, Point, SegmentLimits, SpoolWriter
from shared.batch import Batch, Buffer
from shared.blob import BlobStore
from shared.daemon import logging
from shared.daemon.threads import in_thread, no_room
from shared.daemon.trouble import Trouble
from shared.errors import (
    NoThreadError,
    SpoolError,
    SpoolLeftoversError,
    UnderstudyError,
    UploadsStoppedError,
    cause_of,
)
from shared.host import durable
from shared.keys.sealing import MachineKey
from shared.keys.vault import Vault, machine_key
from shared.log.epoch_id import EpochId
from shared.log.writer import MAX_BLOCKS, IndexWriter
from shared.machine.storage import MachineStorage

Look = Callable[["EpochLog"], Awaitable[None]]

STALL_S: Final = LONGEST_UPLOAD_S
"""So long nothing may be listed while something waits."""

_log = logging.get()


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    """This process server's name: in the document of a term it says whose the log is."""
    limits: SegmentLimits = SegmentLimits()
    uploads_per_machine: int = 4
    check_seconds: float = 30.0
    """How often the log is checked to be still ours and whole, and how often what waits for another owner."""
    patience: Patience = Patience()
    max_blocks: int = MAX_BLOCKS


class Resources(NamedTuple):
    """What the logs of all machines share."""

    storage: MachineStorage
    vault: Vault
    settings: LogSettings
    sealers: Executor
    disk: Executor
    """Appends and syncs: what acknowledgements wait for."""
    reading: Executor
    """All other work with files."""
    slots: asyncio.Semaphore
    """Uploads at a time."""
    compression: Compression


class EpochLog:
    """Open it with `open`, end it with `close`. `changed` is called whenever a position, `failure` or
    `trouble` changes.
    """

    def __init__(
        self,
        shared: Resources,
        store: BlobStore,
        index: IndexWriter,
        key: MachineKey,
        folder: MachineFolder,
        segments: Sequence[SpooledSegment],
        changed: Callable[[], None],
        look: Look | None = None,
    ) -> None:
        self.machine: Final = index.machine
        self.container: Final = store.container
        self.id: Final = index.id
        self.epoch: Final = index.epoch
        self.taken: Final = index.taken
        """Our term."""
        self.failure: UnderstudyError | None = None
        """Why this log takes no more batches."""
        self._home: Final = folder
        self._folder: Final = folder.epoch(index.epoch)
        self._changed = changed
        self._look = look
        fields = {"machine": index.machine, "epoch": index.epoch}
        self._storage: Final = Trouble("uploads", self._announce, **fields)
        """What storage says while a request is being retried."""
        self._stall: Final = Trouble("upload progress", self._announce, **fields)
        self._progress_at = time.monotonic()
        """When a segment was listed, or the first one began to wait."""
        self._notes: Final = Trouble("spool state", self._announce, **fields)
        self._undeleted: list[SpooledSegment] = []
        """Files that are listed and could not be deleted yet."""
        self._unasked: list[SpooledSegment] = []
        """Those for which there was no thread to delete them."""
        self._deleting: Final = threading.Lock()
        self._deletion: Final = Trouble("deletion of spool files", self._announce, **fields)
        self._moved = asyncio.Event()
        self._check_s = shared.settings.check_seconds
        self._reading = shared.reading
        self._loop: Final = asyncio.get_running_loop()
        fold = index.fold
        captured_ns = fold.entries[-1].last_captured_ns if fold.entries else 0
        self.uploaded = (
            Point(fold.last, fold.end_seq, bytes.fromhex(fold.last_digest), captured_ns)
            if fold.last
            else START
        )
        self._remembered: Watermark | None = None
        """What the folder holds for certain."""
        self._uploading_b = sum(spooled.size_b for spooled in segments)
        self._uploading = len(segments)
        self._ahead: Final = shared.settings.uploads_per_machine
        index.be_patient(self._storage.report)
        self._uploader = Uploader(
            store.patient(self._storage.report),
            index,
            slots=shared.slots,
            ahead=shared.settings.uploads_per_machine,
            threads=shared.reading,
            on_indexed=self._on_indexed,
            forget=self._forget,
        )
        for spooled in segments:
            self._uploader.put(spooled)
        self._writer = SpoolWriter(
            self.machine,
            self.id,
            key,
            self._folder,
            spooled=Point.of(segments[-1].last) if segments else self.uploaded,
            limits=shared.settings.limits,
            sealers=shared.sealers,
            disk=shared.disk,
            compression=shared.compression,
            on_spooled=self._announce,
            on_closed=self._on_closed,
        )
        self._writing: asyncio.Task[None] | None = None
        self._running = asyncio.create_task(self._run(), name=f"log {self.machine}/{self.epoch}")

    @classmethod
    async def open(
        cls,
        shared: Resources,
        folder: MachineFolder,
        epoch: EpochId,
        changed: Callable[[], None],
        opening: BlobStore,
        *,
        look: Look | None = None,
        over: bool = False,
    ) -> EpochLog:
        """Recovers the spool folder, takes the next term, and goes on uploading what is not listed. `epoch` is what storage has under that
        number; `opening` is the machine's store until it is open; `look` is called at each check of the log. Of an epoch that is `over`,
        what was listed and is forgotten is no obstacle: nobody goes on behind it, and what is here decides what can be listed again.

        Raises StorageForgotError (then the epoch cannot go on), SpoolError, WrongKeyError, and
        StorageErrors of the store.
        """
        machine = folder.machine
        key = await machine_key(opening, shared.vault, machine, create=True)
        recovered = await folder.recover(epoch)
        index = await IndexWriter.take(
            opening,
            machine,
            epoch,
            shared.settings.owner,
            known_last=0 if over else _listed_once(recovered, damaged=folder.aside.holds(epoch)),
            max_blocks=shared.settings.max_blocks,
        )
        found = await sort_files(opening, machine, epoch, recovered.runs, index.fold, shared.reading)
        await folder.clear(epoch, found.listed, found.unlisted)
        mark = Watermark(index.term, index.fold.last, epoch.claim, index.taken.claim, opening.container)
        failed = await in_thread(
            watermark.remember, folder.epoch(epoch.number), mark, executor=shared.reading
        )
        log = cls(shared, opening, index, key, folder, found.rest, changed, look)
        log._note_remembered(mark, failed)
        _log.info(
            "log opened",
            machine=machine,
            epoch=epoch.number,
            claim=epoch.claim,
            term=index.term,
            spooled=log.spooled.number,
            uploaded=log.uploaded.number,
            listed=len(found.listed),
            unlisted=len(found.unlisted),
        )
        return log

    async def close(self) -> None:
        """Makes durable what was taken, closes the open file, and stops. What is not uploaded stays in the
        spool.
        """
        self._writer.stop()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._remember()

    async def abandon(self, error: UnderstudyError) -> None:
        """Closes it, and whoever waits for it is told `error`. Nothing of it is to be uploaded any more."""
        self.failure = error
        self._writer.fail(error)
        self._announce()
        await self.close()

    @property
    def trouble(self) -> UnderstudyError | None:
        """Why uploads do not go on just now."""
        return self._storage.error or self._stall.error

    @property
    def cache_troubles(self) -> list[UnderstudyError]:
        """What is wrong with the cache disk just now."""
        found = (self._writer.trouble.error, self._notes.error, self._deletion.error)
        return [error for error in found if error is not None]

    @property
    def spooled(self) -> Point:
        return self._writer.spooled

    @property
    def is_drained(self) -> bool:
        """Whether every batch that was taken is durable, or refused."""
        return self._writer.accepted == self._writer.spooled

    @property
    def pending_b(self) -> int:
        """Bytes in the spool that are not uploaded."""
        return self._uploading_b + self._writer.open_b

    @property
    def waits_for_uplink(self) -> bool:
        """Whether closed segments wait although as many are being uploaded as may be."""
        return self._uploading > self._ahead

    async def append(self, encoded: Buffer, batch: Batch, digest: bytes) -> None:
        """See SpoolWriter.append."""
        await self._writer.append(encoded, batch, digest)

    async def drained(self) -> None:
        """Until every batch that was taken is durable, or refused."""
        await self._writer.drained()

    async def flush(self) -> None:
        """Until everything that was taken before is uploaded. It has no deadline of its own. Raises
        `failure`.
        """
        target = self._writer.accepted.number
        await self._writer.drained()
        target = min(target, self.spooled.number)  # what was refused will not come
        while self.uploaded.number < target:
            if self.failure is not None:
                raise self.failure
            if self._writer.open_b:
                self._writer.request_close()
            await self._moved.wait()

    async def release(self) -> None:
        """Nothing more will come: the index may be deleted from now on."""
        await self._uploader.release()

    # ---- running ----

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._writing = tasks.create_task(
                    self._writer.run(), name=f"spool {self.machine}/{self.epoch}"
                )
                tasks.create_task(self._uploader.run(), name=f"upload {self.machine}/{self.epoch}")
                tasks.create_task(self._check_forever(), name=f"check {self.machine}/{self.epoch}")
                tasks.create_task(self._watch_progress(), name=f"progress {self.machine}/{self.epoch}")
        except BaseExceptionGroup as group:
            self._fail(*_judged(group))

    async def _check_forever(self) -> None:
        while True:
            await asyncio.sleep(self._check_s)
            await self._uploader.check()
            await self._remember()
            if self._undeleted or self._unasked:
                await self._forget([])
            if self._look is not None:
                await self._look(self)

    async def _remember(self) -> None:
        """What was listed; not in the listing loop, since it costs a sync and only makes later checks stricter."""
        mark = Watermark(
            self.taken.number, self.uploaded.number, self.id.claim, self.taken.claim, self.container
        )
        if mark != self._remembered:
            failed: UnderstudyError | None
            try:
                failed = await in_thread(
                    partial(watermark.remember, self._folder, mark, durably=False), executor=self._reading
                )
            except NoThreadError as exc:
                failed = exc
            self._note_remembered(mark, failed)

    def _note_remembered(self, mark: Watermark, failed: UnderstudyError | None) -> None:
        self._remembered = mark if failed is None else None
        self._notes.report(failed)

    async def _watch_progress(self) -> None:
        """A request that hangs reports nothing by itself for minutes."""
        while True:
            await asyncio.sleep(STALL_S / 4)
            silent_s = time.monotonic() - self._progress_at
            if self._uploading_b and silent_s >= STALL_S:
                self._stall.report(
                    UploadsStoppedError(
                        f"Uploads of machine {self.machine} make no progress",
                        cause=f"no segment was listed for more than {STALL_S:.0f} s: storage is slow or does not answer",
                    )
                )
            elif self._stall.error is not None:
                self._stall.report(None)

    def _fail(self, error: UnderstudyError, is_spool_suspect: bool) -> None:
        self.failure = error
        if is_spool_suspect:
            self._home.distrust(self.epoch)
        _log.error(
            "log failed", machine=self.machine, epoch=self.epoch, term=self.taken.number, **error.as_dict()
        )
        self._writer.fail(error)
        self._announce()

    def _on_closed(self, spooled: SpooledSegment) -> None:
        if not self._uploading_b:
            self._progress_at = time.monotonic()
        self._uploading_b += spooled.size_b
        self._uploading += 1
        self._uploader.put(spooled)
        self._announce()

    def _on_indexed(self, spooled: SpooledSegment) -> None:
        self.uploaded = Point.of(spooled.last)
        self._uploading_b -= spooled.size_b
        self._uploading -= 1
        self._progress_at = time.monotonic()
        self._announce()

    async def _forget(self, listed: Sequence[SpooledSegment]) -> None:
        """The segments are listed: their files have done their work. What cannot be deleted is tried again."""
        todo, self._unasked = [*self._unasked, *listed], []
        try:
            await in_thread(self._delete, todo, executor=self._reading)
        except NoThreadError as exc:
            self._unasked = [*todo, *self._unasked]
            self._deletion.report(exc)

    def _delete(self, listed: Sequence[SpooledSegment]) -> None:
        """Runs in a thread."""
        failed: SpoolLeftoversError | None = None
        with self._deleting:
            todo, self._undeleted = [*self._undeleted, *listed], []
            for spooled in todo:
                try:
                    durable.remove_file(spooled.path)
                except OSError as exc:
                    self._undeleted.append(spooled)
                    failed = SpoolLeftoversError(
                        f"Spool files of machine {self.machine} that are in storage cannot be deleted",
                        cause=cause_of(exc),
                    )
        self._loop.call_soon_threadsafe(self._deletion.report, failed)

    def _announce(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        self._changed()


def _listed_once(recovered: Recovered, *, damaged: bool) -> int:
    """The last batch that we know was listed. A file is deleted only once it is listed: so that reaches to the oldest file at least, unless
    a damaged one was set aside.
    """
    oldest = recovered.runs[0][0].first.number if recovered.runs and not damaged else 1
    return max(recovered.known.uploaded, oldest - 1)


def _judged(group: BaseExceptionGroup[BaseException]) -> tuple[UnderstudyError, bool]:
    """What the log failed with, and whether its spool is not to be trusted without a look: after an error of it, and after a bug, whatever
    else failed. The first error of our tree is told, since what follows it may come of it; else a bug, as a SpoolError; else a host without
    room for a thread or memory, which says nothing of the spool."""
    found = [(exc, no_room(exc)) for exc in _leaves(group)]
    ours = [exc for exc, full in found if isinstance(exc, UnderstudyError) and full is None]
    bugs = [exc for exc, full in found if not isinstance(exc, UnderstudyError) and full is None]
    if bugs:
        _log.error("log stopped: this is a bug", exc_info=group)
        ours.append(SpoolError("The log had to stop", cause=repr(bugs[0])))
    error = [*ours, *(full for _, full in found if full is not None)][0]
    return error, any(isinstance(exc, SpoolError) for exc in ours)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
