"""One disk of a machine is ill beside one that is well: read-only, gone, hung, failing, odd in size; at the agent's start, and while it
runs. Throughout, the one that is well has points that hold what was written to it; the ill one is an error by its name where it is
left out, and is taken in again when it is well."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from agent.capture.maps import detach
from tests.lab import Lab, lab
from tests.long.story import Result, Story, scratch, wait_until
from tests.loopdisk import loop_disk, own_device
from tests.sick_disk import SickDisk, sick_disk

DISK_B: Final = 32 << 20
LARGE_B: Final = 2 << 30
"""Half of it is more than there is room to name."""
RATE_MB: Final = 2
ILL_S: Final = 15
"""How long a disk is ill under an agent that runs: longer than a look for disks takes."""
LEFT_OUT: Final = {"US404", "US415"}


class Machine:
    """Three disks: one that is well and written to, a file under a loop device, and one that hangs and fails when it is told to."""

    def __init__(self, site: Lab, story: Story, place: str, file: Path, sick: SickDisk) -> None:
        self.site = site
        self.story = story
        self.well, self.place, self.sick = (Path(device).name for device in site.devices)
        self._place, self._file, self._sick = place, file, sick

    # ---- what becomes of its disks ----

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        with self.gone():
            self._attach("--read-only")
            yield
            self._detach()

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        self._detach()
        yield
        self._attach()

    @contextlib.contextmanager
    def odd(self) -> Iterator[None]:
        """Blocks of 4096 bytes, and a file that ends within one."""
        with self.gone():
            os.truncate(self._file, DISK_B + 3 * 512)
            self._attach("--sector-size", "4096")
            yield
            self._detach()
            os.truncate(self._file, DISK_B)

    @contextlib.contextmanager
    def turned_read_only(self) -> Iterator[None]:
        subprocess.run(["blockdev", "--setro", self._place], check=True)
        try:
            yield
        finally:
            subprocess.run(["blockdev", "--setrw", self._place], check=True)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Nobody writes to it meanwhile: what is on a disk that fails a write has to be read, and order waits for that (decision 0009)."""
        self._sick.fail()
        try:
            yield
        finally:
            self._sick.well()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Somebody writes to it just then."""
        self._sick.hang()
        write = [
            "dd",
            "if=/dev/urandom",
            f"of=/dev/{self.sick}",
            "bs=64k",
            "count=1",
            "oflag=direct",
            "status=none",
        ]
        with subprocess.Popen(write, stderr=subprocess.DEVNULL):
            try:
                yield
            finally:
                self._sick.well()

    def _detach(self) -> None:
        subprocess.run(["losetup", "--detach", self._place], check=True)
        wait_until(
            lambda: not Path(f"/sys/block/{self.place}/loop").exists(), f"{self._place} stays in use", 30
        )

    def _attach(self, *options: str) -> None:
        subprocess.run(["losetup", *options, self._place, str(self._file)], check=True)

    # ---- what is to be seen ----

    def restart_agent(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """As after a restart of the host: nothing is captured any more."""
        self.site.stop("agent")
        detach(Path(tomllib.loads((self.site.folder / "agent.toml").read_text())["pin_dir"]))
        meanwhile()
        self.site.start("agent")

    def protects(self, *disks: str, after: int, within_s: float = 180) -> int:
        """Waits for an epoch behind `after` over just these disks, in order; its number."""

        def is_so() -> bool:
            machine = self.site.machine()
            names = {disk["name"] for disk in machine["disks"]}
            return (machine["epoch"] > after, machine["state"], names) == (True, "ordered", {*disks})

        wait_until(is_so, f"not protected: {disks} behind epoch {after}", within_s, self.site.machine)
        return int(self.site.machine()["epoch"])

    def check_well(self, folder: Path) -> None:
        """A point of now holds what had been written to the disk that is well."""
        complete = self.story.writer.completed
        target = folder / "well"
        self.site.run("restore", "lab", "--point", self.site.create_point()["id"], "--to", str(target))
        at_most = self.story.writer.completed + 1
        image = target / f"{self.well}.raw"
        self.story.checker().check([image], at_least=complete, at_most=at_most)
        shutil.rmtree(target)

    def error_of(self, disk: str) -> dict[str, Any]:
        """What is said of the disk that is left out; waits until it is said."""

        def found() -> list[dict[str, Any]]:
            errors = self.site.machine()["errors"]
            return [e for e in errors if e["object"] == f"lab/{disk}" and e["code"] in LEFT_OUT]

        wait_until(lambda: bool(found()), f"{disk} is not said to be left out", 60, self.site.machine)
        error = found()[0]
        if not error["cause"] or not error["action"]:
            raise AssertionError(f"no cause or no way out: {error}")
        return error


def ailing() -> Result:
    with scratch() as folder, own_device() as place, ExitStack() as stack:
        well = stack.enter_context(loop_disk(folder / "well.img", DISK_B))
        sick = stack.enter_context(sick_disk(folder / "sick.img", DISK_B, limit_s=600))
        file = folder / "file.img"
        file.write_bytes(bytes(DISK_B))
        subprocess.run(["losetup", place, str(file)], check=True)
        site = stack.enter_context(lab([well, place, sick.device], point_interval=5, segment_seconds=2))
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, [well], RATE_MB, DISK_B))
        machine = Machine(site, story, place, file, sick)
        at_start = {name: ill_at_start(machine, folder, name) for name in AT_START}
        running = {name: ill_while_running(machine, folder, name) for name in RUNNING}
        unread = {name: ill_while_unread(machine, folder, name) for name in UNREAD}
        story.stop()
        return {"at_start": at_start, "running": running, "unread": unread, "writes": story.total}


def out_of_room() -> Result:
    """A leg of one disk goes away, more than can be named, while all has to be read: the well disk goes on without it, and has points; the
    other is taken in again by itself when the leg is back."""
    with scratch() as folder, ExitStack() as stack:
        well = stack.enter_context(loop_disk(folder / "well.img", DISK_B))
        sick = stack.enter_context(sick_disk(folder / "sick.img", LARGE_B))
        place = stack.enter_context(loop_disk(folder / "file.img", DISK_B))
        site = stack.enter_context(lab([well, place, sick.device], point_interval=5, segment_seconds=2))
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, [well], RATE_MB, DISK_B))
        machine = Machine(site, story, place, folder / "file.img", sick)
        before = site.machine()["epoch"]
        sick.lose_leg()
        site.run("machine", "resync", "lab", "--yes")
        began = time.monotonic()
        wait_until(lambda: "US594" in _codes(site), "that room lacks is not said", 2400, site.machine)
        full_s = time.monotonic() - began
        without = machine.protects(machine.well, machine.place, after=before + 1, within_s=600)
        alone_s = time.monotonic() - began
        machine.check_well(folder)
        if "US594" not in _codes(site):
            raise AssertionError(f"the disk that is left out is not named: {site.machine()['errors']}")
        sick.well()
        machine.protects(machine.well, machine.place, machine.sick, after=without)
        machine.check_well(folder)
        story.stop()
        return {"full_s": round(full_s), "alone_s": round(alone_s), "writes": story.total}


def _codes(site: Lab) -> set[str]:
    return {error["code"] for error in site.machine()["errors"]}


AT_START: Final[dict[str, tuple[str, str]]] = {
    "read_only": ("place", "it is read-only"),
    "gone": ("place", "is empty"),
    "odd": ("place", ""),
    "hung": ("sick", "not answer"),
    "failing": ("sick", "reads of it fail"),
}
"""Which disk, and why it is left out; odd ones are not."""
RUNNING: Final = ("turned_read_only", "hung", "failing")
"""A loop device does not go away under an agent that has it open."""
UNREAD: Final = ("failing", "hung")
"""In this order: the second time it is waited for longer."""


def ill_at_start(machine: Machine, folder: Path, name: str) -> str:
    role, cause = AT_START[name]
    ill = getattr(machine, role)
    everything = {machine.well, machine.place, machine.sick}
    left = everything - {ill} if cause else everything
    epoch = machine.site.machine()["epoch"]
    began = time.monotonic()
    with ExitStack() as illness:
        machine.restart_agent(lambda: illness.enter_context(getattr(machine, name)()))
        epoch = machine.protects(*left, after=epoch)
        said = ""
        if cause:
            error = machine.error_of(ill)
            if cause not in error["cause"]:
                raise AssertionError(f"{name}: another cause than {cause!r}: {error}")
            said = error["cause"]
        machine.check_well(folder)
        if not cause:  # it is captured, and a loop device is not taken away from who has it open
            machine.restart_agent(illness.close)
    machine.protects(*everything, after=epoch)
    print(f"  {name} at a start: {said}, {time.monotonic() - began:.0f} s", flush=True)
    return said


def ill_while_running(machine: Machine, folder: Path, name: str) -> dict[str, Any]:
    """The epoch goes on, or a new one begins; points are made all the time, and in the end all disks are protected."""
    before = machine.site.machine()["epoch"]
    with getattr(machine, name)():
        end = time.monotonic() + ILL_S
        machine.check_well(folder)
        while time.monotonic() < end:
            machine.site.create_point()
        machine.check_well(folder)
        shown = [error["code"] for error in machine.site.machine()["errors"]]
    machine.protects(machine.well, machine.place, machine.sick, after=before - 1)
    machine.check_well(folder)
    result = {"epochs": machine.site.machine()["epoch"] - before, "shown": shown}
    print(f"  {name} while running: {result}", flush=True)
    return result


def ill_while_unread(machine: Machine, folder: Path, name: str) -> dict[str, Any]:
    """All disks are to be read, and one cannot be: the others go on without it, after a wait, and it is taken in when it is well."""
    before = machine.site.machine()["epoch"]
    began = time.monotonic()
    with getattr(machine, name)():
        machine.site.run("machine", "resync", "lab", "--yes")
        without = machine.protects(machine.well, machine.place, after=before + 1, within_s=300)
        alone_s = time.monotonic() - began
        machine.error_of(machine.sick)
        machine.check_well(folder)
    after = machine.protects(machine.well, machine.place, machine.sick, after=without)
    machine.check_well(folder)
    result = {"epochs": after - before, "alone_s": round(alone_s)}
    print(f"  {name} while it has to be read: {result}", flush=True)
    return result
