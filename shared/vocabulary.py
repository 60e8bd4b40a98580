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
