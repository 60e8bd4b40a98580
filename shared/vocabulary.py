"""Closed vocabularies that several parts speak: in reports, documents, answers and on the command line. Each is one enum; in JSON a
member is its word. Pure, and imports nothing.

Where a word may come from another version, it is read leniently: a report or a document is never refused for a word that is not known here.
"""

from __future__ import annotations

import enum
from typing import Final


class Role(enum.StrEnum):
    """What a certificate says its bearer is."""

    AGENT = "agent"
    PROCESS_SERVER = "process-server"
    MASTER_TARGET = "master-target"
    CONFIG_SERVER = "config-server"
    STORAGE = "storage"
    """An emulator of blob storage on this site (a lab's Azurite)."""


ENROLLED: Final = tuple(role for role in Role if role is not Role.CONFIG_SERVER)
"""Those that get their certificates with a token; the config server makes its own."""


class Severity(enum.StrEnum):
    """Of a problem, and of an event; the worst is last. A word that is not known here (a report of another version) is read as an error."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Greater is worse."""
        return list(type(self)).index(self)

    @classmethod
    def _missing_(cls, value: object) -> Severity | None:
        return cls.ERROR if isinstance(value, str) else None


class Health(enum.StrEnum):
    """Whether somebody has to do something about a machine or a daemon, best first."""

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"


class CaptureMode(enum.StrEnum):
    """What the capture of a disk can guarantee, strongest first. Reports carry the word; "" where nothing is known."""

    ORDERED = "ordered"
    BITMAP = "bitmap"
    SCAN = "scan"


class MachineState(enum.StrEnum):
    """How protection of a machine stands. An agent reports others, too (`starting`, `stopped`): they are shown as they come."""

    ORDERED = "ordered"
    INITIAL_REPLICATION = "initial-replication"
    BITMAP = "bitmap"
    CATCHING_UP = "catching-up"
    RESYNC = "resync"
    DISCONNECTED = "disconnected"
    """Its agent does not report; capture may well go on."""
    NOT_CONNECTED = "not-connected"
    """Its agent has never reported."""
    UNPROTECTED = "unprotected"
    """Nobody asked for protection."""
    TO_BE_DELETED = "to-be-deleted"
    """Its protection was ended, and when its delay is over all that storage has of it goes."""
    UNKNOWN = "unknown"
    """It could not be judged."""


INITIAL_REPLICATION: Final = "initial replication"
"""Why a machine's first epoch begins, and each later one before which nothing was captured: the agent knows of nothing before it."""


class ApplyState(enum.StrEnum):
    """What a master target does for a machine. In reports it may be another word, of another version."""

    STARTING = "starting"
    FOLLOWING = "following"
    CLAIMED_BY_ANOTHER = "claimed by another master target"
    FAILED = "failed, will try again"
    STOPPED = "stopped"


class HopState(enum.StrEnum):
    """How one hop of the data path does."""

    OK = "ok"
    WAITING = "waiting"
    ERROR = "error"
    UNKNOWN = "unknown"
    """Nothing was reported of it yet."""


class PointState(enum.StrEnum):
    LOGGED = "logged"
    """It restores by replay of the log."""
    SNAPSHOTTED = "snapshotted"
    """All disks have its snapshot, too."""


class Consistency(enum.StrEnum):
    """What a recovery point promises, weakest first. Marks and points carry the word; of one that is not known nothing is promised."""

    CRASH = "crash"
    APP = "app"
