"""`python -m process_server --config FILE` runs the daemon."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from process_server.config import ProcessServerConfig
from shared import logging
from shared.errors import UnderstudyError
from shared.service import load_config, run_service


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m process_server", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="process-server.toml")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, ProcessServerConfig)
    except UnderstudyError as exc:
        print(f"process-server: {exc}", file=sys.stderr)
        return exc.exit_code
    from process_server.service import run  # imports storage clients: not for a wrong command line

    logging.configure("process-server", level=config.log_level)
    return asyncio.run(run_service("process-server", lambda stop: run(config, stop)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
