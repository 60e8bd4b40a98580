"""What a test that was killed left of its containers: found at the next start, named, and removed.

With the test, the world's processes, mounts and networks are gone (`world.py`). What may stay is what is no process: a folder, loop devices
over files in it, a cgroup. Each site has a note of these, which is written before the first of them is there and removed after the last.
Only what a note names is removed, only when its owner is dead, and a process only while it is the one that the note means (pid and time of
its start).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from shared.host import durable
from tests.containers.world import remove_cgroup

NOTES: Final = Path("/run/understudy-test-containers")
_END_S: Final = 30.0
_STARTED: Final = 19
"""Field 22 of /proc/PID/stat, counted behind the name."""


class Process(msgspec.Struct, frozen=True):
    pid: int
    started: str
    """In the kernel's ticks since it booted: a number that is given again has another."""

    @staticmethod
    def of(pid: int) -> Process | None:
        """None when there is none."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return Process(pid, fields[_STARTED]) if fields[0] != "Z" else None
        return None

    @property
    def is_alive(self) -> bool:
        return Process.of(self.pid) == self

    def kill(self) -> None:
        """Unless its number is somebody else's by now; it is gone when this returns."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.is_alive:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    poll = select.poll()
                    poll.register(fd, select.POLLIN)
                    poll.poll(_END_S * 1000)
            finally:
                os.close(fd)


class Note(msgspec.Struct, frozen=True):
    name: str
    """Of the cgroup, too."""
    owner: Process
    folder: str
    world: Process | None = None


def write(note: Note, notes: Path = NOTES) -> None:
    notes.mkdir(exist_ok=True)
    durable.replace_file(_file(note, notes), msgspec.json.encode(note), mode=0o600, durable=False)


def remove_left(notes: Path = NOTES) -> list[Note]:
    """What those left who are dead; one at a time, when several start. What was removed."""
    notes.mkdir(exist_ok=True)
    with (notes / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [msgspec.json.decode(file.read_bytes(), type=Note) for file in sorted(notes.glob("*.json"))]
        dead = [note for note in found if not note.owner.is_alive]
        for note in dead:
            remove(note, notes)
        return dead


def remove(note: Note, notes: Path = NOTES) -> None:
    """All that the note names, then the note, whatever is still there of it."""
    if note.world is not None:
        note.world.kill()
    folder = Path(note.folder)
    for device in loop_devices(folder):
        subprocess.run(["losetup", "--detach", device], check=True)
    if folder.exists():
        shutil.rmtree(folder)
    remove_cgroup(note.name)
    _file(note, notes).unlink(missing_ok=True)


def traces(name: str) -> list[str]:
    """Where the host shows something of a site: none when it has been removed. For people."""
    found = [f"mount {line.split()[4]}" for line in _lines(Path("/proc/self/mountinfo")) if name in line]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    found += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(name)]
    found += [f"note {path}" for path in NOTES.glob(f"{name}*")]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        found += [f"{file.parents[1].name} over {line}" for line in _lines(file) if name in line]
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and any(name in line for line in _lines(folder / "cgroup")):
            found.append(f"process {folder.name}")
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:  # it is gone
        return []


def loop_devices(folder: Path) -> Iterator[str]:
    """Those whose backing files lie in the folder."""
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if folder in Path(file.read_text().strip()).parents:
                yield f"/dev/{file.parents[1].name}"


def _file(note: Note, notes: Path) -> Path:
    return notes / f"{note.name}.json"
