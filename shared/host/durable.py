"""What survives a power cut on a local disk. The only module that renames, and that syncs folders.

A file's bytes are durable after fdatasync of the file; that it exists under its name, after fsync of the
folder. A document is replaced as a whole: written under a temporary name in the same folder, synced,
renamed over the old one, folder synced. So a reader, now or after a crash, finds the old or the new
document, never a mixture.

A file or folder gets the mode that is asked for, whatever the umask, where its file system keeps modes.

All functions block, and raise OSError; callers say what it means, for example with `named`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import StateFileError, UnderstudyError, cause_of

if TYPE_CHECKING:  # numpy takes longer to load than most commands to run
    from shared.batch import Buffer

_IOV_MAX = 512
"""Buffers per writev; Linux takes at most 1024."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NO_NAMELESS: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS, errno.ENOENT})
"""What says that a file system has no files without a name, or that /proc, by which they get one, is not there; ..."""
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{12}")
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""... and that a file has one name there (vfat, exfat)."""


@contextlib.contextmanager
def named(what: str, error: type[UnderstudyError] = StateFileError, *, action: str = "") -> Iterator[None]:
    """An OSError inside the block becomes `error`: what failed, the system's words, and what to do."""
    try:
        yield
    except OSError as exc:
        place = f" ({os.fsdecode(exc.filename)})" if exc.filename else ""
        raise error(what, cause=f"{cause_of(exc)}{place}", action=action) from exc


@contextlib.contextmanager
def collected(failures: list[OSError]) -> Iterator[None]:
    """An OSError inside the block is put there: what hinders one step hinders no other."""
    try:
        yield
    except OSError as exc:
        failures.append(exc)


def sync_folder(folder: Path) -> None:
    """Makes durable which names the folder holds."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Makes the file's bytes and size durable. After an error nothing that was written since the last
    success may be trusted.
    """
    os.fdatasync(fd)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Creates the folder, durably, and its parents with 0755: others may have folders of their own in them."""
    if folder.is_dir():
        return
    make_folder(folder.parent, 0o755)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _set_mode(fd, mode)
        finally:
            os.close(fd)
    sync_folder(folder.parent)


def replace_file(
    path: Path, data: Buffer, *, mode: int = 0o600, durable: bool = True, keep_owner: bool = False
) -> None:
    """Puts `data` under `path`, whole or not at all. Without `durable` the old document may come back after
    a power cut; but its bytes are synced even then, or a file system could make the new name durable before
    them, and leave an empty document.

    `keep_owner`: a file that is there keeps its owner and group, or is not replaced. For what root writes, and a daemon reads.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    with _about(path):
        try:
            owner = _owner(path) if keep_owner else None
            _write_new(temporary, data, mode, owner)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        sync_folder(path.parent)


def create_file(path: Path, data: Buffer, *, mode: int = 0o600) -> None:
    """Puts `data` under `path`, durably, whole or not at all, and under no other name meanwhile: who is killed leaves no second copy of a
    secret. FileExistsError when something is there.

    Where the file system has no files without a name, a temporary one is used (`leftovers`). Where it has no links either (vfat, exfat),
    the file is written in its place: who is killed leaves the beginning of it, which `complete_file` ends.
    """
    with _about(path):
        if not _create_nameless(path, data, mode) and not _create_linked(path, data, mode):
            _create_in_place(path, data, mode)
    sync_folder(path.parent)


