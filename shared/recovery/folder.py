"""The folder that a restore writes: images, journal, manifest. Layout in FORMAT.md beside this file.

The journal is written before the first image and removed after the manifest is durable. So a folder is empty, or holds an unfinished
restore (journal), or a complete one (manifest only). A restore goes on only in an empty folder or in its own unfinished one; its own
complete one is its result.

Its own: machine and position do not say which log it was. Two logs have the same machine's name and the same numbers when a name was given
to another machine, or a storage account was begun anew. So the journal has the claim of the epoch, which is random, and its disks.
And one epoch may have had several histories: storage is set back to an older copy, and the log goes on otherwise. So the journal has
the digest of the position's batch, too, which covers all before it. Where the log has another one there now, even a claim that lies in
what both histories share is worth nothing: what was written behind it stays in every sector that the other history does not write.

The journal claims only what is durable: images are synced before it is replaced. What was written behind its claim is written again,
which gives the same bytes: see "Why resuming is correct" in materialise.py. It goes on from the base with which it began (`Journal.base`,
which make_plan prefers), as long as that is there: a newer one may be better for whoever begins, never for whoever has begun. Where its
images are not what they were (gone, or of another length: a copy of the folder that ended early), or the base is another, or the
history, nothing that it claims can be relied upon: then all begins again, and the log says so. A finished restore of another history is
nobody's to remove: it may be all that is left of that one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.batch import SECTOR, Range
from shared.daemon import logging
from shared.errors import UNDECODABLE, ImageFileError, RestoreFolderError
from shared.host import durable
from shared.recovery.plan import Plan
from shared.recovery.points import PointDoc
from shared.recovery.unreadable import Unreadable, as_written

_log = logging.get()

JOURNAL: Final = ".understudy-restore.json"
MANIFEST: Final = "manifest.json"
JOURNAL_VERSION: Final = 2
_LOST_AND_FOUND: Final = "lost+found"
"""A fresh file system has it."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What is restored: the position, and of which log. Two restores of one origin write the same images."""

    machine: str
    id: str
    """The position."""
    claim: str
    """Of its epoch."""
    disks: tuple[tuple[str, int], ...]
    """(name, sectors) of each."""

    @classmethod
    def of(cls, plan: Plan) -> Origin:
        return cls(
            machine=plan.machine,
            id=str(plan.position),
            claim=plan.epoch.claim,
            disks=tuple((disk.name, disk.sectors) for disk in plan.disks),
        )


class Journal(msgspec.Struct, kw_only=True):
    origin: Origin
    digest: str = ""
    """Of the position's batch (hex): of which history of the log it is. Empty: not known."""
    base: PointDoc | None
    """The point whose snapshots are the base; None: zeroes."""
    discarded: bool = False
    """Images of an earlier beginning may still be here: nothing is claimed."""
    base_done: dict[str, int] = {}
    """Disk name → up to this byte, the base is in its image."""
    replayed: int
    """Every batch up to this one is in the images; as long as the base is not complete, that of the base."""
    unreadable: tuple[Range, ...] = ()
    unreadable_covers: bool | msgspec.UnsetType = msgspec.UNSET
    """What is missing behind `replayed`: see Unreadable."""
    v: int = JOURNAL_VERSION

    @property
    def claims(self) -> bool:
        """Whether anything is done already."""
        done = self.base_done or self.replayed != (self.base.batch if self.base else 0)
        return bool(done) and not self.discarded

    @property
    def missing(self) -> Unreadable:
        return as_written(self.unreadable, self.unreadable_covers)

    @missing.setter
    def missing(self, missing: Unreadable) -> None:
        self.unreadable, self.unreadable_covers = missing.ranges, missing.covers


class _Versioned(msgspec.Struct):
    v: int


