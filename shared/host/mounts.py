"""A daemon's folder whose file system is not mounted is no folder to begin anew in.

What the daemon had acknowledged, built, or bound disks by would be missing, with nobody to say why, and the disk below would fill. So each
daemon notes beside its certificate, in /etc, where other file systems begin on the way to its folder:

    folders.json    {"v": 1, "folders": {"/srv/cache/understudy": ["/srv/cache"]}}

Another file system is one with another device number than the folder above has; that a unit mounts a folder once more over itself changes
nothing. One that has come since is noted, too. One that is gone is refused, until it is back, or the note is removed: then it was meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.daemon import logging
from shared.errors import UNDECODABLE, NotMountedError, cause_of
from shared.host import durable

_log = logging.get()

NOTE: Final = "folders.json"


class _Note(msgspec.Struct):
    v: int
    folders: dict[str, list[str]]


def check(folder: Path, note: Path, what: str) -> None:
    """Raises NotMountedError, which begins with `what`. A folder that is not there yet is no less checked. A note that cannot be read or
    written is a line in the log, and no reason not to start."""
    folder = folder.absolute()
    noted = _read(note)
    now = file_systems(folder)
    before = noted.get(str(folder), [])
    if gone := [place for place in before if place not in now]:
        raise NotMountedError(
            what,
            cause=f"a file system was mounted at {gone[-1]} when it ran last, and is not now: {folder} would be another folder",
            action=f"Mount it, and it starts. If {folder} is to lie on the disk below from now on: move what it holds there, and delete"
            f" {note}.",
        )
    if now == before:
        return
    try:
        data = msgspec.json.encode(_Note(1, {**noted, str(folder): now}))
        durable.replace_file(note, msgspec.json.format(data, indent=2) + b"\n")
    except OSError as exc:
        _log.warning(
            "it was not noted where file systems begin",
            file=str(note),
            cause=cause_of(exc),
            action=f"Let this daemon write there. Until then it would begin anew in {folder} where that is not mounted.",
        )


def file_systems(folder: Path) -> list[str]:
    """Where other file systems than the root begin on the way to it, the outermost first. Raises OSError but for what is not there."""
    found: list[str] = []
    above = Path("/").stat().st_dev
    for place in [*reversed(folder.parents), folder]:
        try:
            dev = place.stat().st_dev
        except FileNotFoundError:
            break
        if dev != above:
            found.append(str(place))
        above = dev
    return found


def _read(note: Path) -> dict[str, list[str]]:
    try:
        return decoding.decode(note.read_bytes(), type=_Note).folders
    except FileNotFoundError:
        return {}
    except (OSError, *UNDECODABLE) as exc:
        cause = cause_of(exc) if isinstance(exc, OSError) else str(exc)
        _log.warning("where file systems begin was noted, and cannot be read", file=str(note), cause=cause)
        return {}
