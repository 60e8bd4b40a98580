"""Who listens on a TCP port of this host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"


class Listener(NamedTuple):
    pid: int
    words: tuple[str, ...]
    """Its command line. A word may hold blanks."""
    folder: Path | None = None
    """In which it runs; None: it cannot be told."""

    @property
    def command(self) -> str:
        """For people."""
        return " ".join(self.words)

    def was_given(self, file: Path) -> bool:
        """Whether its command line names that file, by whatever path, alone or behind `--option=`."""
        paths = (word.partition("=")[2] if word.startswith("--") else word for word in self.words)
        return any(
            path and (self.folder or Path("/")).joinpath(path).resolve() == file.resolve() for path in paths
        )


def listener_of(port: int) -> Listener | None:
    """None: nobody does, or it cannot be told who (only root sees what others have open)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and wanted.intersection(_links(folder / "fd")):
            return Listener(int(folder.name), _words_of(folder), _folder_of(folder))
    return None


def _words_of(process: Path) -> tuple[str, ...]:
    try:
        return tuple(map(os.fsdecode, (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")))
    except OSError:  # it is gone
        return ()


def _folder_of(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:  # it is gone, or another user's
        return None


def _links(folder: Path) -> Iterator[str]:
    """What the open files of a process are; those that vanish meanwhile, or are somebody else's, are left out."""
    with contextlib.suppress(OSError):
        for fd in folder.iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(fd)  # noqa: PTH115 - the text, not a path


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found