class ManifestDisk(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    file: str
    size_b: int
    sha256: str
    serial: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. `unreadable`: source ranges (disk number, sector, sectors) that catch-up could not read, and that were not written
    since: zeroes or older data stand there. With `unreadable_covers` they hold all such sectors, and others between.
    """

    machine: str
    id: str
    claim: str
    """Of the epoch: which log it was."""
    digest: str = ""
    """Of the batch: which history of that log it was. Empty: not known."""
    epoch: int
    batch: int
    time: str
    consistency: str
    suspect: bool
    unreadable: tuple[Range, ...]
    unreadable_covers: bool | msgspec.UnsetType = msgspec.UNSET
    disks: tuple[ManifestDisk, ...]
    remarks: tuple[str, ...] = ()
    v: int = 1

    @property
    def missing(self) -> Unreadable:
        return as_written(self.unreadable, self.unreadable_covers)


class RestoreFolder:
    """One restore's folder, locked. Make it with `open_folder`. Methods raise ImageFileError."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self.journal = journal

    def image(self, disk: str) -> Path:
        return self.path / f"{disk}.raw"

    def save(self) -> None:
        """Replace the journal; what it claims must be durable."""
        with translated(self.path, "written to"):
            durable.replace_file(self.path / JOURNAL, msgspec.json.encode(self.journal))

    def complete(self, manifest: Manifest) -> None:
        with translated(self.path, "written to"):
            text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            durable.replace_file(self.path / MANIFEST, text + b"\n", mode=0o644)
            for leftover in _remains(self.path):
                leftover.unlink(missing_ok=True)
            (self.path / JOURNAL).unlink(missing_ok=True)
            durable.sync_folder(self.path)


def check_folder(path: Path, plan: Plan) -> None:
    """Raises RestoreFolderError when `finished` and `open_folder` would; changes nothing."""
    with translated(path, "used"):
        if path.exists():
            _check_is_folder(path)
            if finished(path, plan) is None:
                _unfinished(path, plan)


def begun(path: Path) -> Journal | None:
    """The journal of the restore that is unfinished in this folder, if there is one that can be read."""
    try:
        return _read(path / JOURNAL)
    except (OSError, RestoreFolderError):
        return None  # the restore itself will say what is wrong


def finished(path: Path, plan: Plan) -> Manifest | None:
    """The manifest, when this same restore was finished here, and nothing was written to the images since."""
    if (path / JOURNAL).exists():
        return None
    try:
        done = decoding.decode((path / MANIFEST).read_bytes(), type=Manifest)
        made_ns = (path / MANIFEST).stat().st_mtime_ns
        images = [(path / disk.file).stat() for disk in done.disks]
    except (OSError, *UNDECODABLE):
        return None
    disks = tuple((disk.name, disk.size_b // SECTOR) for disk in done.disks)
    origin = Origin(machine=done.machine, id=done.id, claim=done.claim, disks=disks)
    same = origin == Origin.of(plan) and done.digest == plan.digest
    whole = [disk.size_b for disk in done.disks] == [image.st_size for image in images]
    if same and whole and all(image.st_mtime_ns <= made_ns for image in images):
        return done
    return None


def _check_is_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RestoreFolderError(f"{path} cannot take a restore", cause="it is not a folder")


@contextlib.contextmanager
def open_folder(path: Path, plan: Plan) -> Iterator[RestoreFolder]:
    """Create `path` if need be, lock it, and find out whether to begin or to go on.

    Raises RestoreFolderError for a folder that is in use, or holds anything else than this restore's own beginnings.
    """
    with translated(path, "used"):
        _check_is_folder(path)
        durable.make_folder(path)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with translated(path, "locked"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise RestoreFolderError(
                    f"{path} cannot take a restore", cause="another restore is writing to it"
                ) from exc
            folder = RestoreFolder(path, _begin_or_resume(path, plan))
        folder.save()
        yield folder
    finally:
        os.close(lock)


def _begin_or_resume(path: Path, plan: Plan) -> Journal:
    fresh = Journal(
        origin=Origin.of(plan),
        digest=plan.digest,
        base=plan.base,
        replayed=plan.base.batch if plan.base else 0,
    )
    fresh.missing = plan.base.missing if plan.base else Unreadable()
    journal = _unfinished(path, plan)
    if journal is None:
        return fresh
    changed = _changed(path, plan, journal)
    if not changed:
        return journal
    _log.warning("restore begins again", folder=str(path), point=journal.origin.id, cause=changed)
    # No journal may speak of images of the other beginning, so first none speaks of any.
    fresh.discarded = True
    durable.replace_file(path / JOURNAL, msgspec.json.encode(fresh))
    for disk in plan.disks:
        (path / f"{disk.name}.raw").unlink(missing_ok=True)
    durable.sync_folder(path)
    fresh.discarded = False
    return fresh


def _changed(path: Path, plan: Plan, journal: Journal) -> str:
    """Why nothing that the journal claims can be relied upon; empty when it can."""
    if journal.discarded:
        return "it was interrupted while an earlier beginning was being removed"
    if "" in (journal.digest, plan.digest) and journal.digest != plan.digest:
        return "nothing says whether it began with the history of the log that is there now"
    if journal.digest != plan.digest:
        return f"it began with another history of the log: batch {plan.position.batch} is another now"
    if _snapshots(journal.base) != _snapshots(plan.base):
        return f"it began with the base {_named(journal.base)}; now there is {_named(plan.base)}"
    for disk in plan.disks:
        image = path / f"{disk.name}.raw"
        size_b = image.stat().st_size if image.exists() else None
        if size_b is None and journal.claims:
            return f"{image.name} is gone"
        if size_b not in (None, disk.sectors * SECTOR) and journal.claims:
            return f"{image.name} has {size_b} bytes, and had {disk.sectors * SECTOR}"
    return ""


def _snapshots(base: PointDoc | None) -> tuple[str, dict[str, str]] | None:
    return None if base is None else (base.id, base.snapshots)


def _named(base: PointDoc | None) -> str:
    return "of zeroes" if base is None else f"of point {base.id}"


def _unfinished(path: Path, plan: Plan) -> Journal | None:
    """The journal of this same restore, None in an empty folder. Raises RestoreFolderError for everything else."""
    if not (path / JOURNAL).exists():
        if set(path.iterdir()) - {*_remains(path), path / _LOST_AND_FOUND}:
            raise RestoreFolderError(f"{path} cannot take a restore", cause=_contents(path, plan))
        return None
    journal = _read(path / JOURNAL)
    held, wanted = journal.origin, Origin.of(plan)
    if (held.machine, held.id) != (wanted.machine, wanted.id):
        raise RestoreFolderError(
            f"{path} cannot take a restore of {plan.machine} at {plan.position}",
            cause=f"it holds an unfinished restore of {held.machine} at {held.id}",
            action=f"Go on with that one (--point {held.id}), or give another folder.",
        )
    if held != wanted:
        raise RestoreFolderError(
            f"{path} cannot take a restore of {plan.machine} at {plan.position}",
            cause="it holds an unfinished restore of another log: of a machine that had this name, or another storage account",
            action="Give another folder, or the storage account that the restore began with.",
        )
    return journal


def _contents(path: Path, plan: Plan) -> str:
    try:
        done = decoding.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, *UNDECODABLE):
        return "it is not empty, and holds no unfinished restore"
    held = f"it holds the finished restore of {done.machine} at {done.id}"
    same = (done.machine, done.id, done.claim) == (plan.machine, str(plan.position), plan.epoch.claim)
    if not same or done.digest == plan.digest:
        return held
    if "" in (done.digest, plan.digest):
        return f"{held}, and nothing says whether of the same history of the log"
    return f"{held}, of another history of the log"


def _remains(path: Path) -> list[Path]:
    """What a kill while the journal or the manifest was being replaced left behind (shared/host/durable.py)."""
    return [found for name in (JOURNAL, MANIFEST) for found in path.glob(f".{name}.*")]


def _read(path: Path) -> Journal:
    data = path.read_bytes()
    try:
        version = decoding.decode(data, type=_Versioned).v
        if version != JOURNAL_VERSION:
            raise ValueError(f"version {version}, and this program knows {JOURNAL_VERSION}")
        return decoding.decode(data, type=Journal)
    except UNDECODABLE as exc:
        raise RestoreFolderError(
            f"{path.parent} cannot take a restore",
            cause=f"its journal {path.name} cannot be read: {exc}",
            action="Go on with the version that began it; or delete the folder, or give another one.",
        ) from exc


@contextlib.contextmanager
def translated(path: Path, verb: str) -> Iterator[None]:
    """OSError → ImageFileError that names `path`."""
    try:
        yield
    except OSError as exc:
        raise ImageFileError(f"{path} could not be {verb}", cause=str(exc)) from exc
