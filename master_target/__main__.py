"""`python -m master_target --config FILE` runs the daemon."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable

from master_target.config import MasterTargetConfig
from shared.service import run_daemon


def start(config: MasterTargetConfig, stop: asyncio.Event) -> Awaitable[None]:
    from master_target.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(run_daemon(sys.argv[1:], "master-target", MasterTargetConfig, start))