def complete_file(path: Path, data: bytes) -> None:
    """Writes the rest of what a `create_file` of this path wrote that was killed; nothing where all of it is there. FileExistsError,
    PermissionError where it is not that: what another user put there, or could have opened before, he reads whatever its mode is later."""
    fd = open_own(path, os.O_RDWR)
    try:
        if not data.startswith(found := os.pread(fd, len(data) + 1, 0)):
            raise FileExistsError(errno.EEXIST, "another file is there", str(path))
        if found != data:
            _check_private(fd, path)
            write_all(fd, [data], 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def open_own(path: Path, flags: int = os.O_RDONLY) -> int:
    """A plain file of this user's, opened: no link, no pipe, nobody else's. Raises PermissionError."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
        return fd
    os.close(fd)
    why = "it belongs to another user" if stat.S_ISREG(found.st_mode) else "it is no plain file"
    raise PermissionError(errno.EPERM, why, str(path))


def _check_private(fd: int, path: Path) -> None:
    """Raises PermissionError for a file that was others' to open, where its file system keeps them away (on a stick all is everybody's)."""
    found = os.fstat(fd)
    if found.st_nlink != 1:
        raise PermissionError(errno.EPERM, "it has a second name", str(path))
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077:
        return
    _set_mode(fd, 0o600)
    if not os.fstat(fd).st_mode & 0o077:
        os.fchmod(fd, mode)
        raise PermissionError(errno.EPERM, f"others could open it: its mode is {mode:04o}", str(path))


def link_file(path: Path, target: Path) -> None:
    """Gives the file a second name, durably. FileExistsError when something has it."""
    target.hardlink_to(path)
    sync_folder(target.parent)


def move_file(path: Path, target: Path) -> None:
    """Gives the file another name on the same file system, durably; after a crash it has one of them, or both.
    FileExistsError when something has the new one.
    """
    link_file(path, target)
    path.unlink()
    sync_folder(path.parent)


def move_folder(path: Path, target: Path) -> None:
    """Gives the folder another name beside its own, durably, at once with all that is in it."""
    path.rename(target)
    sync_folder(target.parent)


def remove_file(path: Path) -> None:
    """Removes it if it is there. Not synced: whoever removes a file can live with its return after a power
    cut.
    """
    path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """What a `replace_file` or `create_file` of this path left that was killed. For who knows that nobody is at it now."""
    for there in path.parent.iterdir():
        if there.name.startswith(f".{path.name}."):
            there.unlink(missing_ok=True)


def all_leftovers(folder: Path) -> list[Path]:
    """What every `replace_file` and `create_file` left that was killed, in a folder in which nobody else has files, and nobody is at it."""
    if not folder.is_dir():
        return []
    return [there for there in sorted(folder.iterdir()) if _TEMPORARY.fullmatch(there.name)]


def leftovers(path: Path, data: bytes | None) -> list[Path]:
    """Where others may have files, too: those that are certainly such ones, by name, owner and content, which is `data` or its beginning.
    None: in a folder in which nobody else has any, whatever they hold."""
    of_ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}")
    named = (there for there in sorted(path.parent.iterdir()) if of_ours.fullmatch(there.name))
    if data is None:
        return [there for there in named if stat.S_ISREG(there.lstat().st_mode)]
    return [there for there in named if _begins(there, data)]


def _begins(path: Path, data: bytes) -> bool:
    """Whether it is a file of this user's with `data`, or its beginning."""
    try:
        fd = open_own(path)
    except OSError:
        return False
    try:
        return data.startswith(os.pread(fd, len(data) + 1, 0))
    finally:
        os.close(fd)


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Writes the buffers one after the other from `offset` on."""
    views = [memoryview(b).cast("B") for b in buffers if len(b)]
    while views:
        written = os.pwritev(fd, views[:_IOV_MAX], offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views[0])
            del views[0]
        if written:
            views[0] = views[0][written:]


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """An OSError names `path`: the temporary name tells nobody anything, and would give the error other words with each try."""
    try:
        yield
    except OSError as exc:
        if exc.filename is not None:
            exc.filename = str(path)
            del exc.filename2
        raise


def _owner(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_uid, found.st_gid


def _create_nameless(path: Path, data: Buffer, mode: int) -> bool:
    """Whether that is possible here."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fd = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode)
        except OSError as exc:
            if exc.errno in _NO_NAMELESS:
                return False
            raise
        try:
            _fill(fd, data, mode)
            os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder)
        except OSError as exc:
            if exc.errno in _NO_NAMELESS | _NO_LINKS:
                return False
            raise
        finally:
            os.close(fd)
    finally:
        os.close(folder)
    return True


def _create_linked(path: Path, data: Buffer, mode: int) -> bool:
    """Whether that is possible here."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _write_new(temporary, data, mode)
        path.hardlink_to(temporary)  # unlike a rename, this fails if the name is taken
    except OSError as exc:
        if exc.errno in _NO_LINKS:
            return False
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, data: Buffer, mode: int) -> None:
    fd = os.open(path, _NEW, mode)
    try:
        _fill(fd, data, mode)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _write_new(path: Path, data: Buffer, mode: int, owner: tuple[int, int] | None = None) -> None:
    fd = os.open(path, _NEW, mode)
    try:
        _fill(fd, data, mode, owner)
    finally:
        os.close(fd)


def _fill(fd: int, data: Buffer, mode: int, owner: tuple[int, int] | None = None) -> None:
    if owner is not None:
        os.fchown(fd, *owner)
    _set_mode(fd, mode)
    write_all(fd, [data], 0)
    os.fsync(fd)


def _set_mode(fd: int, mode: int) -> None:
    """What the umask took. A file system that keeps no modes may refuse."""
    found = stat.S_IMODE(os.fstat(fd).st_mode)
    if found & 0o777 != mode:
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, found & ~0o777 | mode)
