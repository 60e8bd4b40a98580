"""A container as its operator has it: power, commands, files, disks, units.

Commands come in from outside (nsenter), so they run whatever the container's network and service manager do, as a root shell on its console
would: with what the container may do and no more, since kernel and clock are the host's. A daemon belongs to systemd (`systemctl start`).
"""

from __future__ import annotations

import enum
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.containers.network import Link
from tests.containers.nspawn import REBOOT, Boot
from tests.containers.world import World

UP_S: Final = 90.0
DOWN_S: Final = 120.0
"""A daemon may take a minute to end (TimeoutStopSec=)."""
_TIMED_OUT: Final = 124


class SystemState(enum.Enum):
    """What `systemctl is-system-running` says once all is started."""

    RUNNING = "running"
    DEGRADED = "degraded"
    """Some units failed."""
    OTHER = "other"
    """maintenance, stopping, …"""


@dataclass(frozen=True)
class Up:
    state: SystemState
    failed: tuple[str, ...]
    """The units."""
    seconds: float
    """How long that took from power on."""


class CommandFailedError(AssertionError):
    """A command ended with another exit code than 0, or not in time."""


@dataclass
class Container:
    name: str
    link: Link
    root: Path
    """Its file system, as a path of the world; writable while it is off, too (`World.seen`)."""
    folder: Path
    """What the host keeps of it."""
    world: World
    devices: list[str] = field(default_factory=list)
    """Block devices of the host that it has, under the same names."""
    shown: dict[Path, str] = field(default_factory=dict)
    """Folders of the host that it sees, read-only, and where; from its next boot on."""
    _boot: Boot | None = None

    # ---- power ----

    def start(self, within_s: float = UP_S) -> Up:
        """Power on, until its systemd has started everything, or tried to."""
        assert not self.is_on, f"{self.name} is on"
        began = time.monotonic()
        binds = [f"--bind={device}" for device in self.devices]
        binds += [f"--bind-ro={folder}:{place}" for folder, place in self.shown.items()]
        self._boot = Boot(self.world, self.name, self.root, self.link.namespace, binds, self.folder)
        self._boot.wait_until_up(within_s)
        return self.wait_until_settled(began)

    def wait_until_settled(self, since: float | None = None) -> Up:
        """Until nothing waits to be started any more."""
        since = time.monotonic() if since is None else since
        said = self.run("systemctl", "is-system-running", "--wait", check=False, within_s=UP_S).stdout.strip()
        known = {state.value: state for state in SystemState}
        units = self.read("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines()
        failed = tuple(unit.split()[0] for unit in units)
        return Up(known.get(said, SystemState.OTHER), failed, time.monotonic() - since)

    @property
    def leader(self) -> int:
        """Its first process, as the host counts; only while it is on."""
        assert self._boot is not None
        return self._boot.leader

    @property
    def is_on(self) -> bool:
        return self._boot is not None and self._boot.is_on

    def reboot(self) -> Up:
        """By its own systemd, which first stops what runs."""
        code = self._leave("reboot")
        assert code == REBOOT, f"{self.name} did not reboot: exit code {code}"
        return self.start()

    def power_off(self) -> None:
        """By its own systemd."""
        code = self._leave("poweroff")
        assert code == 0, f"{self.name} did not power off: exit code {code}"

    def kill(self) -> None:
        """The power fails: no process of it does anything more. What its kernel was given to write is written (it is the host's)."""
        if self._boot is not None:
            self._boot.end()

    def _leave(self, verb: str) -> int:
        assert self._boot is not None
        self.run("systemctl", verb, check=False)  # it may be ended while it waits for an answer
        return self._boot.wait(DOWN_S)

    # ---- commands ----

    def run(
        self,
        *words: str | Path,
        check: bool = True,
        within_s: float = 60.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As root, in its root folder. Raises CommandFailedError: when it takes longer, always, else unless `check` is False."""
        done = self._run("timeout", "--kill-after=5", str(within_s), *words, stdin=stdin, env=env)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if done.returncode and (check or done.returncode == _TIMED_OUT):
            raise CommandFailedError(f"{self.name}: {words}: exit code {done.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(words, done.returncode, out, err)

    def _run(
        self, *words: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Who comes in has all that the host's root may do: that is given up before anything runs."""
        way_in = ["nsenter", f"--target={self.leader}", "--all", "--", *giving_up(self.leader)]
        command = [*way_in, *(str(word) for word in words)]
        return subprocess.run(command, input=stdin, capture_output=True, env=env or _ENVIRONMENT)

    def read(self, *words: str | Path, within_s: float = 60.0) -> str:
        """What it prints, without the last line's end."""
        return self.run(*words, within_s=within_s).stdout.rstrip("\n")

    def succeeds(self, *words: str | Path) -> bool:
        return self.run(*words, check=False).returncode == 0

    # ---- files ----

    def put(self, content: bytes | str | Path, place: str, *, mode: int = 0o644, owner: str = "root") -> None:
        """A file with this content (of the host's file, if a path is given), and the folders above it."""
        if isinstance(content, Path):
            content = content.read_bytes()
        data = content.encode() if isinstance(content, str) else content
        self.run("install", "-D", f"--mode={mode:o}", f"--owner={owner}", "/dev/stdin", place, stdin=data)

    def put_folder(self, folder: Path, place: str) -> None:
        """All that is in it, of root."""
        packed = subprocess.run(
            ["tar", "--create", "--owner=0", "--group=0", f"--directory={folder}", "."],
            check=True,
            capture_output=True,
        ).stdout
        self.run("mkdir", "-p", place)
        self.run("tar", "--extract", f"--directory={place}", stdin=packed, within_s=300)

    def write_random(self, disk: str, size_b: int) -> None:
        """At the beginning of a disk, past the page cache."""
        self.run(
            "dd", "if=/dev/urandom", f"of={disk}", f"bs={size_b}", "count=1", "oflag=direct", "conv=notrunc"
        )

    def get(self, place: str) -> bytes:
        """A file's content. Raises CommandFailedError."""
        done = self._run("cat", place)
        if done.returncode:
            raise CommandFailedError(f"{self.name}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    # ---- disks ----

    def hand_in(self, device: str) -> None:
        """A block device of the host is the container's, too, from now on and after each boot. It is in /sys anyway, as all are: what a
        container has not, it sees and cannot open."""
        self.devices.append(device)
        if self.is_on:
            number = Path(device).stat().st_rdev
            self.run("mknod", "--mode=660", device, "b", str(os.major(number)), str(os.minor(number)))

    def take_away(self, device: str) -> None:
        """From the next boot on. (Who has it open keeps it: detach what is below it.)"""
        self.devices.remove(device)

    # ---- units ----

    def unit(self, name: str) -> Unit:
        wanted = ",".join(_PROPERTIES)
        lines = self.read("systemctl", "show", name, f"--property={wanted}").splitlines()
        said = dict(line.split("=", 1) for line in lines)
        return Unit(**{attribute: said.get(key, "") for key, attribute in _PROPERTIES.items()})

    def wait_for_unit(self, name: str, within_s: float = 60.0, **wanted: str) -> Unit:
        """Until it shows so; attributes of `Unit` as keywords. Raises AssertionError with its last lines."""
        deadline = time.monotonic() + within_s
        while True:
            unit = self.unit(name)
            if all(getattr(unit, attribute) == value for attribute, value in wanted.items()):
                return unit
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: {name} is {unit}, not {wanted}\n{self.journal(name)}")
            time.sleep(0.1)

    def journal(self, unit: str, lines: int = 40) -> str:
        return self.read("journalctl", f"--unit={unit}", f"--lines={lines}", "--no-pager", "--output=cat")


def giving_up(leader: int) -> list[str]:
    """In front of a command: what this process cannot have, the command has not."""
    status = Path(f"/proc/{leader}/status").read_text()
    bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd:")).split()[1], 16)
    kept = [f"+cap_{number}" for number in range(bounding.bit_length()) if bounding >> number & 1]
    return ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{','.join(kept)}", "--"]


_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
}
_PROPERTIES: Final = {
    "ActiveState": "active",
    "SubState": "sub",
    "Result": "result",
    "ExecMainStatus": "exit_code",
    "NRestarts": "restarts",
    "MainPID": "pid",
    "StatusText": "status",
    "InvocationID": "invocation",
}


@dataclass(frozen=True)
class Unit:
    """What `systemctl show` says of a unit."""

    active: str
    """active, activating, inactive, failed, …"""
    sub: str
    """running, auto-restart, dead, …"""
    result: str
    """success, exit-code, watchdog, …"""
    exit_code: str
    restarts: str
    pid: str
    """Of its main process, as the container counts; 0: none."""
    status: str
    """What the daemon itself says of itself."""
    invocation: str
    """Another one at each start."""
