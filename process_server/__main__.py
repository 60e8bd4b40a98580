"""`python -m process_server --config FILE` runs the daemon."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable

from process_server.config import ProcessServerConfig
from shared.service import run_daemon


def start(config: ProcessServerConfig, stop: asyncio.Event) -> Awaitable[None]:
    from process_server.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(run_daemon(sys.argv[1:], "process-server", ProcessServerConfig, start))
