"""A seed disk as a sparse image file, its state in a small document beside it (state.py): a local vault.

    <folder>/<machine>/<disk>.img                     the disk, exactly as large as its source
    <folder>/<machine>/<disk>.state.json              its state
    <folder>/<machine>/<disk>@<epoch>-<batch>-<n>.img  a snapshot, <n> random; its state beside it, written last
    <folder>/<machine>/.<disk>.lock                   locked (flock) by whoever has the disk

One writer (I7). The lock is of the disk's place, and taken before anything there is looked at: an image that is
removed or replaced while its owner stands still lets nobody else in. The image is locked as well, which is what
older versions locked, and what holds when somebody removes the lock file, too. An owner names the image by its
path, but writes to the one that it opened. So before each state it looks whether they are the same file still:
if so, nobody else has it. If not, nothing is written; and what the state there says, which was of the image
that went, goes as well, unless the lock is not ours any more: then it is another owner's. That holds also of an image
that is out of its place for a moment: nobody can tell what will lie there next. What is left is
somebody who removes lock and image while their owner stands still just between that look and the rename: the
state then says of which file it is, as each does.

A state is believed of the file that it is of, as that was left (image_state.py), and of no other: when the disk is
opened, and by its owner before an interval begins, and before and after a snapshot is copied. What is another file is
begun anew, as where there is no state: the log from the epoch's first batch on is applied to it (US608, until the disk
is where it was), and nothing of what it held stays, not even where the source cannot be read. It is told in the
document that begins it, so no kill keeps it secret. States of older versions say less of the file, or nothing: what
they say is believed once, and what is written then says all.

The kernel has no stray requests: a write has happened when it returns, or never happens; and no method ends,
not even when it is cancelled, while its thread is still at work. Order is made by fsync: `finish` syncs the data,
and the time of the last write, before the state that claims them, and the state is replaced as a whole
(shared/host/durable.py). A power cut in mid-interval is as a crash.

Snapshots are clones (FICLONE: xfs, btrfs) where the file system has them, else sparse copies. One that
cannot be completed is removed at once: it may hold the last of the room. One without state document is one
whose making was cut off by a kill: it shows no position, and goes as an orphan. No name is given twice: who
deletes an orphan, however late, deletes no other snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from master_target.targets import image_state
from master_target.targets.base import Snapshot
from master_target.targets.image_state import ImageFile, ImageState
from master_target.targets.state import DiskInterval, DiskState
from shared import decoding
from shared.crashpoints import reach
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.errors import (
    UNDECODABLE,
    ImageFileError,
    ImageReplacedError,
    LeaseHeldError,
    LeaseLostError,
    SeedDiskError,
)
from shared.host import durable
from shared.recovery.position import NOWHERE, Position
from shared.recovery.seed import shown_position
from shared.recovery.sparse import SparseFile

_log = logging.get()

_FICLONE: Final = 0x40049409
_COPY_B: Final = 4 * 1024 * 1024
_ANYWHERE: Final = Position.of(1, 1)


class ImageTarget:
    """Make it with `open`. See base.Target."""

    kind: Final = "image"

    def __init__(self, path: Path, lock: int, image: SparseFile, state: ImageState) -> None:
        self.name = path.stem
        self._path = path
        self._lock = lock
        self._image = image
        self._state = state
        self._open_files = contextlib.ExitStack()

    @classmethod
    async def open(cls, folder: Path, machine: str, disk: str, disk_b: int) -> ImageTarget:
        """Lock the disk's image; create it, all zeroes, when there is none. Raises LeaseHeldError,
        ImageFileError.
        """
        opened: list[ImageTarget] = []

        def open_() -> None:
            opened.append(cls._open(folder / machine / f"{disk}.img", disk_b))

        try:
            await in_thread(open_)
        except BaseException:
            for (
                target
            ) in opened:  # nobody has it who would close it: its lock would last as long as this process
                await target.close()
            raise
        return opened[0]

    @classmethod
    def _open(cls, path: Path, disk_b: int) -> ImageTarget:
        state_path = path.with_suffix(".state.json")
        with contextlib.ExitStack() as stack:
            with _translated(path, "opened"):
                durable.make_folder(path.parent)
                lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, lock)
                _lock(lock, path)
                # Looked at once: what goes after this look fails to open, and is not made anew under the state that is there.
                size_b = path.stat().st_size if path.exists() else None
                if size_b is None and state_path.exists():
                    # Somebody deleted the image: what the state says is true of nothing any more, and must not be of an empty image.
                    _forget(state_path)
                image = SparseFile(path, disk_b if size_b is None else size_b, create=size_b is None)
                stack.callback(image.close)
                _lock(image.fileno(), path)
            known = image_state.decode(_read_state(state_path), path.name) if state_path.exists() else None
            state = _believed(path, known, disk_b, _file(image))
            target = cls(path, lock, image, state)
            if not state.says_all:
                image.sync(times=True)
                target._record(state.disk)
            target._open_files = stack.pop_all()
            return target

    @property
    def state(self) -> DiskState:
        return self._state.disk

    @property
    def problem(self) -> ImageReplacedError | None:
        lost_at = self._state.lost_at
        return None if lost_at == NOWHERE else ImageReplacedError.of(self._path, str(lost_at))

    async def begin(self, interval: DiskInterval) -> None:
        await in_thread(self._record, self.state.begin(interval))
        if interval.start.batch == 0:
            await in_thread(self._make_room, interval.disk_b)

    async def write(self, offset_b: int, data: memoryview) -> None:
        await in_thread(self._image.write, offset_b, data)

    async def clear(self, offset_b: int, length_b: int) -> None:
        await in_thread(self._image.clear, offset_b, length_b)

    async def read(self, offset_b: int, length_b: int) -> bytes:
        return await in_thread(self._image.read, offset_b, length_b)

    async def finish(self) -> None:
        await in_thread(partial(self._image.sync, times=True))
        await in_thread(self._record, self.state.finish())

    async def snapshot(self) -> str:
        if not self.state.clean:
            raise SeedDiskError(
                f"No snapshot of {self._path} was taken", cause="an interval is being applied to it"
            )
        return await in_thread(self._snapshot)

    async def shows_as_it_is(self, snapshot: str) -> bool:
        path = self._path.with_name(snapshot)
        state_path = path.with_suffix(".state.json")
        if not (path.exists() and state_path.exists()):
            return False
        said = await in_thread(_read_state, state_path)
        known = image_state.decode(said, snapshot)
        return self.state.is_shown_by(said) and not known.differs(_file_at(path), _name(path))

    async def snapshots(self) -> list[Snapshot]:
        return await in_thread(self._snapshots)

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        path = self._path.with_name(snapshot)
        with _translated(path, "deleted"):
            _remove_snapshot(path)

    async def close(self) -> None:
        self._open_files.close()

    def _make_room(self, disk_b: int) -> None:
        """For a full replication. Of what lay there nothing stays, also where the source cannot be read: it may be anybody's."""
        self._image.resize(0)
        self._image.resize(disk_b)

    def _record(self, state: DiskState) -> None:
        self._check_ours()
        is_back = state.clean and state.cursor >= self._state.lost_at
        lost_at = NOWHERE if is_back else self._state.lost_at
        said = ImageState(state, _file(self._image), _name(self._path), lost_at)
        _write_state(self._path.with_suffix(".state.json"), said)
        self._state = said

    def _check_ours(self) -> None:
        """Raises LeaseLostError when what lies there is not the image that was opened, or not as it was left."""
        with _translated(self._path, "looked at"):
            if _is_at(self._image.fileno(), self._path):
                difference = self._state.differs(_file(self._image), _name(self._path))
                if not difference:
                    return
            else:
                difference = (
                    "somebody removed it, or put another file in its place, while it was being written"
                )
                if _is_at(self._lock, _lock_path(self._path)):
                    _forget(self._path.with_suffix(".state.json"))
        raise LeaseLostError(
            f"Disk image {self._path} is not ours any more",
            cause=difference,
            action="Nothing: it is opened anew, and built from the log if its state is gone, or of another file.",
        )

    def _snapshot(self) -> str:
        self._check_ours()
        name = f"{self._path.stem}@{self.state.cursor}-{secrets.token_hex(8)}.img"
        path = self._path.with_name(name)
        try:
            copied = self._copy_to(path)
            self._check_ours()  # as it was when the copy began
            reach("image.before-snapshot-state")
            said = ImageState(self.state, replace(copied, changed_ns=None), _name(path))
            _write_state(path.with_suffix(".state.json"), said)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove_snapshot(path)
            raise
        return name

    def _copy_to(self, path: Path) -> ImageFile:
        with SparseFile(path, self._image.size_b) as copy:
            if not _clone(self._image, copy):
                for start, length in self._image.data_ranges():
                    for at in range(start, start + length, _COPY_B):
                        copy.write(at, self._image.read(at, min(_COPY_B, start + length - at)))
            copy.sync(times=True)
            return _file(copy)

    def _snapshots(self) -> list[Snapshot]:
        found = []
        with _translated(self._path, "listed"):
            for path in sorted(self._path.parent.glob("*@*.img")):
                state = path.with_suffix(".state.json")
                position = shown_position(_read_state(state)) if state.exists() else None
                disk = path.name.split("@", 1)[0]
                found.append(Snapshot(disk, path.name, position, path.stat().st_mtime))
        return found


