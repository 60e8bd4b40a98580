"""What jobs of one machine would get into each other's way over: of each lane a machine has one job that has not ended. Pure."""

from __future__ import annotations

import enum
from typing import Final


class Lane(enum.StrEnum):
    DATA = "data"
    """Its disks are read anew."""
    LIFE = "life"
    """What it is to be: protected, or not, and which hardware it is."""


class Watch(enum.StrEnum):
    """Kinds of jobs that see whether an operator's act came true. They do nothing to the machine, nor to what lies of it in storage."""

    PROTECT = "protect"
    UNPROTECT = "unprotect"
    REBIND = "rebind"
    DELETE = "delete"


WATCHES: Final = frozenset(Watch)
