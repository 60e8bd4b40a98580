"""The folder that a restore writes: images, journal, manifest. Layout in FORMAT.md beside this file.

The journal is written before the first image and removed after the manifest is durable. So a folder is empty, or holds an unfinished
restore (journal), or a complete one (manifest only). A restore goes on only in an empty folder or in its own unfinished one.

The journal claims only what is durable: images are synced before it is replaced. What was written behind its claim is written again,
which gives the same bytes: see "Why resuming is correct" in materialise.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from shared import durable
from shared.errors import UNDECODABLE, ImageFileError, RestoreFolderError
from shared.recovery.plan import Plan
from shared.recovery.points import Range

JOURNAL: Final = ".understudy-restore.json"
MANIFEST: Final = "manifest.json"


class Journal(msgspec.Struct, kw_only=True):
    machine: str
    id: str
    """The position that is restored."""
    base: str | None
    """Id of the point whose snapshots are the base; None: zeroes."""
    base_done: dict[str, int] = {}
    """Disk name → up to this byte, the base is in its image."""
    replayed: int
    """Every batch up to this one is in the images; as long as the base is not complete, that of the base."""
    unreadable: list[Range] = []
    v: int = 1


class ManifestDisk(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    file: str
    size_b: int
    sha256: str
    serial: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. `unreadable`: source ranges (disk number, sector, sectors) that catch-up could not read; zeroes or
    older data stand there unless the machine wrote them since.
    """

    machine: str
    id: str
    epoch: int
    batch: int
    time: str
    consistency: str
    suspect: bool
    unreadable: tuple[Range, ...]
    disks: tuple[ManifestDisk, ...]
    v: int = 1


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
    """Raises RestoreFolderError when `open_folder` would; changes nothing."""
    with translated(path, "used"):
        if path.exists():
            _check_is_folder(path)
            _unfinished(path, plan)


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
        machine=plan.machine,
        id=str(plan.position),
        base=plan.base.id if plan.base else None,
        replayed=plan.base.batch if plan.base else 0,
        unreadable=list(plan.base.unreadable) if plan.base else [],
    )
    journal = _unfinished(path, plan)
    if journal is None:
        return fresh
    images = [path / f"{disk.name}.raw" for disk in plan.disks]
    progress = journal.base_done or journal.replayed != fresh.replayed
    if journal.base == fresh.base and not (progress and not all(image.exists() for image in images)):
        return journal
    # The base is another one than last time (new snapshots, or the old ones expired), or somebody deleted an image: begin again. No
    # journal may speak of images of the other beginning, so first none speaks of any: no point has the id "".
    durable.replace_file(path / JOURNAL, msgspec.json.encode(msgspec.structs.replace(fresh, base="")))
    for image in images:
        image.unlink(missing_ok=True)
    durable.sync_folder(path)
    return fresh


def _unfinished(path: Path, plan: Plan) -> Journal | None:
    """The journal of this same restore, None in an empty folder. Raises RestoreFolderError for everything else."""
    if not (path / JOURNAL).exists():
        if set(path.iterdir()) - set(_remains(path)):
            raise RestoreFolderError(f"{path} cannot take a restore", cause=_contents(path))
        return None
    journal = _read(path / JOURNAL)
    if (journal.machine, journal.id) != (plan.machine, str(plan.position)):
        raise RestoreFolderError(
            f"{path} cannot take a restore of {plan.machine} at {plan.position}",
            cause=f"it holds an unfinished restore of {journal.machine} at {journal.id}",
            action=f"Go on with that one (--point {journal.id}), or give another folder.",
        )
    return journal


def _contents(path: Path) -> str:
    try:
        done = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, *UNDECODABLE):
        return "it is not empty, and holds no unfinished restore"
    return f"it holds the finished restore of {done.machine} at {done.id}"


def _remains(path: Path) -> list[Path]:
    """What a kill while the journal or the manifest was being replaced left behind (shared/durable.py)."""
    return [found for name in (JOURNAL, MANIFEST) for found in path.glob(f".{name}.*")]


def _read(path: Path) -> Journal:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except UNDECODABLE as exc:
        raise RestoreFolderError(
            f"{path.parent} cannot take a restore",
            cause=f"its journal {path.name} cannot be read: {exc}",
            action="Delete the folder, or give another one.",
        ) from exc


@contextlib.contextmanager
def translated(path: Path, verb: str) -> Iterator[None]:
    """OSError → ImageFileError that names `path`."""
    try:
        yield
    except OSError as exc:
        raise ImageFileError(f"{path} could not be {verb}", cause=str(exc)) from exc
