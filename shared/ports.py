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
    command: str
    """Its command line, words parted by blanks."""


def listener_of(port: int) -> Listener | None:
    """None: nobody does, or it cannot be told who (only root sees what others have open)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and wanted.intersection(_links(folder / "fd")):
            return Listener(int(folder.name), _command_of(folder))
    return None


def _command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it is gone
        return ""


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
