"""A machine that moves between two process servers again and again, while either is killed: nothing acknowledged is lost or left behind."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from shared.control import enrol
from shared.host.toml import to_toml
from tests.lab import Lab, lab
from tests.long.copies import agent_config
from tests.long.story import Result, Story, scratch, two_disks

MOVES: Final = 20
RATE_MB: Final = 2
STAY_S: Final = (3, 7)
SETTLE_S: Final = 180
"""How long both servers may take to upload what they hold, once nobody moves any more."""


def moved() -> Result:
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=5, segment_seconds=2, ring_mib=256) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        second = stack.enter_context(SecondServer(site, folder))
        story = stack.enter_context(Story(folder, devices, RATE_MB))
        before = site.machine()
        addresses = [agent_config(site)["process_server"], second.address]
        kills = {"first": 0, "second": 0}
        for move in range(1, MOVES + 1):
            site.stop("agent")
            set_process_server(site, addresses[move % 2])
            site.start("agent")
            time.sleep(random.uniform(*STAY_S))
            if random.random() < 0.5:
                kills["first"] += 1
                site.kill("process-server")
                time.sleep(random.uniform(0, 1))
                site.start("process-server")
            else:
                kills["second"] += 1
                second.kill()
                time.sleep(random.uniform(0, 1))
                second.start()
        ordered_s = site.wait_ordered(180)
        time.sleep(11)
        story.stop()
        newest = site.create_point()["id"]
        story.expect(newest, story.total)
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(
                f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}"
            )
        settled_s = wait_until_nothing_pends(site)
        # What was acknowledged last is in storage now, and needs nobody who acknowledged it.
        site.stop("agent")
        site.kill("process-server")
        second.kill()
        result = story.check_every_point(site, 10)
        if result["newest_prefix"] != story.total:
            raise AssertionError(f"the newest point {newest} is not the newest batch: {result}")
        return {
            "moves": MOVES,
            "killed": kills,
            "ordered_after_s": round(ordered_s, 1),
            "nothing_pending_after_s": round(settled_s, 1),
            **result,
        }


class SecondServer:
    """Another process server of the lab, `ps2`, with a cache and a port of its own; a context manager."""

    def __init__(self, site: Lab, folder: Path) -> None:
        config: dict[str, Any] = tomllib.loads((site.folder / "process-server.toml").read_text())
        token = site.read("token", "create", "process-server", "ps2", "--host", "127.0.0.1")["token"]
        tls = asyncio.run(enrol.enrol(config["control_url"], token, folder / "ps2-tls"))
        # A disk that is not protected: the lab's own cache lies on one already.
        self._folder = site.folder.with_name(f"{site.folder.name}-ps2-{secrets.token_hex(2)}")
        self._folder.mkdir()
        port = int(config["port"]) + 1
        config |= {
            "name": "ps2",
            "port": port,
            "spool_dir": str(self._folder / "spool"),
            "tls": {"cert": str(tls.cert), "key": str(tls.key), "ca": str(tls.ca)},
        }
        self.address = f"127.0.0.1:{port}"
        self._config = self._folder / "process-server.toml"
        self._config.write_text(to_toml(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SecondServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
        subprocess.run(["rm", "-rf", str(self._folder)], check=True)

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "process_server", "--config", str(self._config)],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def set_process_server(site: Lab, address: str) -> None:
    (site.folder / "agent.toml").write_text(to_toml(agent_config(site) | {"process_server": address}))


def wait_until_nothing_pends(site: Lab) -> float:
    """Until both servers report that they hold nothing of the machine; how long that took."""
    began = time.monotonic()
    while True:
        pending = {
            daemon["name"]: daemon["report"]["machines"].get("lab", {}).get("pending_b", 0)
            for daemon in site.read("daemon", "list")
            if daemon["role"] == "process-server" and daemon["connected"]
        }
        if len(pending) == 2 and not any(pending.values()):
            return time.monotonic() - began
        if time.monotonic() - began > SETTLE_S:
            raise AssertionError(f"acknowledged batches are stranded: {pending}")
        time.sleep(1)
