"""One boot of a container: systemd-nspawn with the container's systemd in it, from power on until it is off.

What a container may do is what the agent's unit asks for (BPF, tracing, locked memory), beside what nspawn gives to every one; not to load
modules, set the clock or reach the host's devices.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.containers.world import World

CAPABILITIES: Final = ("CAP_BPF", "CAP_PERFMON", "CAP_IPC_LOCK")
SYSTEM_CALLS: Final = ("bpf", "perf_event_open")
REBOOT: Final = 133
"""nspawn's exit code when the container is to be started again."""
_LEADER: Final = "X_NSPAWN_LEADER_PID="
_READY: Final = "READY=1"


class Boot:
    """`leader` is the container's first process, as the host counts. What is printed on its console is in the file `console`."""

    def __init__(
        self, world: World, name: str, root: Path, netns: str, binds: Sequence[str], folder: Path
    ) -> None:
        """Power on. `root` is a path of the world; `binds` are nspawn's options for what else of the host is in it."""
        self.leader = 0
        self.console: Final = folder / f"{name}.console"
        self._world = world
        self._name = name
        self._cgroup = world.make_cgroup(name)
        notified = folder / f"{name}.notify"
        notified.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(notified))
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                world.command(
                    *("sh", "-c", 'echo 0 > "$0"/cgroup.procs && exec "$@"', self._cgroup),
                    *_command(name, root, netns, binds),
                ),
                env={**os.environ, "NOTIFY_SOCKET": str(notified)},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def wait_until_up(self, within_s: float) -> None:
        """Until its systemd has started what is to be started, well or not. Raises AssertionError, and the power is off."""
        deadline = time.monotonic() + within_s
        try:
            self.leader = self._world.outside(int(self._hear(_LEADER, deadline)))
            self._hear(_READY, deadline)
        except BaseException:
            self.end()
            raise
        finally:
            # It goes on telling what it does, and would wait for whoever does not listen.
            self._listener.close()

    def _hear(self, wanted: str, deadline: float) -> str:
        """What follows these words in a message."""
        while self._process.poll() is None and time.monotonic() < deadline:
            self._listener.settimeout(1.0)  # then it may have ended
            try:
                lines = self._listener.recv(4096).decode(errors="replace").splitlines()
            except TimeoutError:
                continue
            for line in lines:
                if line.startswith(wanted):
                    return line.removeprefix(wanted)
        code = self._process.poll()
        why = "it takes too long" if code is None else f"exit code {code}"
        raise AssertionError(f"{self._name} does not start: {why}\n{self.last_words()}")

    @property
    def is_on(self) -> bool:
        return self._process.poll() is None

    def wait(self, within_s: float) -> int:
        """nspawn's exit code, once the container is off: `REBOOT`, or 0. Raises subprocess.TimeoutExpired."""
        return self._process.wait(within_s)

    def end(self) -> None:
        """As by the power switch."""
        if self.is_on:
            self._world.run("sh", "-c", 'echo 1 > "$0"/cgroup.kill', self._cgroup)
        self.wait(30)

    def last_words(self) -> str:
        return self.console.read_text(errors="replace")[-3000:]


def _command(name: str, root: Path, netns: str, binds: Sequence[str]) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={name}", f"--hostname={name}"),
        # There is nobody to register with, and no unit of ours: the host may have no systemd.
        *(
            "--boot",
            "--register=no",
            "--keep-unit",
            f"--network-namespace-path={netns}",
            "--notify-ready=yes",
        ),
        *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
        f"--capability={','.join(CAPABILITIES)}",
        f"--system-call-filter={' '.join(SYSTEM_CALLS)}",
        *binds,
    ]
