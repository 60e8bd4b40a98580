"""`python -m agent --config FILE` runs the daemon; `python -m agent preflight DEV` and `python -m agent detach --config FILE` are tools."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from shared import logging
from shared.errors import UnderstudyError
from shared.service import load_config, run_service


def main(argv: list[str]) -> int:
    if argv[:1] == ["preflight"]:
        from agent import preflight

        return preflight.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m agent", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "detach"], default="run")
    parser.add_argument("--config", type=Path, required=True, help="agent.toml")
    options = parser.parse_args(argv)
    try:
        from agent.config import AgentConfig

        config = load_config(options.config, AgentConfig)
        if options.command == "detach":
            from agent.capture import detach

            detach(config.pin_dir)
            print(f"Capture of {', '.join(config.disks)} is detached; no trace of it is left in the kernel.")
            return 0
    except UnderstudyError as exc:
        print(f"agent: {exc}", file=sys.stderr)
        return exc.exit_code
    from agent.service import run

    logging.configure("agent")
    return asyncio.run(run_service("agent", lambda stop: run(config, stop)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
