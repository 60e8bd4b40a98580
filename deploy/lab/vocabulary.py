"""What a lab consists of. Imports nothing."""

from __future__ import annotations

import enum


class Daemon(enum.StrEnum):
    """Of a lab, in the order in which they are started."""

    CONFIG_SERVER = "config-server"
    AZURITE = "azurite"
    """The lab's own blob storage; a lab over an account elsewhere has none."""
    PROCESS_SERVER = "process-server"
    MASTER_TARGET = "master-target"
    AGENT = "agent"
