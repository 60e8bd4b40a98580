"""Namespaces of our own: what happens in a world happens to nothing of the host's, and ends with the world.

    processes   seen from outside, and unable to see out
    mounts      a copy of the host's, with a /run and a /proc of its own, and one cgroup hierarchy (v2) as on today's systems
    network     empty; the namespaces of its machines are made in it (`network.py`)

A world ends when it is left, or when whoever made it is dead: then its first process reads an end of file (`holder.py`).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.containers.holder import CGROUPS

_HOLDER: Final = Path(__file__).with_name("holder.py")
_NAMESPACES: Final = ("--mount", "--net", "--pid")


class World:
    """`pid` is its first process, as the host counts."""

    def __init__(self, pid: int, cgroup: str) -> None:
        self.pid: Final = pid
        self._cgroup = cgroup

    def command(self, *words: str | Path) -> list[str]:
        """To run these words in the world."""
        inside = ["nsenter", f"--target={self.pid}", *_NAMESPACES, "--"]
        return [*inside, *(str(word) for word in words)]

    def run(self, *words: str | Path, timeout_s: float = 60) -> str:
        """What the command prints. Raises AssertionError with what it says when it fails."""
        done = subprocess.run(
            self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise AssertionError(f"{words}: exit code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def seen(self, inside: Path) -> Path:
        """A path of the world, for the host. Links in it must not lead through the root."""
        return Path(f"/proc/{self.pid}/root") / inside.relative_to("/")

    def make_cgroup(self, name: str) -> Path:
        """The path, in the world, of one for a machine; there may be one of it from an earlier boot."""
        own = CGROUPS / self._cgroup / name
        self.run("mkdir", "-p", own)
        return own

    def outside(self, pid: int) -> int:
        """The host's number of a process of a machine that has this number in the world; 0 when there is none."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and _is_it(folder, pid, self._cgroup):
                return int(folder.name)
        return 0


def _is_it(folder: Path, pid: int, cgroup: str) -> bool:
    try:
        status, cgroups = (folder / "status").read_text(), (folder / "cgroup").read_text()
    except OSError:  # it has ended
        return False
    numbers = next((line.split() for line in status.splitlines() if line.startswith("NSpid:")), [])
    return numbers[2:3] == [str(pid)] and f"/{cgroup}/" in cgroups


@contextlib.contextmanager
def world(cgroup: str) -> Iterator[World]:
    """`cgroup`: a name that nobody else has on this host; the cgroup stays when the world has ended (`remove_cgroup`)."""
    command = ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--propagation=private"]
    with subprocess.Popen(
        [*command, "/usr/bin/python3", str(_HOLDER), cgroup],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            said = holder.stdout.readline()
            if not said:
                raise AssertionError(f"no namespaces could be made: exit code {holder.wait()}")
            yield World(int(said), cgroup)
        finally:
            holder.stdin.close()
            holder.wait()  # until the last of its processes is gone


def remove_cgroup(cgroup: str) -> None:
    """And those below it. Nobody may be in them any more."""
    script = 'mount -t cgroup2 cgroup2 "$0" && [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +'
    subprocess.run(
        ["unshare", "--mount", "--", "sh", "-c", script, str(CGROUPS), str(CGROUPS / cgroup)], check=True
    )
