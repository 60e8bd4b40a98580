"""A capture over real loop disks, for tests: disks in RAM, an attached capture, and a replica that is made from the ring alone."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from agent.capture import attach, audit, layout, members
from agent.capture.disks import Disk, find_disk
from agent.capture.maps import GRANULE_SECTORS, Capture, detach
from agent.capture.suitable import given_pages
from shared.errors import DeviceError
from tests.loopdisk import loop_disk

MIB: Final = 1 << 20
SECTOR: Final = 512
_PINS: Final = Path("/sys/fs/bpf/understudy-test")
_DEADLINE_S: Final = 20.0


def _lacking() -> str:
    try:
        # Only what the machine lacks: where the programs are missing, tests fail.
        attach.check_machine(object_path=Path(__file__))
    except DeviceError as exc:
        return str(exc)
    return ""


needs_capture = pytest.mark.skipif(bool(_lacking()), reason=_lacking())
"""Reports in one line what the machine lacks for capture."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that the kernel does in its own time."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Rig:
    """`disks[i]` lies in the file `backing[i]`; `replica[i]` is what the ring says that it holds."""

    def __init__(
        self, folder: Path, pin_dir: Path, disks: Sequence[Disk], backing: Sequence[Path], ring_b: int
    ):
        self.folder = folder
        self.pin_dir = pin_dir
        self.disks = disks
        self.backing = backing
        self.ring_b = ring_b
        self.replica = [np.fromfile(path, np.uint8) for path in backing]
        self.losses: set[int] = set()
        self._open: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {}
        self.capture: Capture

    @property
    def device(self) -> str:
        return str(self.disks[0].path)

    def attach(self) -> Capture:
        self.capture = Capture.attach(self.pin_dir, self.disks, self.ring_b)
        return self.capture

    def replay(self) -> int:
        """Takes everything from the ring and applies the bios that are whole. Returns the number of records."""
        ring, total = self.capture.ring, 0
        while len(window := ring.peek(1024)):
            for header, data in zip(window.headers[window.valid], window.data[window.valid], strict=True):
                self._apply(header, data)
            ring.free_to(window.first_seq + len(window))
            total += len(window)
        return total

    def _apply(self, header: Any, data: npt.NDArray[np.uint8]) -> None:
        disk, at, size = int(header["disk"]), int(header["sector"]) * SECTOR, int(header["sectors"]) * SECTOR
        self.losses.add(int(header["loss"]))
        key = (int(header["bio"]), int(header["time_ns"]))
        if header["op"] == 2:
            self.replica[disk][at : at + size] = 0
            return
        pieces = self._open.setdefault(key, [])
        assert header["piece"] == len(pieces)
        pieces.append((disk, at, data[:size].tobytes()))
        if header["flags"] & 1:
            for where, begin, content in self._open.pop(key):
                self.replica[where][begin : begin + len(content)] = np.frombuffer(content, np.uint8)

    @property
    def orphans(self) -> int:
        """Bios that never had a last piece."""
        return len(self._open)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Replays in the background, so that the ring does not fill."""
        stop = threading.Event()

        def drain() -> None:
            while not stop.is_set():
                if not self.replay():
                    stop.wait(0.001)
            self.replay()

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def catch_up(self, bitmap: npt.NDArray[np.uint64], disk: int = 0) -> int:
        """Copies what `bitmap` marks from the disk itself. Returns the number of granules."""
        source = np.fromfile(self.backing[disk], np.uint8)
        granules = np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little"))
        size = GRANULE_SECTORS * SECTOR
        for granule in granules.tolist():
            part = slice(granule * size, (granule + 1) * size)
            self.replica[disk][part] = source[part]
        return len(granules)

    def differing(self, disk: int = 0) -> list[int]:
        """Sectors in which replica and disk differ; the first few."""
        source = np.fromfile(self.backing[disk], np.uint8)
        differs = (source != self.replica[disk]).reshape(-1, SECTOR).any(axis=1)
        first: list[int] = np.flatnonzero(differs)[:8].tolist()
        return first

    def differences(self, disk: int = 0) -> str:
        """How they differ, for people."""
        source = np.fromfile(self.backing[disk], np.uint8).reshape(-1, SECTOR)
        replica = self.replica[disk].reshape(-1, SECTOR)
        differing = np.flatnonzero((source != replica).any(axis=1))
        first = differing[0]
        at = np.flatnonzero(source[first] != replica[first])[0]
        zeros = [int((~side[differing].any(axis=1)).sum()) for side in (source, replica)]
        return (
            f"{len(differing)} sectors, {differing[0]} to {differing[-1]}, {zeros} of them zero on the disk and in the replica;"
            f" at byte {at} of the first {source[first, at:][:16].tobytes()!r}, {replica[first, at:][:16].tobytes()!r}"
        )

    def counted(self, disk: int = 0) -> int:
        """Sectors that the kernel counted since the attachment."""
        baseline = audit.Baseline.from_words(self.capture.audit_words(disk))
        return audit.read_stat(self.disks[disk]).sectors - baseline.stat_sectors

    def write(self, offset: int, content: bytes, *, disk: int = 0, direct: bool = True) -> None:
        flags = os.O_WRONLY | (os.O_DIRECT if direct else 0)
        fd = os.open(self.disks[disk].path, flags)
        try:
            for at in range(0, len(content), MIB):
                part = aligned(content[at : at + MIB]) if direct else content[at : at + MIB]
                os.pwrite(fd, part, offset + at)
            os.fsync(fd)
        finally:
            os.close(fd)


def use_up_slots(r: Rig) -> None:
    """As if disks had joined until no slot was left."""
    with members._map(r.pin_dir, "control") as fd:
        members._control(fd)["slots"] = layout.MAX_DISKS


def aligned(content: bytes) -> memoryview:
    """The same bytes at a page boundary, for O_DIRECT."""
    room = np.zeros(len(content) + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    room[start : start + len(content)] = np.frombuffer(content, np.uint8)
    return room[start : start + len(content)].data


@contextmanager
def rig(
    size_b: int = 64 * MIB, *, count: int = 1, ring_b: int = 64 * MIB, attached: bool = True
) -> Iterator[Rig]:
    """`count` loop disks of `size_b` bytes, captured as one machine. Everything is removed afterwards."""
    name = secrets.token_hex(4)
    folder = Path("/dev/shm") / f"understudy-{name}"
    folder.mkdir()
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)
        backing = [folder / f"disk-{i}" for i in range(count)]
        devices = [undo.enter_context(loop_disk(path, size_b)) for path in backing]
        made = Rig(folder, _PINS / name, [find_disk(Path(device)) for device in devices], backing, ring_b)
        undo.callback(detach, made.pin_dir)
        if attached:
            made.attach()
            undo.callback(lambda: made.capture.close())
        yield made


@contextmanager
def zram(size_b: int) -> Iterator[Disk]:
    """A disk without requests, in RAM: the only kind of these that tests can make everywhere."""
    control = Path("/sys/class/zram-control")
    if not control.is_dir():
        pytest.skip("this kernel has no zram")
    if given_pages("zram"):
        pytest.skip("this kernel gives zram pages past the block layer, so it cannot be protected")
    name = f"zram{(control / 'hot_add').read_text().strip()}"
    device, folder = Path("/dev") / name, Path("/sys/block") / name
    try:
        (folder / "disksize").write_text(str(size_b))
        until(device.exists, f"{device} does not appear")
        yield find_disk(device)
    finally:
        until(
            lambda: is_emptied(folder), f"{device} stays in use"
        )  # whoever asks all disks has it open for a moment
        (control / "hot_remove").write_text(name.removeprefix("zram"))


def is_emptied(zram: Path) -> bool:
    """Empties it, unless somebody has it open. `zram`: its folder in sysfs."""
    try:
        (zram / "reset").write_text("1")
    except OSError:
        return False
    return True


@contextmanager
def queue_setting(disk: Disk, name: str, value: str) -> Iterator[None]:
    """An attribute of the disk's queue, restored afterwards: the loop device is used again by others."""
    attribute = Path("/sys/block") / disk.name / "queue" / name
    text = attribute.read_text().strip()
    before = text[text.index("[") + 1 : text.index("]")] if "[" in text else text
    attribute.write_text(value)
    try:
        yield
    finally:
        attribute.write_text(before)


@contextmanager
def mounted(device: str, where: Path, *options: str) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    run("mount", *options, device, str(where))
    try:
        yield where
    finally:
        until(lambda: is_released(where), f"{where} stays in use")
        until(lambda: is_unmounted(device), f"{device} stays mounted in another namespace")


def is_released(where: Path) -> bool:
    """Unmounts it, unless it is in use: for a moment it is by whoever makes a mount namespace."""
    done = subprocess.run(["umount", where], capture_output=True, text=True)
    assert done.returncode == 0 or "busy" in done.stderr, done.stderr
    return done.returncode == 0


def is_unmounted(device: str) -> bool:
    """Everywhere: a mount namespace that another test has made meanwhile has the mounts of that moment, and until the last one is gone
    the file system goes on writing."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    return True


@contextmanager
def frozen(mnt: Path) -> Iterator[None]:
    """Writes to the file system hang meanwhile. It thaws whatever happens: nobody could even remove what lies on it."""
    run("fsfreeze", "--freeze", str(mnt))
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", str(mnt))
