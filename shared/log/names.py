"""Names of the blobs of a machine's log, and back. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.errors import UsageError
from shared.naming import SAYS, is_name

DiskName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!-]{0,127}\Z")]
"""A disk's name is used in blob and file names: no slash (the kernel, too, writes "!" instead), nothing hidden."""


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


def machine_document(machine: str) -> str:
    return f"machines/{check_machine(machine)}.json"


def side_document(machine: str) -> str:
    return f"sides/{check_machine(machine)}.json"


def machine_logs(machine: str) -> str:
    """The folder of all epochs of a machine, with its slash."""
    return f"logs/{check_machine(machine)}/"


def epoch_folder(machine: str, epoch: int) -> str:
    """The folder of one epoch, with its slash."""
    return f"{machine_logs(machine)}{epoch:08d}/"


def epoch_document(machine: str, epoch: int) -> str:
    return f"{epoch_folder(machine, epoch)}epoch.json"


def term_prefix(machine: str, epoch: int) -> str:
    return f"{epoch_folder(machine, epoch)}term-"


def term_document(machine: str, epoch: int, term: int) -> str:
    return f"{term_prefix(machine, epoch)}{term:08d}.json"


def term_of(name: str) -> int:
    """The term whose document has this name."""
    return int(name.rsplit("term-", 1)[1].removesuffix(".json"))


def index(machine: str, epoch: int, number: int) -> str:
    """The `number`-th (1, 2, 3…) append blob of the epoch's index."""
    return f"{epoch_folder(machine, epoch)}index-{number:06d}"


def segment(machine: str, epoch: int, term: int, first: int) -> str:
    return f"{epoch_folder(machine, epoch)}{term:08d}/{first:012d}.seg"
