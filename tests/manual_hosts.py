"""Hosts of the manual's commands, which run as they stand: each is a folder; in its PATH `systemctl` starts and stops its service as a
process, and `sudo` is left out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.process_server_site import free_port

ROOT: Final = Path(__file__).parents[1]
_SYSTEMCTL: Final = """#!/bin/sh
# systemctl start|stop|restart|disable --now understudy-config-server|haproxy
set -eu
[ "$1 $2" != "disable --now" ] || { shift 2; set -- stop "$@"; }
if [ "$1" != start ] && [ -e pid ]; then
    kill "$(cat pid)" 2>/dev/null || true
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done
fi
[ "$1" != stop ] || exit 0
case "$2" in
    understudy-config-server) "$PYTHON" -m config_server --config "$CONFIG" >>log 2>&1 & ;;
    haproxy) haproxy -db -f haproxy.cfg >>log 2>&1 & ;;
    *) exit 1 ;;
esac
echo $! >pid
until curl --silent --insecure "$SERVER/v1/health" >/dev/null; do
    kill -0 "$(cat pid)" || { cat log >&2; exit 1; }
    sleep 0.1
done
"""
_SUDO: Final = """#!/bin/sh
# sudo -u USER COMMAND…: everybody may everything here
[ "$1" = -u ] && shift 2
exec "$@"
"""


class Host:
    """`config`: the config server's, in its folder."""

    def __init__(self, name: str, folder: Path, config: str = "config-server.toml", port: int = 0) -> None:
        self.name = name
        self.folder = folder
        self.config = config
        self.port = port or free_port()
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for command, script in (("systemctl", _SYSTEMCTL), ("sudo", _SUDO)):
            (programs / command).write_text(script)
            (programs / command).chmod(0o755)

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def run(self, script: str, **env: str) -> str:
        """What it prints."""
        programs = f"{self.folder / 'bin'}:{Path(sys.executable).parent}"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")},
            "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "SERVER": self.server,
            "CONFIG": self.config,
            **env,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"on {self.name}:\n{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def send(self, number: signal.Signals) -> None:
        """To its service."""
        if (pid := self.folder / "pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), number)


def replaced(script: str, names: Mapping[str, str]) -> str:
    """`names`: what stands in the manual → what it is here."""
    for theirs, ours in names.items():
        script = script.replace(theirs, ours)
    return script
