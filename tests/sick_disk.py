"""A disk that falls ill: a loop device over a file that another program gives (`sick_file`).

    with sick_disk(folder / "disk", 8 << 20) as disk:
        disk.hang()    # nothing is answered any more, neither read nor write nor any other question, and no signal ends the wait…
        disk.occupy()  # (a write waits for it; behind that, somebody who changes its queue; behind him, whoever reads that in sysfs)
        disk.well()    # …until now: then all of it
        disk.fail()    # reads and writes fail (EIO)
        disk.lose_leg()  # those of every other 64 KiB do

When that program ends, whatever still waits for it fails. A disk is well again when it is left.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.capture_parts import until
from tests.sick_file import Mode


class SickDisk:
    """`device` is the block device."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._waiting: list[subprocess.Popen[bytes]] = []
        self._mode = Mode.WELL
        self.device = self._hear("at")

    def hang(self) -> None:
        self._turn(Mode.HANG)

    def occupy(self) -> None:
        """While it hangs."""
        folder = Path("/sys/block") / Path(self.device).name
        write = ["dd", "if=/dev/zero", f"of={self.device}", "bs=4096", "count=1", "oflag=direct"]
        self._waiting.append(subprocess.Popen([*write, "conv=notrunc"], stderr=subprocess.DEVNULL))
        until(lambda: (folder / "inflight").read_text().split() == ["0", "1"], "the write does not hang")
        self._waiting.append(subprocess.Popen(["sh", "-c", f"echo 1 > {folder}/queue/iostats"]))
        until(lambda: _waits(self._waiting[-1].pid), "the queue does not wait for the write")

    def fail(self) -> None:
        self._turn(Mode.FAIL)

    def lose_leg(self) -> None:
        self._turn(Mode.LEG)

    def well(self) -> None:
        """What waited has ended when this returns."""
        self._turn(Mode.WELL)
        while self._waiting:
            self._waiting.pop().wait()

    def stops(self, child: subprocess.Popen[bytes]) -> int:
        """0 unless this program was told to ask the disk, and waits while that hangs. Else how often it had waited before: when it is the
        same somewhat later, it has not run meanwhile."""
        assert isinstance(child.args, list)
        is_asking = not {self.device, Path(self.device).name}.isdisjoint(child.args)
        if self._mode is not Mode.HANG or not is_asking or _state(child.pid) not in "SD":
            return 0
        status = Path(f"/proc/{child.pid}/status").read_text()
        return 1 + int(status.partition("voluntary_ctxt_switches:")[2].split()[0])

    def _turn(self, mode: Mode) -> None:
        assert self._process.stdin is not None
        print(mode.value, file=self._process.stdin, flush=True)
        self._hear("now")
        self._mode = mode

    def _hear(self, word: str) -> str:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if said[:1] != [word]:
            raise AssertionError(f"the sick disk said {said}, not {word}; exit code {self._process.poll()}")
        return said[1]


def _waits(pid: int) -> bool:
    """Whether it is in a wait that no signal ends."""
    return _state(pid) == "D"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def sick_disk(file: Path, size_b: int, *, limit_s: float = 60.0) -> Iterator[SickDisk]:
    """`file` is made, as what stands below the mount; the content is the program's. It hangs for `limit_s` at most."""
    command = [sys.executable, "-m", "tests.sick_file", str(file), str(size_b), str(limit_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        disk: SickDisk | None = None
        try:
            disk = SickDisk(process)
            yield disk
        finally:
            if disk is not None:
                if process.poll() is None:
                    disk.well()  # to detach it asks the file system, too
                subprocess.run(["losetup", "--detach", disk.device], check=True)
                place = Path("/sys/block") / Path(disk.device).name / "loop"
                until(lambda: not place.exists(), "it stays in use")
            process.kill()  # the kernel ends the connection: nobody waits any more
