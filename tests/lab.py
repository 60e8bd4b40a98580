"""A lab (a whole installation on this host) driven through the command line, as a person would, for system and long tests."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.lab.state import Lab as LabState
from tests import forked
from tests.cli import MAIN

PATIENCE_S = 1800.0
"""On a host that is busy with other things, a restore takes minutes, and so does a wipe."""
UNDERSTUDY = str(Path(sys.executable).with_name("understudy"))


class CommandFailedError(AssertionError):
    """A command ended with an exit code that was not expected."""

    def __init__(self, arguments: Sequence[str], done: subprocess.CompletedProcess[str]) -> None:
        self.exit_code = done.returncode
        self.stderr = done.stderr
        super().__init__(f"understudy {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")


class Lab:
    """`folder` is the lab's folder; `devices` the protected disks, in order."""

    def __init__(self, folder: Path, devices: Sequence[str]) -> None:
        self.folder = folder
        self.devices = list(devices)
        self._disks = [argument for device in devices for argument in ("--disk", device)]
        self._port_base = _free_base()

    def run(self, *arguments: str, timeout_s: float = 300, folder: Path | None = None) -> str:
        """Runs one command, on this lab or on the one in `folder`; its standard output. Raises CommandFailedError."""
        lab = ["--dir", str(folder or self.folder)] if arguments[0] == "lab" else []
        words = [*([] if lab else ["--lab", str(self.folder)]), *arguments, *lab]
        ended = forked.run_now("-c", MAIN, *words, env=os.environ, timeout_s=timeout_s)
        done = subprocess.CompletedProcess(
            words, ended.exit_code, ended.stdout.decode(), ended.stderr.decode()
        )
        if done.returncode != 0:
            raise CommandFailedError(arguments, done)
        return done.stdout

    def read(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--output", "json"))

    def up(self, **options: object) -> None:
        """`lab up`, on ports of its own, so that several labs can be up; options as keywords, e.g. point_interval=5."""
        flags = [
            part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))
        ]
        self.run("lab", "up", *self._disks, "--port-base", str(self._port_base), *flags)

    def status(self) -> Any:
        return json.loads(self.run("lab", "status", "--output", "json"))

    def ask(self, path: str) -> Any:
        """What the config server answers to GET: for looks so frequent that commands would take the daemons' time. Raises OSError."""
        state = LabState.open(self.folder)
        request = urllib.request.Request(  # noqa: S310 - https, of this host
            f"{state.config_server_url}{path}",
            headers={"Authorization": f"Bearer {state.operator_token_file.read_text().strip()}"},
        )
        context = ssl.create_default_context(cafile=str(state.ca_file))
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
            return json.load(answer)

    def machine(self) -> Any:
        """As `machine show` prints it, which also waits for a config server that is just being started."""
        try:
            return self.ask("/v1/machines/lab")
        except OSError:
            return self.read("machine", "show", "lab")

    def wait_ordered(self, timeout_s: float) -> float:
        """Waits for the state `ordered`; how many seconds it took."""
        began = time.monotonic()
        self.run(
            "machine",
            "wait",
            "lab",
            "--for",
            "ordered",
            "--timeout",
            str(timeout_s),
            timeout_s=timeout_s + 60,
        )
        return time.monotonic() - began

    def wait_state(self, states: set[str], timeout_s: float) -> Any:
        """Polls `machine show` until the state is one of `states`; the machine."""
        deadline = time.monotonic() + timeout_s
        while True:
            machine = self.machine()
            if machine["state"] in states:
                return machine
            if time.monotonic() > deadline:
                raise AssertionError(f"state {machine['state']} after {timeout_s} s, expected {states}")
            time.sleep(0.5)

    def points(self) -> list[Any]:
        """All points, oldest first."""
        points: list[Any] = self.read("point", "list", "lab")
        return sorted(points, key=lambda point: (point["epoch"], point["batch"]))

    def create_point(self) -> Any:
        return self.read("point", "create", "lab", "--wait")

    def restore(self, point: str, to: Path) -> list[Path]:
        """The restored images, in disk order."""
        self.run("restore", "lab", "--point", point, "--to", str(to), timeout_s=PATIENCE_S)
        return [to / f"{Path(device).name}.raw" for device in self.devices]

    def kill(self, daemon: str) -> None:
        self.run("lab", "kill", daemon)

    def stop(self, daemon: str) -> None:
        self.run("lab", "stop", daemon)

    def start(self, daemon: str) -> None:
        self.run("lab", "start", daemon)


def _free_base() -> int:
    """A base at which nobody listens on a lab's ports: other labs may be up on this host."""
    while True:
        base = 20000 + 20 * secrets.randbelow(600)
        if all(_is_free(base + offset) for offset in (0, 3, 10)):
            return base


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextlib.contextmanager
def lab(devices: Sequence[str], **options: object) -> Iterator[Lab]:
    """A lab that is up, and wiped afterwards."""
    folder = Path("/tmp") / f"understudy-lab-{secrets.token_hex(3)}"
    made = Lab(folder, devices)
    try:
        made.up(**options)
        yield made
    except BaseException:
        for log in sorted(folder.glob("log/*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(CommandFailedError):
            made.run("lab", "down", "--wipe", "--yes", timeout_s=PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)
