"""`python -m master_target --config FILE` runs the daemon."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from master_target.config import MasterTargetConfig
from shared import logging
from shared.errors import UnderstudyError
from shared.service import load_config, run_service


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m master_target", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="master-target.toml")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, MasterTargetConfig)
    except UnderstudyError as exc:
        print(f"master-target: {exc}", file=sys.stderr)
        return exc.exit_code
    from master_target.service import run  # imports storage clients: not for a wrong command line

    logging.configure("master-target", level=config.log_level)
    return asyncio.run(run_service("master-target", lambda stop: run(config, stop)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
