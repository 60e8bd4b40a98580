"""The file that says which disk is which: `disks.json` in the agent's state_dir. With it, disks that are configured by path alone keep
their ids wherever they stand; it is written before a disk is captured for the first time, and replaced as a whole.

    {"v": 1, "disks": [{"id": "sdb", "device": "/dev/sdb", "identity": "wwid:naa.5000c500a1b2c3d4", "last": "/dev/sdc"}]}

`device` is the path as configured, `last` where the disk stood when it was attached last. A disk that is configured no more keeps its
line, so that no other disk ever gets its id. Losing the file is an event, and loses the ids of disks that are configured by path alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from agent.capture.binding import Identity, Known, new_id
from shared import decoding, durable
from shared.errors import UNDECODABLE, BindingDamagedError
from shared.log.names import DiskName

NAME: Final = "disks.json"


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A protected disk as configured (`[[disk]]`), or by its path alone."""

    device: Annotated[str, msgspec.Meta(min_length=1)]
    id: DiskName | None = None
    identity: str | None = None
    """As `python -m agent preflight DEVICE` prints it."""


class Bound(msgspec.Struct, frozen=True):
    id: DiskName
    device: str
    identity: str
    last: str = ""


class _Document(msgspec.Struct):
    v: int
    disks: list[Bound]


def read(state_dir: Path) -> list[Bound] | None:
    """None: nothing was bound here before. Raises BindingDamagedError."""
    path = state_dir / NAME
    try:
        document = decoding.decode(path.read_bytes(), type=_Document)
        for bound in document.disks:
            Identity.parse(bound.identity)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as exc:
        raise BindingDamagedError(f"{path} could not be read", cause=str(exc)) from exc
    if document.v != 1:
        raise BindingDamagedError(f"{path} could not be read", cause=f"its format is {document.v}")
    return document.disks


def write(state_dir: Path, disks: Sequence[Bound]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_Document(1, list(disks))), indent=2) + b"\n"
    with durable.named("Which disk is which could not be noted"):
        durable.replace_file(state_dir / NAME, content)


def known(wanted: Wanted, remembered: Sequence[Bound], at: int | None) -> Known | None:
    """The disk as it is bound: by the configuration, else by what is remembered of its id or path. None: it was never seen."""
    if wanted.id is not None:
        before = next((bound for bound in remembered if bound.id == wanted.id), None)
    else:
        before = next((bound for bound in reversed(remembered) if bound.device == wanted.device), None)
    id_ = wanted.id or (before.id if before else None)
    text = wanted.identity or (before.identity if before else None)
    if id_ is None:
        return None
    return Known(id=id_, path=wanted.device, identity=Identity.parse(text) if text else None, at=at)


def fresh(wanted: Wanted, kernel_name: str, taken: Sequence[str], at: int | None) -> Known:
    """A disk that was never seen gets its id."""
    identity = Identity.parse(wanted.identity) if wanted.identity else None
    return Known(id=new_id(kernel_name, taken), path=wanted.device, identity=identity, at=at)
