"""Whether a TCP port is free, and if not, who has it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.lab.processes import command_of
from shared.errors import ListenError, cause_of

_LISTENING: Final = "0A"


def check_free(host: str, port: int, wanted_by: str) -> None:
    """Raises ListenError, which names the port and, if it can be found, the process that listens on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that are being closed do not count, listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            owner = _owner(port)
            raise ListenError(
                f"Port {port}, which {wanted_by} needs, is not free",
                cause=f"{owner} listens on it" if owner else cause_of(exc),
                action="Stop that process, or choose other ports with --port-base (ss -ltnp shows all).",
            ) from exc


def _owner(port: int) -> str:
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        if wanted.intersection(_links(folder / "fd")):
            return f"process {folder.name} ({command_of(int(folder.name))[:100]})"
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
