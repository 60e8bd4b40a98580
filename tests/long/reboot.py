"""The host restarts and its disks come back under each other's names, or another disk in the place of one: each goes on under its own id,
a foreign one is refused by name beside the other, and what comes back is taken in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from agent.capture.maps import detach
from shared.errors import OtherDiskError
from tests.lab import Lab, lab
from tests.long.story import DISK_B, Result, Story, scratch, wait_until
from tests.loopdisk import own_device

RATE_MB: Final = 5
STARTED: Final = ("azurite", "config-server", "process-server", "master-target", "agent")
"""In this order, and stopped in the other."""
PROBE_B: Final = 4096


def reboot() -> Result:
    with scratch() as folder, two_places(folder) as host, ExitStack() as stack:
        a, b = host.places
        file_a, file_b = host.files
        host.attach({a: file_a, b: file_b})
        site = stack.enter_context(lab([a, b], point_interval=5, segment_seconds=2))
        id_a, id_b = Path(a).name, Path(b).name
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, [a, b], RATE_MB))
        whole = {new_epoch(site, 0, {id_a: a, id_b: b})}
        time.sleep(11)

        # Names are swapped, and back. Somebody writes before the agent is there.
        for devices in ([b, a], [a, b]):
            story.stop()
            host.restart(site, dict(zip(devices, (file_a, file_b), strict=True)))
            story.go_on(devices)
            start(site)
            whole.add(new_epoch(site, max(whole), {id_a: devices[0], id_b: devices[1]}))
            story.expect(site.create_point()["id"], story.total)
            time.sleep(11)
        story.stop()

        # Another disk stands where one of them did.
        foreign = folder / "foreign"
        foreign.write_bytes(os.urandom(DISK_B))
        host.restart(site, {a: foreign, b: file_b})
        start(site)
        alone = new_epoch(site, max(whole), {id_b: b})
        refused = {error["object"]: error for error in site.machine()["errors"]}
        if refused[f"lab/{id_a}"]["code"] != OtherDiskError.code:
            raise AssertionError(f"the foreign disk is not refused by name: {refused}")
        check_still_protected(site, folder, b)

        # The right one comes back while the agent runs.
        host.attach({a: file_a})
        whole.add(new_epoch(site, alone, {id_a: a, id_b: b}))
        story.go_on([a, b])
        time.sleep(11)
        story.stop()
        result = story.check_every_point(site, 8, epochs=whole)
        story.check_latest(site)
        return {"epochs": sorted(whole), "refused": refused[f"lab/{id_a}"]["cause"], **result}


class Host:
    """Two places for loop disks, and the files that are the machine's disks."""

    def __init__(self, folder: Path, places: list[str]) -> None:
        self.places = places
        self.files = [folder / "disk-a", folder / "disk-b"]
        for file in self.files:
            with file.open("xb") as made:
                made.truncate(DISK_B)

    def attach(self, files: dict[str, Path]) -> None:
        """What stands in these places is exchanged."""
        for place in files:
            self._empty(place)
        for place, file in files.items():
            subprocess.run(["losetup", place, str(file)], check=True)

    def restart(self, site: Lab, files: dict[str, Path]) -> None:
        """Everything that a restart of the host ends; the disks are there again afterwards, the daemons are not."""
        for daemon in reversed(STARTED):
            site.stop(daemon)
        detach(Path(tomllib.loads((site.folder / "agent.toml").read_text())["pin_dir"]))
        self.attach(files)

    def _empty(self, place: str) -> None:
        backing = Path(f"/sys/block/{Path(place).name}/loop/backing_file")
        if backing.exists():
            subprocess.run(["losetup", "--detach", place], check=True)
            wait_until(lambda: not backing.exists(), f"{place} stays in use", 30)


@contextlib.contextmanager
def two_places(folder: Path) -> Iterator[Host]:
    with own_device() as a, own_device() as b:
        yield Host(folder, [a, b])


def start(site: Lab) -> None:
    for daemon in STARTED:
        site.start(daemon)


def new_epoch(site: Lab, after: int, places: dict[str, str]) -> int:
    """Waits until an epoch that follows `after` is in order, over these disks in these places (by id); its number."""
    wait_until(lambda: site.machine()["epoch"] > after, f"no epoch followed {after}", 120)
    site.wait_ordered(120)
    machine = site.machine()
    found = {disk["name"]: disk["device"] for disk in machine["disks"]}
    if found != places:
        raise AssertionError(f"the disks are {found}, not {places}: {machine['errors']}")
    return int(machine["epoch"])


def check_still_protected(site: Lab, folder: Path, device: str) -> None:
    """What is written to the disk is in the next point. Its content is put back afterwards."""
    with Path(device).open("r+b", buffering=0) as disk:
        before = disk.read(PROBE_B)
        try:
            write_through(disk, os.urandom(PROBE_B))
            target = folder / "alone"
            site.run("restore", "lab", "--point", site.create_point()["id"], "--to", str(target))
            images = sorted(path.name for path in target.glob("*.raw"))
            if images != [f"{Path(device).name}.raw"]:
                raise AssertionError(f"the point holds {images}")
            subprocess.run(["cmp", device, str(target / images[0])], check=True)
            shutil.rmtree(target)
        finally:
            write_through(disk, before)


def write_through(disk: Any, content: bytes) -> None:
    os.pwrite(disk.fileno(), content, 0)
    os.fsync(disk.fileno())
