"""A disk that hangs, as real ones do: what is asked of it waits, and no signal ends the wait.

It is a loop device over a file of a file system that can be frozen. A write to it then waits for the thaw; and who changes an attribute of
its queue meanwhile waits for that write, and makes every other request, and every reader of such attributes, wait for him.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.capture_parts import MIB, frozen, mounted, run, until
from tests.loopdisk import loop_disk, own_device

SIZE_B: Final = 4 * MIB


class HangingDisk:
    def __init__(self, device: str, where: Path) -> None:
        self.device = device
        self._where = where
        self._undo = contextlib.ExitStack()

    def hang(self) -> None:
        """From now on nothing comes of it, until `let_go`."""
        folder = Path("/sys/block") / Path(self.device).name
        children: list[subprocess.Popen[bytes]] = []
        self._undo.callback(lambda: [child.wait() for child in children])  # behind the thaw
        self._undo.enter_context(frozen(self._where))
        write = ["dd", "if=/dev/zero", f"of={self.device}", "bs=4096", "count=1", "oflag=direct"]
        children.append(subprocess.Popen([*write, "conv=notrunc"], stderr=subprocess.DEVNULL))
        until(lambda: (folder / "inflight").read_text().split() == ["0", "1"], "the write does not hang")
        children.append(subprocess.Popen(["sh", "-c", f"echo 1 > {folder}/queue/iostats"]))
        until(lambda: _waits(children[-1].pid), "the queue does not wait for the write")

    def let_go(self) -> None:
        self._undo.close()


def _waits(pid: int) -> bool:
    """Whether it is in a wait that no signal ends."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"


@contextlib.contextmanager
def hanging_disk(folder: Path) -> Iterator[HangingDisk]:
    """A disk that is well until it is told to hang. It is let go whatever happens."""
    with loop_disk(folder / "below", 16 * MIB) as below, own_device() as device:
        run("mkfs.ext4", "-q", below)
        with mounted(below, folder / "mount") as where:
            (where / "disk").write_bytes(bytes(SIZE_B))
            run("losetup", device, str(where / "disk"))
            disk = HangingDisk(device, where)
            try:
                yield disk
            finally:
                disk.let_go()
                run("losetup", "--detach", device)
                until(lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists(), "it stays in use")
