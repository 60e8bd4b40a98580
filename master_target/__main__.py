"""`python -m master_target --config FILE` runs the daemon; `setup` is a tool."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Final

from master_target.config import MasterTargetConfig
from shared.daemon.log_sink import fill_standard_descriptors
from shared.daemon.service import run_daemon

_TOOLS: Final = """tools:
  python -m master_target setup …    enrol this host, configure and start its master target (--help)
"""


def main(argv: list[str]) -> int:
    fill_standard_descriptors()
    match argv[:1]:
        case ["setup"]:
            from master_target import setup

            return setup.main(argv[1:])
        case _:
            return run_daemon(argv, "master-target", MasterTargetConfig, start, also=_TOOLS)


def start(config: MasterTargetConfig, stop: asyncio.Event) -> Awaitable[None]:
    from master_target.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
