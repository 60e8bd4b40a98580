"""Materialising a point: base snapshots, then the log up to the position, into sparse images of exactly the disks' sizes.

Needs the storage account and the vault alone: every server may be dead (I8).

Why resuming is correct. The images go through states that the journal claims only after they were synced.
- Base: ranges are downloaded in ascending order, group by group; the journal claims an offset. Downloading a range again writes the
  same bytes, because a snapshot never changes, and no replay begins before the base is complete.
- Replay: the journal claims a batch. Batches behind it may be in the image in part; all of (claimed, position] is applied again, in
  order. Each sector's final content is that of the last extent that covers it, or what the claimed state has when none does;
  neither depends on what the cut-off try wrote.

A restore that is cancelled waits for its threads (`in_thread`) before the folder's lock goes: else a late one would write into the images,
or the journal, of whoever has the folder then. When the manifest is being written the restore is done, and not cancelled any more.

Memory: one segment opened while the one before is written, and the runs of at most `_REPLAY_B` payload.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from shared.batch import SECTOR, Batch
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.daemon.threads import in_thread
from shared.errors import BlobNotFoundError, BlobTooShortError, SnapshotError
from shared.keys.vault import Vault
from shared.log.epochs import EpochDisk
from shared.log.reader import LogReader
from shared.recovery.coalesce import DiskRuns, coalesce
from shared.recovery.fit import check_extents
from shared.recovery.folder import Manifest, ManifestDisk, RestoreFolder, finished, open_folder
from shared.recovery.parallel import parallel
from shared.recovery.plan import Plan
from shared.recovery.position import format_ns
from shared.recovery.seed import seed_blob
from shared.recovery.sparse import SparseFile
from shared.recovery.unreadable import Unreadable, after, named_in, written_by
from shared.vocabulary import Consistency

_READ_B: Final = 4 * 1024 * 1024
_READ_GAP_B: Final = 128 * 1024
"""Holes up to this length are downloaded too (never written): cheaper than one more request."""
_WIDTH: Final = 8
_JOURNAL_B: Final = 256 * 1024 * 1024
"""At most so much of the base is downloaded again after a kill."""
_REPLAY_B: Final = 64 * 1024 * 1024

Stage = Literal["base", "log", "check"]


class Progress(msgspec.Struct, frozen=True):
    """Of the current stage: downloading the base, replaying the log, computing checksums."""

    stage: Stage
    done_b: int
    total_b: int


class _Meter:
    def __init__(self, report: Callable[[Progress], None], stage: Stage, total_b: int) -> None:
        self._report = report
        self._stage = stage
        self._total_b = total_b
        self._done_b = 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, done_b: int) -> None:
        with self._lock:
            self._done_b += done_b
            self._report(Progress(self._stage, self._done_b, self._total_b))


async def materialise(
    store: BlobStore,
    vault: Vault,
    plan: Plan,
    to_dir: Path,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Write `<disk name>.raw` for each disk and manifest.json into `to_dir`, durably; goes on where a killed restore stopped, and does
    nothing where this one was finished.

    Raises RestoreFolderError, ImageFileError, SnapshotError, LogGapError, LogMisfitError, WrongKeyError and other IntegrityErrors,
    StorageErrors.
    `progress` may be called from other threads.
    """
    if (done := finished(to_dir, plan)) is not None:
        return done
    reader = LogReader(store, plan.machine)
    for step in plan.replay[:1] + plan.replay[-1:]:  # the wrong vault is found before hours of download
        await reader.check_key(plan.epoch, step.entry, vault)
    with open_folder(to_dir, plan) as folder, contextlib.ExitStack() as stack:
        images = {
            disk.number: stack.enter_context(SparseFile(folder.image(disk.name), disk.sectors * SECTOR))
            for disk in plan.disks
        }
        await _download_base(store, plan, folder, images, progress)
        await _replay(reader, vault, plan, folder, images, progress)
        return await _complete(plan, folder, images, progress)


# ---- base ----


class _Piece(msgspec.Struct, frozen=True):
    """A span to read at once, and the written ranges in it; the rest of the span is holes."""

    offset_b: int
    length_b: int
    ranges: tuple[tuple[int, int], ...]


