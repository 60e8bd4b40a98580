"""A lab whose daemons each run on a host that can be made to fail (host_faults): their files, their log, their clock."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.lab import daemons
from deploy.lab.state import Lab as LabState
from deploy.lab.vocabulary import Daemon
from tests.host_faults import Host
from tests.lab import Lab, lab

DAEMONS: Final = tuple(daemon.value for daemon in Daemon if daemon is not Daemon.AZURITE)
READY_S: Final = 60.0
STOP_S: Final = 60.0


class HostedLab:
    """`start` and `stop` are those of `site`, on the daemon's own host."""

    def __init__(self, site: Lab, folder: Path) -> None:
        self.site = site
        self.hosts: Final = {daemon: Host(folder) for daemon in DAEMONS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._begins: dict[str, int] = {}

    def start(self, daemon: str) -> int | None:
        """Starts it and waits until it is ready; its exit code, if it ends instead."""
        state = LabState.open(self.site.folder)
        log = state.log_file(Daemon(daemon))
        self._begins[daemon] = log.stat().st_size if log.exists() else 0
        name = f"understudy-test-{secrets.token_hex(6)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("ab") as out:
            manager.bind(f"\0{name}")
            environment = daemons.environment(state) | {"NOTIFY_SOCKET": f"@{name}"}
            process = self._processes[daemon] = subprocess.Popen(
                daemons.command(state, Daemon(daemon)),
                env=environment | self.hosts[daemon].environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            exited = os.pidfd_open(process.pid)
            try:
                while True:
                    readable, _, _ = select.select([manager.fileno(), exited], [], [], READY_S)
                    if not readable:
                        raise AssertionError(f"{daemon} is neither ready nor at its end")
                    if (
                        manager.fileno() in readable
                        and "READY=1" in manager.recv(65536).decode().splitlines()
                    ):
                        return None
                    if exited in readable:
                        return process.wait()
            finally:
                os.close(exited)

    def stop(self, daemon: str) -> int:
        """SIGTERM; the exit code."""
        process = self._processes[daemon]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"{daemon} does not stop within {STOP_S:.0f} s") from exc

    def restart(self, daemon: str) -> int | None:
        self.stop(daemon)
        return self.start(daemon)

    def runs(self, daemon: str) -> bool:
        """Whether the process that was started last is still there."""
        return self._processes[daemon].poll() is None

    def said(self, daemon: str) -> list[dict[str, Any]]:
        """Its log lines since the last start."""
        with LabState.open(self.site.folder).log_file(Daemon(daemon)).open("rb") as file:
            file.seek(self._begins[daemon])
            lines = file.read().decode(errors="replace").splitlines()
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def machine(self) -> Any:
        return self.site.ask("/v1/machines/lab")

    def environment(self, host: Host) -> dict[str, str]:
        """For a command on that host."""
        return {**os.environ, **host.environment}

    def kill_all(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def hosted_lab(devices: Sequence[str], folder: Path, **options: object) -> Iterator[HostedLab]:
    """A lab that is up, every daemon of it on a host of its own, and wiped afterwards."""
    with lab(devices, **options) as site:
        made = HostedLab(site, folder)
        try:
            for daemon in DAEMONS:
                site.stop(daemon)
                if (code := made.start(daemon)) is not None:
                    raise AssertionError(f"{daemon} ended with {code}: {made.said(daemon)[-3:]}")
            yield made
        finally:
            for host in made.hosts.values():
                host.mend_clock()
            for daemon in reversed(DAEMONS):
                with contextlib.suppress(KeyError, subprocess.TimeoutExpired):
                    made.stop(daemon)
            made.kill_all()
