"""`python -m agent --config FILE` runs the daemon; `setup`, `preflight DEVICE` and `detach --config FILE` are tools."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

from agent.config import AgentConfig
from shared.daemon.log_sink import fill_standard_descriptors
from shared.daemon.service import load_config, run_daemon
from shared.errors import AgentRunningError, UnderstudyError
from shared.host import protected

_TOOLS: Final = """tools:
  python -m agent setup …                 enrol this machine, configure and start its agent (--help)
  python -m agent preflight DEVICE…       could these disks be protected, and how well? (no side effects)
  python -m agent detach --config FILE    remove every trace of capture from the kernel
"""
_STOP_FIRST: Final = (
    "Stop it first (systemctl stop understudy-agent, or understudy lab stop agent): it would attach again, and replicate "
    "everything anew. --force detaches under it."
)


def main(argv: list[str]) -> int:
    fill_standard_descriptors()
    match argv[:1]:
        case ["preflight"]:
            from agent import preflight

            return preflight.main(argv[1:])
        case ["setup"]:
            from agent import setup

            return setup.main(argv[1:])
        case ["detach"]:
            return detach(argv[1:])
        case _:
            return run_daemon(argv, "agent", AgentConfig, start, also=_TOOLS)


def start(config: AgentConfig, stop: asyncio.Event) -> Awaitable[None]:
    from agent.service import run

    return run(config, stop)


def detach(argv: list[str]) -> int:
    """Removes every trace of capture from the kernel, and proves it. Not under a running agent, which would attach again at once."""
    from agent import lock
    from agent.capture.maps import detach

    parser = argparse.ArgumentParser(prog="python -m agent detach", description="Detach capture.")
    parser.add_argument("--config", type=Path, required=True, help="agent.toml")
    parser.add_argument(
        "--force",
        action="store_true",
        help="detach although an agent runs; it is not stopped, and attaches again: stop it before",
    )
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, AgentConfig)
        try:
            # Where no agent ever ran there may be no room for a lock, and nothing to detach.
            state_dir = config.state_dir if (config.state_dir / lock.NAME).exists() else None
            pin_dir = config.pin_dir if config.pin_dir.parent.is_dir() else None
            with lock.held(state_dir, "Capture was not detached", pin_dir):
                detach(config.pin_dir)
        except AgentRunningError as exc:
            if not options.force:
                raise AgentRunningError(exc.what, cause=exc.cause, action=_STOP_FIRST) from exc
            print(
                f"agent: {exc.cause}. It is not stopped: it notices that capture is gone, attaches again, and replicates "
                "everything anew.",
                file=sys.stderr,
            )
            detach(config.pin_dir)
        protected.forget(config.pin_dir)
    except UnderstudyError as exc:
        print(f"agent: {exc}", file=sys.stderr)
        return exc.exit_code
    print("Capture is detached; no trace of it is left in the kernel.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
