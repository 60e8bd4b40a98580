"""`understudy server recover` in a process of its own, to be killed at a point: the target of a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from config_server.setup import recover_command
from shared import crashpoints


def run(words: list[str], crash_at: str, told: Path) -> None:
    """`told`: where it says what it did."""
    with told.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    if crash_at:
        crashpoints.arm(crash_at)
    sys.exit(recover_command.main(words))
