"""Materialising a point: base snapshots, then the log up to the position, into sparse images of exactly the disks' sizes.

Needs the storage account and the vault alone: every server may be dead (I8).

Why resuming is correct. The images go through states that the journal claims only after they were synced.
- Base: ranges are downloaded in ascending order, group by group; the journal claims an offset. Downloading a range again writes the
  same bytes, because a snapshot never changes, and no replay begins before the base is complete.
- Replay: the journal claims a batch. Batches behind it may be in the image in part; all of (claimed, position] is applied again, in
  order. Each sector's final content is that of the last extent that covers it, or what the claimed state has when none does;
  neither depends on what the cut-off try wrote.

Memory: one segment opened while the one before is written, and the runs of at most `_REPLAY_B` payload.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from shared.batch import SECTOR, Batch
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.errors import BlobTooShortError, SnapshotError
from shared.log.epochs import EpochDisk
from shared.log.reader import LogReader
from shared.recovery.coalesce import DiskRuns, coalesce
from shared.recovery.fit import check_extents
from shared.recovery.folder import Manifest, ManifestDisk, RestoreFolder, open_folder
from shared.recovery.parallel import parallel
from shared.recovery.plan import Plan
from shared.recovery.position import format_ns
from shared.recovery.seed import seed_blob
from shared.recovery.sparse import SparseFile
from shared.vault import Vault

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
    """Write `<disk name>.raw` for each disk and manifest.json into `to_dir`, durably; goes on where a killed restore stopped.

    Raises RestoreFolderError, ImageFileError, SnapshotError, LogGapError, LogMisfitError, WrongKeyError and other IntegrityErrors,
    StorageErrors.
    `progress` may be called from other threads.
    """
    reader = LogReader(store, plan.machine)
    for step in plan.replay[:1] + plan.replay[-1:]:  # the wrong vault is found before hours of download
        await reader.check_key(step.entry, vault)
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
    pieces = {disk.name: await _pieces(store, plan, disk) for disk in plan.disks}
    meter = _Meter(progress, "base", sum(p.length_b for group in pieces.values() for p in group))
    for disk in plan.disks:
        blob, snapshot, image = (
            seed_blob(disk.name),
            base.snapshots[disk.name],
            images[disk.number],
        )
        done = folder.journal.base_done.get(disk.name, 0)
        meter.add(sum(p.length_b for p in pieces[disk.name] if p.offset_b < done))

        async def fetch(
            piece: _Piece, blob: str = blob, snapshot: str = snapshot, image: SparseFile = image
        ) -> None:
            try:
                data = memoryview(await store.pages.read(blob, piece.offset_b, piece.length_b, snapshot))
            except BlobTooShortError as exc:
                raise SnapshotError(
                    f"Snapshot {snapshot} of {blob} could not be read", cause="it ends too early"
                ) from exc
            for offset, length in piece.ranges:
                at = offset - piece.offset_b
                await asyncio.to_thread(image.write, offset, data[at : at + length])
            meter.add(piece.length_b)

        for group in _groups([p for p in pieces[disk.name] if p.offset_b >= done]):
            await parallel((partial(fetch, piece) for piece in group), _WIDTH)
            await asyncio.to_thread(image.sync)
            folder.journal.base_done[disk.name] = group[-1].offset_b + group[-1].length_b
            await asyncio.to_thread(folder.save)
            reach("restore.after-base-group")


async def _pieces(store: BlobStore, plan: Plan, disk: EpochDisk) -> list[_Piece]:
    """The written ranges of a disk's base, within the disk, as reads of at most `_READ_B`, ascending."""
    assert plan.base is not None
    ranges = await store.pages.ranges(seed_blob(disk.name), plan.base.snapshots[disk.name])
    size_b = disk.sectors * SECTOR
    pieces: list[_Piece] = []
    members: list[tuple[int, int]] = []
    for offset, length in _cut(ranges, size_b):
        far = members and offset - sum(members[-1]) > _READ_GAP_B
        if members and (far or offset + length - members[0][0] > _READ_B):
            pieces.append(_piece(members))
            members = []
        members.append((offset, length))
    return [*pieces, _piece(members)] if members else pieces


def _cut(ranges: Sequence[tuple[int, int]], size_b: int) -> Iterator[tuple[int, int]]:
    for offset, length in ranges:
        end = min(offset + length, size_b)
        for at in range(offset, end, _READ_B):
            yield at, min(_READ_B, end - at)


def _piece(members: list[tuple[int, int]]) -> _Piece:
    first, last = members[0], members[-1]
    return _Piece(first[0], last[0] + last[1] - first[0], tuple(members))


def _groups(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Consecutive pieces of some `_JOURNAL_B` together."""
    group: list[_Piece] = []
    for piece in pieces:
        group.append(piece)
        if sum(p.length_b for p in group) >= _JOURNAL_B:
            yield group
            group = []
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
        return asyncio.create_task(reader.batches(step.entry, vault, max(step.first, done + 1), step.last))

    following = fetch(0)
    try:
        for i, step in enumerate(steps):
            assert following is not None
            batches, following = await following, fetch(i + 1)
            check_extents(batches, plan.disks)
            for group in by_payload(batches, _REPLAY_B):
                await asyncio.to_thread(_write, group, images)
            await asyncio.to_thread(_sync, images)
            folder.journal.replayed = step.last
            folder.journal.unreadable += [piece for batch in batches for piece in batch.meta.unreadable]
            await asyncio.to_thread(folder.save)
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


def _write(batches: Sequence[Batch], images: Mapping[int, SparseFile]) -> None:
    for number, runs in coalesce(batches).items():
        _write_runs(runs, images[number])


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
    await asyncio.to_thread(_sync, images)
    meter = _Meter(progress, "check", plan.disks_b)
    digests = await asyncio.gather(
        *(asyncio.to_thread(images[disk.number].sha256, meter.add) for disk in plan.disks)
    )
    manifest = Manifest(
        machine=plan.machine,
        id=str(plan.position),
        epoch=plan.position.epoch,
        batch=plan.position.batch,
        time=format_ns(plan.captured_ns),
        consistency=plan.point.consistency if plan.point else "crash",
        suspect=plan.suspect,
        unreadable=tuple(dict.fromkeys(folder.journal.unreadable)),
        disks=tuple(
            ManifestDisk(
                name=disk.name,
                file=folder.image(disk.name).name,
                size_b=disk.sectors * SECTOR,
                sha256=digest,
                serial=disk.serial,
            )
            for disk, digest in zip(plan.disks, digests, strict=True)
        ),
    )
    reach("restore.before-manifest")
    await asyncio.to_thread(folder.complete, manifest)
    return manifest