def _believed(path: Path, known: ImageState | None, disk_b: int, found: ImageFile) -> ImageState:
    """What is true of the image, which is `found`, when its document says `known`. One that does not say all is to be written."""
    if known is None:
        return ImageState(DiskState(disk_b=disk_b), None)
    difference = known.differs(found, _name(path))
    if difference:
        # Where the disk stood, the state of another one does not say: it is told until it stands anywhere.
        is_of_it = known.name in ("", _name(path))
        lost_at = max(known.lost_at, known.disk.cursor) if is_of_it else _ANYWHERE
        error = ImageReplacedError.of(path, str(lost_at))
        _log.warning("disk image is another file", difference=difference, **error.as_dict())
        return ImageState(DiskState(disk_b=disk_b), None, lost_at=lost_at)
    if known.file is None:
        _log.info("disk image taken as it is: its state does not say of which file it is", path=str(path))
    return known


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _file(image: SparseFile) -> ImageFile:
    with _translated(image.path, "looked at"):
        return ImageFile.of(image.fileno())


def _file_at(path: Path) -> ImageFile:
    with _translated(path, "looked at"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return ImageFile.of(fd)
        finally:
            os.close(fd)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.stem}.lock")


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise LeaseHeldError(
            f"Disk image {path} could not be locked", cause="another master target uses it"
        ) from exc


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file is what `path` names."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _forget(state_path: Path) -> None:
    durable.remove_file(state_path)
    with contextlib.suppress(FileNotFoundError):
        durable.sync_folder(state_path.parent)


def _remove_snapshot(path: Path) -> None:
    """The state first: an image without one shows no position."""
    durable.remove_file(path.with_suffix(".state.json"))
    durable.remove_file(path)


def _clone(source: SparseFile, target: SparseFile) -> bool:
    """Whether the file system could make `target` share all blocks of `source`."""
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
            return False
        raise ImageFileError(f"A snapshot of {source.path} could not be made", cause=str(exc)) from exc
    return True


def _read_state(path: Path) -> dict[str, str]:
    try:
        with _translated(path, "read"):
            return decoding.decode(path.read_bytes(), type=dict[str, str])
    except UNDECODABLE as exc:
        raise SeedDiskError(f"The state document {path} could not be read", cause=str(exc)) from exc


def _write_state(path: Path, state: ImageState) -> None:
    with _translated(path, "written"):
        durable.replace_file(path, msgspec.json.encode(state.encode()))


@contextlib.contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    """OSError → ImageFileError that names `path`."""
    try:
        yield
    except OSError as exc:
        raise ImageFileError(f"{path} could not be {verb}", cause=str(exc)) from exc
