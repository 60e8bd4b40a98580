"""`python -m process_server --config FILE` runs the daemon; `setup` is a tool."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Final

from process_server.config import ProcessServerConfig
from shared.daemon.log_sink import fill_standard_descriptors
from shared.daemon.service import run_daemon

_TOOLS: Final = """tools:
  python -m process_server setup …    enrol this host, configure and start its process server (--help)
"""


def main(argv: list[str]) -> int:
    fill_standard_descriptors()
    match argv[:1]:
        case ["setup"]:
            from process_server import setup

            return setup.main(argv[1:])
        case _:
            return run_daemon(argv, "process-server", ProcessServerConfig, start, also=_TOOLS)


def start(config: ProcessServerConfig, stop: asyncio.Event) -> Awaitable[None]:
    from process_server.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
