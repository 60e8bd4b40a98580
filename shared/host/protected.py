"""Which disks of this host are protected, so that nothing of ours is written to them in bulk.

What a spool, a lab or a restore writes to a protected disk is captured, sent, spooled and written again: at best it is replicated
for nothing, at worst it never ends. Each agent leaves a note in /run (which lives as long as pinned captures: until the host
restarts) when its capture is attached; whoever is about to write a lot asks `check_place`. A note whose capture is gone, or whose
disk has become another one, counts for nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.errors import UNDECODABLE, ProtectedPlaceError
from shared.host import durable
from shared.host.storage_stack import disks_below

_FOLDER: Final = Path("/run/understudy/protected")


class _Note(msgspec.Struct):
    machine: str
    pin_dir: str
    disks: dict[str, int]
    """Kernel name → its number in the order in which the kernel met disks (diskseq): another disk of this name has another."""


def note(machine: str, pin_dir: Path, disks: Sequence[tuple[str, int]]) -> None:
    """The machine's capture is attached to these disks (kernel name, diskseq). Raises OSError."""
    _FOLDER.mkdir(parents=True, exist_ok=True, mode=0o755)
    content = msgspec.json.encode(_Note(machine, str(pin_dir), dict(disks)))
    durable.replace_file(_file(pin_dir), content, mode=0o644, durable=False)


def forget(pin_dir: Path) -> None:
    """Its capture is detached."""
    _file(pin_dir).unlink(missing_ok=True)


def _file(pin_dir: Path) -> Path:
    return _FOLDER / f"{hashlib.sha256(os.fsencode(pin_dir)).hexdigest()[:16]}.json"


def check_place(path: Path, what: str) -> None:
    """Raises ProtectedPlaceError, which begins with `what`, when `path` lies on a disk that an agent of this host protects."""
    notes = [found for file in sorted(_FOLDER.glob("*.json")) if (found := _read(file)) is not None]
    below = disks_below(path) if notes else set()
    for found in notes:
        for disk in sorted(below & found.disks.keys()):
            if _diskseq(disk) == found.disks[disk]:
                raise ProtectedPlaceError(
                    what,
                    cause=f"{path} lies on {disk}, which the agent of machine '{found.machine}' protects on this host: "
                    "what is written there is replicated again",
                )


def _read(file: Path) -> _Note | None:
    try:
        found = decoding.decode(file.read_bytes(), type=_Note)
        Path(found.pin_dir).stat()
    except FileNotFoundError:
        return None  # that capture was detached
    except PermissionError:
        return found  # who may not look into bpffs believes the note
    except (OSError, *UNDECODABLE):
        return None  # of another version
    return found


def _diskseq(name: str) -> int:
    try:
        return int(Path(f"/sys/block/{name.replace('/', '!')}/diskseq").read_text())
    except (OSError, ValueError):
        return 0
