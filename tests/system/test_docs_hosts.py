"""The commands of the manual that take several hosts, run as they stand, in their order: two config servers on one PostgreSQL, set up,
behind HAProxy, upgraded, backed up and put back."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import pytest

from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.errors import PeerError
from shared.status import AgentReport
from tests.manual_hosts import ROOT, Host, replaced
from tests.postgres import Postgres

PAGE: Final = ROOT / "docs/operations/database.md"
URL: Final = "postgresql://understudy@db1.example.com/understudy"
GOES_ON_S: Final = 12.0
"""So long nobody is answered at most while one of the servers goes, on a host that is busy with other things."""


class Site:
    """Two config servers, and what stands in front of them."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.first = Host("first", folder / "first")
        self.second = Host("second", folder / "second")
        self.balancer = Host("balancer", folder / "balancer")
        self._postgres = postgres
        url = postgres.url("understudy_manual")
        for host in (self.first, self.second):
            (host.folder / "config-server.toml").write_text(
                f'data_dir = "config-server"\nlisten = "127.0.0.1"\nport = {host.port}\nname = "{host.name}"\n[database]\nurl = "{url}"\n'
            )
        self._names: Mapping[str, str] = {
            "/var/lib/understudy/config-server": "config-server",
            "/etc/understudy/config-server.toml": "config-server.toml",
            "/opt/understudy/bin/python": sys.executable,
            "https://config2.example.com": self.second.server,
            "/etc/haproxy/haproxy.cfg": "haproxy.cfg",
            "bind :443": f"bind 127.0.0.1:{self.balancer.port}",
            "config1.example.com:443": f"127.0.0.1:{self.first.port}",
            "config2.example.com:443": f"127.0.0.1:{self.second.port}",
            " parts.tar": " ../parts.tar",
            " understudy.dump": " ../understudy.dump",
            " understudy-ca.tar": " ../understudy-ca.tar",
            URL: url,
            "--owner understudy": f"--owner {postgres.owner}",
            "dropdb understudy": "dropdb understudy_manual",
            "template0 understudy": "template0 understudy_manual",
        }
        """What stands in the manual → what it is here."""

    def run(self, host: Host, script: str) -> str:
        postgres = self._postgres
        return host.run(
            f"PATH=$PATH:{postgres.programs}\n{replaced(script, self._names)}",
            PGHOST=str(postgres.folder),
            PGUSER=postgres.owner,
            UNDERSTUDY_SERVER=host.server,
            UNDERSTUDY_TOKEN_FILE="config-server/operator.token",
            UNDERSTUDY_CA_FILE="config-server/ca.pem",
        )

    def run_block(self, block: str) -> None:
        by_words = {
            "the first host": [self.first],
            "the second host": [self.second],
            "each host": [self.first, self.second],
            "the balancer's host": [self.balancer],
        }
        where = re.match(r"# on ([^,\n]*)", block)
        assert where is not None, f"which host is meant?\n{block}"
        for host in by_words[where[1]]:
            self.run(host, block)

    def end(self) -> None:
        for host in (self.first, self.second, self.balancer):
            host.send(signal.SIGKILL)


class Caller:
    """A daemon that reports through the balancer all the time, by its certificate, and each time by a connection of its own."""

    def __init__(self, site: Site) -> None:
        self._url = site.balancer.server
        token = json.loads(site.run(site.first, "understudy token create agent web2 --output json"))["token"]
        self._files = asyncio.run(enrol.enrol(self._url, token, site.balancer.folder / "agent"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._report()))
        self.answered = 0
        self.failed = 0
        self.longest_s = 0.0
        """Between two answers."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _report(self) -> None:
        client = ControlClient(self._url, self._files)
        answered_s = time.monotonic()
        while not self._stop.is_set():
            try:
                await client.report(AgentReport(machine="web2", state="ordered", epoch=1))
            except PeerError:
                self.failed += 1
            else:
                self.answered += 1
                before_s, answered_s = answered_s, time.monotonic()
                self.longest_s = max(self.longest_s, answered_s - before_s)
            await client.close()
            await asyncio.sleep(0.2)

    def wait_for_answers(self, number: int) -> None:
        """So many more."""
        wanted, until_s = self.answered + number, time.monotonic() + 60
        while self.answered < wanted:
            assert self._thread.is_alive()
            assert time.monotonic() < until_s, f"{self.answered} answers, {self.failed} calls failed"
            time.sleep(0.05)


@pytest.fixture
def site(postgres: Postgres, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, postgres)
    with postgres.admin() as db:
        db.execute("CREATE DATABASE understudy_manual TEMPLATE template0")
    try:
        yield made
    finally:
        made.end()
        with postgres.admin() as db:
            db.execute("DROP DATABASE IF EXISTS understudy_manual WITH (FORCE)")
        shutil.rmtree(tmp_path, ignore_errors=True)


def blocks(title: str) -> list[str]:
    """Of one part of the page."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    [part] = (part for part in parts if part.startswith(f"{title}\n"))
    found: list[str] = re.findall(r"```sh hosts\n(.*?)```", part, re.DOTALL)
    return found


def test_the_commands_for_two_config_servers_work_as_written(site: Site, postgres: Postgres) -> None:
    site.run(site.first, "systemctl start understudy-config-server")
    site.run(site.first, "understudy machine protect web1 --disk /dev/sda --offline --no-wait")
    two = blocks("Two config servers")
    behind = next(n for n, block in enumerate(two, 1) if "haproxy" in block)
    for block in two[:behind]:
        site.run_block(block)
    with Caller(site) as caller:
        caller.wait_for_answers(5)
        site.first.send(signal.SIGSTOP)  # it takes connections, and answers nothing
        caller.wait_for_answers(10)
        failed = caller.failed
        caller.wait_for_answers(20)
        assert caller.failed == failed, "the balancer sends nobody there any more"
        site.first.send(signal.SIGKILL)
        site.run(site.first, "systemctl start understudy-config-server")
        for block in two[behind:]:  # the upgrade: each server is away once more
            site.run_block(block)
        caller.wait_for_answers(5)
    assert caller.longest_s < GOES_ON_S
    for block in blocks("Without what the file has"):
        if "pg_restore" in block:
            with postgres.admin() as db:
                # What the servers left: PostgreSQL learns of their ends a moment later.
                db.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'understudy_manual'"
                )
        site.run_block(block)
    assert "web1" in site.run(
        site.second, "systemctl start understudy-config-server; understudy machine list"
    )
    assert "US638" in site.run(site.first, "understudy event list"), "the job of the act waits for a person"
