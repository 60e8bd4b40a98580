"""Desired state: what a machine's agent is to do, told with every answer of the config server. Pure.

An agent that is told nothing goes on as it did: absence is no opinion. To stop, and to protect fewer disks than before, are acts of an
operator. A row that was lost, a database that was put back from a backup, or a server that knows less than another is none.

Each act gives a machine another *wish*, with the mark of who made it:

    incarnation   of the config server's database: drawn when it is made, and anew whenever it is put back
    number        one more than that of the wish before, across incarnations
    act           random, so that two acts with one number can be told apart

The agent keeps the wish that it goes by on its own disk, and says it with every report. So whoever is asked for the next one sees in the
same exchange whether the agent knows of a later one than he does (`config_server.rules.wishes`): then that is what holds.

*Settings* are no acts: they are what the machine's policy says at the moment, and none of them can lose anything. They are told whole: what
the policy does not say (any more) is the agent's own configuration's again.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from shared.log.names import DiskName

Interval = Annotated[float, msgspec.Meta(ge=1, le=10 * 366 * 86_400)]
"""Seconds, up to ten years."""
_MOST_DISKS: Final = 256
_MOST_SERVERS: Final = 16
_Word = Annotated[str, msgspec.Meta(max_length=64)]


class Verb(enum.StrEnum):
    PROTECT = "protect"
    STOP = "stop"
    OTHER = "other"
    """What a newer version may want. Nobody here makes it, does it, or passes it on: who reads it goes on as before."""

    @classmethod
    def _missing_(cls, value: object) -> Verb | None:
        return cls.OTHER if isinstance(value, str) else None


class WantedDisk(msgspec.Struct, frozen=True):
    """A disk that is to be protected: by its path alone, which is bound to what stands there at first, or with its id."""

    device: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    """The disk's path. A link of `/dev/disk/by-id` leads to the same disk after each boot; one of `/dev/disk/by-path` to whatever is
    plugged into that port."""
    id: DiskName | None = None
    """The disk's name in the installation, and in storage: up to 128 ASCII letters, digits, and `.` `_` `!` `-`. Unless it is set, the
    agent takes the kernel's name at the first start and keeps it. Another id is another disk: it is copied anew."""
    identity: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    """What the disk bears that no other does, as `python -m agent preflight DEVICE` prints it. Unless it is set, the agent takes the
    strongest that the disk has."""


class Mark(msgspec.Struct, frozen=True):
    """Of an act."""

    incarnation: _Word
    number: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    act: _Word


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants of a machine."""

    mark: Mark
    verb: Verb
    disks: Annotated[tuple[WantedDisk, ...], msgspec.Meta(max_length=_MOST_DISKS)] = ()
    """All that are to be protected; empty: those of the agent's configuration."""
    process_servers: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=255)], ...], msgspec.Meta(max_length=_MOST_SERVERS)
    ] = ()
    """`host:port`, the one to be preferred first; empty: that of the agent's configuration."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    point_interval_s: Interval | None = None
    """None: as the agent's own configuration says."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    wish: Wish | None = None
    """None: no opinion."""
    settings: Settings | None = None
    """None: no opinion."""
