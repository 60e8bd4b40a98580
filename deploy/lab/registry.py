"""Which lab of this host protects which disks, so that two never protect the same one.

One file per lab in /run, which lives as long as pinned captures do: until the host restarts. A disk is the
same one only if its number and its sequence number are: a loop device that was made anew is another disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from deploy.lab.state import PINS, Lab
from shared import decoding
from shared.errors import UNDECODABLE, UnsuitableDiskError
from shared.host import durable

_FOLDER: Final = Path("/run/understudy/labs")


class _Entry(msgspec.Struct):
    id: str
    folder: str
    disks: list[str]
    """Identities, see `_identity`."""


def check_unprotected(lab: Lab) -> None:
    """Raises UnsuitableDiskError when another lab's capture is attached to one of the disks."""
    wanted = {_identity(disk): disk for disk in lab.settings.disks}
    for path in sorted(_FOLDER.glob("*.json")):
        try:
            entry = decoding.decode(path.read_bytes(), type=_Entry)
        except (OSError, *UNDECODABLE):
            continue  # being written or removed, or of another version: the agent has the last word
        pins = PINS / f"lab-{entry.id}"
        if entry.id == lab.settings.id or not pins.exists():
            continue
        for taken in wanted.keys() & set(entry.disks):
            exists = Path(entry.folder).exists()
            raise UnsuitableDiskError(
                f"{wanted[taken]} cannot be protected",
                cause=f"the lab in {entry.folder} protects it already",
                action=f"End that lab first: understudy lab down --wipe --dir {entry.folder}."
                if exists
                else f"Its folder is gone, its capture is not: remove it with rm -r {pins}.",
            )


def folder_of(lab: Lab) -> Path | None:
    """Where the lab of this id was made or continued last; None when nobody knows."""
    try:
        return Path(decoding.decode(_file(lab).read_bytes(), type=_Entry).folder)
    except (OSError, *UNDECODABLE):
        return None


def register(lab: Lab) -> None:
    _FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
    disks = [_identity(disk) for disk in lab.settings.disks]
    entry = _Entry(lab.settings.id, str(lab.folder), disks)
    durable.replace_file(_file(lab), msgspec.json.encode(entry), durable=False)


def unregister(lab: Lab) -> None:
    _file(lab).unlink(missing_ok=True)


def _file(lab: Lab) -> Path:
    return _FOLDER / f"{lab.settings.id}.json"


def _identity(disk: str) -> str:
    """Device number and sequence number; the path alone for a disk that is not there."""
    try:
        number = Path(disk).stat().st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        return f"{name}#{Path(f'/sys/dev/block/{name}/diskseq').read_text().strip()}"
    except OSError:
        return disk
