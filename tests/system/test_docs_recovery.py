"""The commands of docs/operations/recovering.md, run as they stand: a config server is lost, and begins again on another host, from storage
and the recovery key, and from a backup; a master target, a process of its own, finds it each time. The program is there already: that it
is installed by the page's lines is for `python -m tests.long install`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from shared.blob import BlobConfig
from shared.errors import ServerSupersededError
from tests.manual_hosts import ROOT, Host, replaced
from tests.process_server_site import free_port

PAGE: Final = ROOT / "docs/operations/recovering.md"
CONFIG: Final = "etc/config-server.toml"
INSTALLS: Final = re.compile(
    r"^(?:/usr/bin/python3 -m venv|/opt/understudy/bin/pip install) .*\n", re.MULTILINE
)
FOLLOWS_S: Final = 60.0
INIT: Final = """/opt/understudy/bin/understudy init --host config.example.com \\
    --blob-url https://account.blob.core.windows.net --blob-key-file /root/account.key \\
    --recovery-key /root/recovery.key
"""
START: Final = "systemctl start understudy-config-server"


class Site:
    """Hosts that have the same name, one after the other; what an administrator has kept lies beside them."""

    def __init__(self, folder: Path, blob: BlobConfig) -> None:
        self.folder = folder
        self._blob = blob
        self._port = free_port()
        self._hosts: list[Host] = []
        self._blocks = dict(
            re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        )
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def kept(self) -> Path:
        return self.folder / "recovery.key"

    def host(self, name: str) -> Host:
        made = Host(name, self.folder / name, CONFIG, self._port)
        self._hosts.append(made)
        return made

    def run(self, host: Host, script: str) -> str:
        here = f"--etc {host.folder}/etc --state {host.folder}/state --listen 127.0.0.1 --port {self._port}"
        blob = f"--blob-url {self._blob.url} --blob-container {self._blob.container} --blob-ca-file {self._blob.ca_file}"
        names = {
            "/opt/understudy/bin/python ": f"{sys.executable} ",
            "/opt/understudy/bin/understudy init ": f"understudy init {here} ",
            "/opt/understudy/bin/understudy server recover ": f"understudy server recover {here} ",
            "/opt/understudy/bin/": "",
            "--host config.example.com": "--host 127.0.0.1",
            "--blob-url https://account.blob.core.windows.net": blob,
            "/root/account.key": str(self._blob.account_key_file),
            "/root/recovery.key": str(self.kept),
            "/root/understudy.tar": str(self.folder / "understudy.tar"),
            "/var/backups/understudy.tar": str(self.folder / "understudy.tar"),
            "/etc/understudy/": f"{host.folder}/etc/",
            "/var/lib/understudy/": f"{host.folder}/state/",
        }
        return host.run(replaced(INSTALLS.sub("", script), names), UNDERSTUDY_PROFILE="etc/profile.toml")

    def run_block(self, host: Host, label: str) -> str:
        return self.run(host, self._blocks.pop(label))

    def read(self, host: Host, words: str) -> Any:
        return json.loads(self.run(host, f"understudy {words} --output json"))

    def begin(self) -> Host:
        """The config server that will be lost; a master target is enrolled with it, and runs."""
        host = self.host("old")
        self.run(host, INIT)
        self.run(host, START)
        self.run(host, "understudy token create master-target mt1 --to ../token")
        target = self.folder / "mt"
        words = (
            f"--etc {target}/etc --state {target}/state --config-server {host.server} --token-file ../token"
        )
        storage = "--blob-url https://account.blob.core.windows.net --blob-key-file /root/account.key"
        self.run(host, f"/opt/understudy/bin/python -m master_target setup {words} {storage}")
        with (target / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "master_target", "--config", str(target / "etc/master-target.toml")],
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        return host

    def wait_for_the_daemon(self, host: Host) -> None:
        until_s = time.monotonic() + FOLLOWS_S
        while [one["name"] for one in self.read(host, "daemon list") if one["connected"]] != ["mt1"]:
            assert time.monotonic() < until_s
            time.sleep(0.5)

    def end(self) -> None:
        for host in self._hosts:
            host.send(signal.SIGKILL)
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()

    def check_all_was_run(self) -> None:
        assert not self._blocks


@pytest.fixture
def site(tmp_path: Path, blob_config: BlobConfig) -> Iterator[Site]:
    made = Site(tmp_path, blob_config)
    try:
        yield made
    finally:
        made.end()


def test_the_commands_for_a_config_server_that_is_lost_work_as_written(site: Site) -> None:
    old = site.begin()
    site.run(old, "understudy policy set gold --point-interval 60")
    site.run(old, "understudy machine protect db1 --disk /dev/sda --offline --no-wait --policy gold")
    site.run_block(old, "config-server")
    site.run(old, "understudy machine protect db2 --disk /dev/sda --offline --no-wait")
    site.run(
        old, "systemctl stop understudy-config-server"
    )  # at its end it puts what it has into storage: nobody waits for that here

    new = site.host("new")
    site.run_block(new, "new-config-server")
    site.run(new, START)  # as its unit does
    machines = {one["name"]: one["policy_name"] for one in site.read(new, "machine list")}
    assert machines == {"db1": "gold", "db2": "default"}
    site.wait_for_the_daemon(new)
    assert "US638" in site.run_block(new, "afterwards"), "jobs wait for a person"
    check_the_old_one_changes_nothing(site, old)
    site.run_block(old, "old-config-server")

    new.send(signal.SIGKILL)
    third = site.host("third")
    site.run_block(third, "from-backup")
    site.run(third, START)
    assert [one["name"] for one in site.read(third, "machine list")] == ["db1"], "as of the backup"
    site.wait_for_the_daemon(third)
    site.run(third, "understudy machine protect db3 --disk /dev/sda --offline --no-wait")
    site.run_block(third, "same-host")
    assert [one["name"] for one in site.read(third, "machine list")] == ["db1"]
    site.check_all_was_run()


def check_the_old_one_changes_nothing(site: Site, old: Host) -> None:
    """Its host is on again, elsewhere."""
    port = old.port
    old.port = free_port()
    for name in (CONFIG, "etc/profile.toml"):
        file = old.folder / name
        file.write_text(file.read_text().replace(str(port), str(old.port)))
    site.run(old, START)
    assert ServerSupersededError.code in site.run(
        old, "understudy machine protect db9 --disk /dev/sda --offline --no-wait 2>&1 || true"
    )