async def _download_base(
    store: BlobStore,
    plan: Plan,
    folder: RestoreFolder,
    images: Mapping[int, SparseFile],
    progress: Callable[[Progress], None],
) -> None:
    base = plan.base
    if base is None:
        return
    ranges = {disk.name: await _ranges(store, disk, base.snapshots[disk.name]) for disk in plan.disks}
    total_b = 0
    for disk in plan.disks:
        total_b += await in_thread(_length_b, ranges[disk.name], disk.sectors * SECTOR)
    meter = _Meter(progress, "base", total_b)
    for disk in plan.disks:
        pieces = partial(_pieces, ranges[disk.name], disk.sectors * SECTOR)
        blob, snapshot, image = (
            seed_blob(disk.name),
            base.snapshots[disk.name],
            images[disk.number],
        )
        done = folder.journal.base_done.get(disk.name, 0)
        meter.add(sum(p.length_b for p in pieces() if p.offset_b < done))

        async def fetch(
            piece: _Piece, blob: str = blob, snapshot: str = snapshot, image: SparseFile = image
        ) -> None:
            try:
                data = memoryview(await store.pages.read(blob, piece.offset_b, piece.length_b, snapshot))
            except BlobTooShortError as exc:
                raise SnapshotError(
                    f"Snapshot {snapshot} of {blob} could not be read", cause="it ends too early"
                ) from exc
            except BlobNotFoundError as exc:
                raise _gone(blob, snapshot) from exc
            for offset, length in piece.ranges:
                at = offset - piece.offset_b
                await in_thread(image.write, offset, data[at : at + length])
            meter.add(piece.length_b)

        for group in _groups(p for p in pieces() if p.offset_b >= done):
            await parallel((partial(fetch, piece) for piece in group), _WIDTH)
            await in_thread(image.sync)
            folder.journal.base_done[disk.name] = group[-1].offset_b + group[-1].length_b
            await in_thread(folder.save)
            reach("restore.after-base-group")


Ranges = npt.NDArray[np.int64]
"""One row (offset, length) a range, ascending: a fragmented disk has millions of them, and a row takes 16 bytes."""


async def _ranges(store: BlobStore, disk: EpochDisk, snapshot: str) -> Ranges:
    """The written ranges of a disk's base."""
    blob = seed_blob(disk.name)
    try:
        return np.array(await store.pages.ranges(blob, snapshot), np.int64).reshape(-1, 2)
    except BlobNotFoundError as exc:
        raise _gone(blob, snapshot) from exc


def _gone(blob: str, snapshot: str) -> SnapshotError:
    return SnapshotError(
        f"Snapshot {snapshot} of {blob} could not be read",
        cause="it was deleted meanwhile: its point has expired",
        action="Run the same command again: the restore begins again from another base.",
    )


def _length_b(ranges: Ranges, size_b: int) -> int:
    return sum(piece.length_b for piece in _pieces(ranges, size_b))


def _pieces(ranges: Ranges, size_b: int) -> Iterator[_Piece]:
    """The ranges, within the disk, as reads of at most `_READ_B`, ascending."""
    members: list[tuple[int, int]] = []
    for offset, length in _cut(ranges, size_b):
        far = members and offset - sum(members[-1]) > _READ_GAP_B
        if members and (far or offset + length - members[0][0] > _READ_B):
            yield _piece(members)
            members = []
        members.append((offset, length))
    if members:
        yield _piece(members)


def _cut(ranges: Ranges, size_b: int) -> Iterator[tuple[int, int]]:
    for offset, length in map(np.ndarray.tolist, ranges):
        end = min(offset + length, size_b)
        for at in range(offset, end, _READ_B):
            yield at, min(_READ_B, end - at)


def _piece(members: list[tuple[int, int]]) -> _Piece:
    first, last = members[0], members[-1]
    return _Piece(first[0], last[0] + last[1] - first[0], tuple(members))


