"""Names of the blobs of one machine, in its container, and back. Pure. (Which container: shared/machine/storage.py.)

What people put beside our blobs, a copy of one under a name like it above all, is none of ours: only a name that is exactly as we make it
is read back.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from shared.errors import UsageError
from shared.naming import SAYS, is_name

DiskName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!-]{0,127}\Z")]
"""A disk's name is used in blob and file names: no slash (the kernel, too, writes "!" instead), nothing hidden."""

KEY_DOCUMENT: Final = "machine.json"
"""Key id and wrapped key of the machine (shared/keys/vault.py)."""
SIDE_DOCUMENT: Final = "side.json"
"""Which copy of the machine is its active side (shared/machine/active_side.py)."""
DELETION_DOCUMENT: Final = "deletion.json"
"""Which deletion of the machine stands (config_server/storage/deletion_note.py)."""
LOGS: Final = "logs/"
"""The folder of all epochs."""
MASTER: Final = "master"
"""The master target's claim: its lease."""

_EPOCH: Final = re.compile(r"\d{8}", re.ASCII)
_TERM: Final = re.compile(r"logs/\d{8}/term-(\d{8})\.json", re.ASCII)
_INDEX: Final = re.compile(r"logs/\d{8}/index-\d{6}", re.ASCII)
_SEGMENT: Final = re.compile(r"logs/\d{8}/\d{8}-[0-9a-f]*/\d{12}\.seg", re.ASCII)


def check_machine(machine: str) -> str:
    """The name itself. UsageError if it cannot stand in blob and file names."""
    if not is_machine(machine):
        raise UsageError(
            f"{machine!r} is not a machine name",
            cause=SAYS,
            action="Choose another name.",
        )
    return machine


def is_machine(name: str) -> bool:
    """Whether a machine can have this name."""
    return is_name(name)


def epoch_folder(epoch: int) -> str:
    """The folder of one epoch, with its slash."""
    return f"{LOGS}{epoch:08d}/"


def epoch_of(folder: str) -> int | None:
    """The epoch whose folder (without the path, without the slash) this is; None for other folders."""
    return int(folder) if _EPOCH.fullmatch(folder) else None


def epoch_document(epoch: int) -> str:
    return f"{epoch_folder(epoch)}epoch.json"


def term_prefix(epoch: int) -> str:
    return f"{epoch_folder(epoch)}term-"


def term_document(epoch: int, term: int) -> str:
    return f"{term_prefix(epoch)}{term:08d}.json"


def term_of(name: str) -> int | None:
    """The term whose document has this name; None for other blobs."""
    match = _TERM.fullmatch(name)
    return int(match[1]) if match else None


def index(epoch: int, number: int) -> str:
    """The `number`-th (1, 2, 3…) append blob of the epoch's index."""
    return f"{epoch_folder(epoch)}index-{number:06d}"


def is_index(name: str) -> bool:
    """Whether it is the name of a blob of an epoch's index."""
    return _INDEX.fullmatch(name) is not None


def follows_the_first_index(name: str) -> bool:
    """Whether the blob of this name is one that is only made when the epoch's first index blob has been."""
    return is_index(name) or _SEGMENT.fullmatch(name) is not None


def segment(epoch: int, term: int, term_claim: str, first: int) -> str:
    """In the folder of the term that wrote it, which no other term has, also one that was given the same number."""
    return f"{epoch_folder(epoch)}{term:08d}-{term_claim}/{first:012d}.seg"
