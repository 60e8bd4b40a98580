"""`python -m config_server --config FILE` runs the daemon."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable

from config_server.config import ConfigServerConfig
from shared.service import run_daemon


def start(config: ConfigServerConfig, stop: asyncio.Event) -> Awaitable[None]:
    from config_server.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(run_daemon(sys.argv[1:], "config-server", ConfigServerConfig, start))