def _groups(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Consecutive pieces of some `_JOURNAL_B` together, however many: nothing here looks at one of them twice."""
    group: list[_Piece] = []
    length_b = 0
    for piece in pieces:
        group.append(piece)
        length_b += piece.length_b
        if length_b >= _JOURNAL_B:
            yield group
            group, length_b = [], 0
    if group:
        yield group


# ---- log ----


async def _replay(
    reader: LogReader,
    vault: Vault,
    plan: Plan,
    folder: RestoreFolder,
    images: Mapping[int, SparseFile],
    progress: Callable[[Progress], None],
) -> None:
    if not plan.replay:
        return
    meter = _Meter(progress, "log", plan.log_b)
    done = folder.journal.replayed
    meter.add(sum(s.entry.bytes for s in plan.replay if s.last <= done))
    steps = [s for s in plan.replay if s.last > done]

    def fetch(i: int) -> asyncio.Task[list[Batch]] | None:
        if i >= len(steps):
            return None
        step = steps[i]
        return asyncio.create_task(
            reader.batches(plan.epoch, step.entry, vault, max(step.first, done + 1), step.last)
        )

    following = fetch(0)
    try:
        for i, step in enumerate(steps):
            assert following is not None
            batches, following = await following, fetch(i + 1)
            check_extents(batches, plan.disks)
            missing = folder.journal.missing
            for group in by_payload(batches, _REPLAY_B):
                missing = await in_thread(_write, group, images, missing)
            await in_thread(_sync, images)
            folder.journal.replayed, folder.journal.missing = step.last, missing
            await in_thread(folder.save)
            meter.add(step.entry.bytes)
            reach("restore.after-segment")
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def by_payload(batches: Sequence[Batch], most_b: int) -> Iterator[list[Batch]]:
    """The batches in order, in groups of at most `most_b` payload bytes, or of one batch."""
    group: list[Batch] = []
    total_b = 0
    for batch in batches:
        if group and total_b + len(batch.payload) > most_b:
            yield group
            group, total_b = [], 0
        group.append(batch)
        total_b += len(batch.payload)
    if group:
        yield group


def _write(batches: Sequence[Batch], images: Mapping[int, SparseFile], missing: Unreadable) -> Unreadable:
    """Brings the batches to the images; returns what is missing in these then, where `missing` was before."""
    written = coalesce(batches)
    for number, runs in written.items():
        _write_runs(runs, images[number])
    named = named_in(batches)
    return after(missing, written_by(written), named) if missing or named else missing


def _write_runs(runs: DiskRuns, image: SparseFile) -> None:
    for run in runs:
        image.write(run.offset_b, run.data)
    for sector, sectors in runs.clears.tolist():
        image.clear(sector * SECTOR, sectors * SECTOR)
    reach("restore.after-runs")


def _sync(images: Mapping[int, SparseFile]) -> None:
    for image in images.values():
        image.sync()


# ---- manifest ----


async def _complete(
    plan: Plan,
    folder: RestoreFolder,
    images: Mapping[int, SparseFile],
    progress: Callable[[Progress], None],
) -> Manifest:
    await in_thread(_sync, images)
    meter = _Meter(progress, "check", plan.disks_b)
    digests: dict[int, str] = {}

    async def check(number: int) -> None:
        digests[number] = await in_thread(images[number].sha256, meter.add)

    await parallel((partial(check, disk.number) for disk in plan.disks), len(plan.disks))
    manifest = Manifest(
        machine=plan.machine,
        id=str(plan.position),
        claim=plan.epoch.claim,
        digest=plan.digest,
        epoch=plan.position.epoch,
        batch=plan.position.batch,
        time=format_ns(plan.captured_ns),
        consistency=plan.point.consistency if plan.point else Consistency.CRASH,
        suspect=plan.suspect,
        remarks=plan.remarks,
        unreadable=folder.journal.missing.ranges,
        unreadable_covers=folder.journal.missing.covers,
        disks=tuple(
            ManifestDisk(
                name=disk.name,
                file=folder.image(disk.name).name,
                size_b=disk.sectors * SECTOR,
                sha256=digests[disk.number],
                serial=disk.serial,
            )
            for disk in plan.disks
        ),
    )
    reach("restore.before-manifest")
    await _to_the_end(in_thread(folder.complete, manifest))
    return manifest


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """All there is to do is done, and this says so: whoever cancels now is told that it is finished."""
    ending = asyncio.ensure_future(work)
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
    ending.result()  # raises what went wrong, also when somebody cancelled at that moment
