"""The first process of a world (`world.py`): makes its mounts, says so, and lives as long as somebody holds its standard input open.

When it ends, the kernel ends every process of the world; with the last of them its mounts and networks are gone. So nothing of a world
outlives whoever asked for it, however that one ended. Runs as `python holder.py CGROUP`, already in the namespaces; needs nothing of the
project.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def main(cgroup: str) -> None:
    seen_outside = Path("/proc/self").readlink()  # this /proc is still the host's
    for kind, place in (
        ("proc", "/proc"),
        # Nobody's lists of network namespaces, containers and locks are the host's.
        ("tmpfs", "/run"),
        # The one hierarchy of today's systems, whatever the host has there.
        ("cgroup2", str(CGROUPS)),
    ):
        subprocess.run(["mount", "-t", kind, kind, place], check=True)
    own = CGROUPS / cgroup
    own.mkdir()
    (own / "world").mkdir()
    (own / "world/cgroup.procs").write_text("0")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever is orphaned here leaves no zombie
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the test, which then lets go of us
    print(os.fspath(seen_outside), flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main(sys.argv[1])
