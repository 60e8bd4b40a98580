"""The commands of the manual that take several hosts, run as they stand, in their order: two config servers on one PostgreSQL, set up,
upgraded, backed up and put back. Each host is a folder; in its PATH `systemctl` starts and stops its config server as a process, and `sudo`
is left out."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.postgres import Postgres
from tests.process_server_site import free_port

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = "docs/operations/database.md"
URL: Final = "postgresql://understudy@db1.example.com/understudy"
SYSTEMCTL: Final = """#!/bin/sh
# systemctl start|stop understudy-config-server
set -eu
[ "$2" = understudy-config-server ]
if [ "$1" = stop ]; then
    kill "$(cat pid)" 2>/dev/null || exit 0
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.05; done
    exit 0
fi
"$PYTHON" -m config_server --config config-server.toml >>log 2>&1 &
echo $! >pid
until curl --silent --cacert config-server/ca.pem "$SERVER/v1/health" >/dev/null; do
    kill -0 "$(cat pid)" || { cat log >&2; exit 1; }
    sleep 0.1
done
"""
SUDO: Final = """#!/bin/sh
# sudo -u USER COMMAND…: everybody may everything here
[ "$1" = -u ] && shift 2
exec "$@"
"""


class Host:
    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.name = name
        self.folder = folder
        self.port = free_port()
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for command, script in (("systemctl", SYSTEMCTL), ("sudo", SUDO)):
            (programs / command).write_text(script)
            (programs / command).chmod(0o755)
        (folder / "config-server.toml").write_text(
            f'data_dir = "config-server"\nlisten = "127.0.0.1"\nport = {self.port}\nname = "{name}"\n[database]\nurl = "{url}"\n'
        )

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def run(self, script: str, postgres: Postgres) -> str:
        replaced = {
            "/var/lib/understudy/config-server": "config-server",
            "/etc/understudy/config-server.toml": "config-server.toml",
            "/opt/understudy/bin/python": sys.executable,
            "https://config2.example.com": self.server,
            " parts.tar": " ../parts.tar",
            " understudy.dump": " ../understudy.dump",
            " understudy-ca.tar": " ../understudy-ca.tar",
            URL: postgres.url("understudy_manual"),
            "--owner understudy": f"--owner {postgres.owner}",
            "dropdb understudy": "dropdb understudy_manual",
            "template0 understudy": "template0 understudy_manual",
        }
        for theirs, ours in replaced.items():
            script = script.replace(theirs, ours)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")},
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{postgres.programs}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "PGHOST": str(postgres.folder),
            "PGUSER": postgres.owner,
            "SERVER": self.server,
            "UNDERSTUDY_SERVER": self.server,
            "UNDERSTUDY_TOKEN_FILE": "config-server/operator.token",
            "UNDERSTUDY_CA_FILE": "config-server/ca.pem",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"on {self.name}:\n{script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def end(self) -> None:
        if (pid := self.folder / "pid").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def hosts(postgres: Postgres, tmp_path: Path) -> Iterator[list[Host]]:
    made = [Host(name, tmp_path / name, postgres.url("understudy_manual")) for name in ("first", "second")]
    with postgres.admin() as db:
        db.execute("CREATE DATABASE understudy_manual TEMPLATE template0")
    try:
        yield made
    finally:
        for host in made:
            host.end()
        with postgres.admin() as db:
            db.execute("DROP DATABASE IF EXISTS understudy_manual WITH (FORCE)")
        shutil.rmtree(tmp_path, ignore_errors=True)


def blocks() -> list[str]:
    found: list[str] = re.findall(r"```sh hosts\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    return found


def test_the_commands_for_two_config_servers_work_as_written(hosts: list[Host], postgres: Postgres) -> None:
    first, second = hosts
    by_words = {"the first host": [first], "the second host": [second], "each host": hosts}
    first.run("systemctl start understudy-config-server", postgres)
    first.run("understudy machine protect web1 --disk /dev/sda --offline --no-wait", postgres)
    said = ""
    for block in blocks():
        where = re.match(r"# on (the first host|the second host|each host)", block)
        assert where is not None, f"which host is meant?\n{block}"
        if "pg_restore" in block:
            with postgres.admin() as db:
                # What the servers left: PostgreSQL learns of their ends a moment later.
                db.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'understudy_manual'"
                )
        for host in by_words[where[1]]:
            said += host.run(block, postgres)
    assert "web1" in second.run("systemctl start understudy-config-server; understudy machine list", postgres)
    assert "US638" in first.run("understudy event list", postgres), "the job of the act waits for a person"
    assert '"status"' not in said
