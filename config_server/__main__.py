"""`python -m config_server --config FILE`: the config server as a daemon."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from config_server.config import ConfigServerConfig
from config_server.service import run
from shared import logging, service
from shared.errors import UnderstudyError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m config_server", description="Understudy's config server."
    )
    parser.add_argument("--config", required=True, type=Path, help="TOML configuration file")
    path = parser.parse_args(argv).config
    try:
        config = service.load_config(path, ConfigServerConfig)
    except UnderstudyError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return exc.exit_code
    logging.configure("config-server", level=config.log_level)
    return asyncio.run(service.run_service("config-server", lambda stop: run(config, stop)))


if __name__ == "__main__":
    sys.exit(main())
