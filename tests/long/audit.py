"""Writes that capture misses, and writes that fail: both are found and repaired without a human."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
import time
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np

from agent.capture import layout, libbpf
from tests.lab import Lab, lab
from tests.long.identity import compare
from tests.long.story import Result, scratch, two_disks
from tests.loopdisk import loop_disk

SMALL_B: Final = 24 << 20


def missed_writes_are_found() -> Result:
    """Capture is told to ignore some writes: an event, a new epoch, and identity, by itself."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=5, segment_seconds=2) as site,
    ):
        site.wait_ordered(120)
        before = site.machine()
        time.sleep(3)  # the audit's baseline is fixed within its first looks
        missed_at = time.time()
        skip_writes(site, 5)
        write_blocks(devices[0], 8)
        site.create_point()
        deadline = time.monotonic() + 60
        while (epoch := site.machine()["epoch"]) == before["epoch"]:
            if time.monotonic() > deadline:
                raise AssertionError("missed writes were not found")
            time.sleep(0.5)
        site.wait_ordered(120)
        events = [event for event in site.read("event", "list") if event["code"] == "US416"]
        if not events:
            raise AssertionError("no event was raised")
        for point in site.points():
            made_at = datetime.fromisoformat(point["time"]).timestamp()
            doubtful = point["epoch"] == before["epoch"] and made_at > missed_at
            if doubtful and not point.get("suspect"):
                raise AssertionError(f"a point that lacks writes is not called suspect: {point}")
        return {"epochs": [before["epoch"], epoch], "event": events[0]["what"], **compare(site, folder)}


def failed_writes_leave_no_difference() -> Result:
    """A disk that returns EIO for some writes (a loop disk over a full file system): the replica is what is on the disk."""
    with scratch() as folder:
        full = folder / "full"
        full.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_B}", "none", str(full)], check=True)
        try:
            with (
                loop_disk(full / "disk", 2 * SMALL_B) as device,
                lab([device], point_interval=5, segment_seconds=2) as site,
            ):
                site.wait_ordered(120)
                failed = write_blocks(device, 2 * SMALL_B // 16384, 16384)
                if not failed:
                    raise AssertionError("no write failed")
                site.wait_ordered(120)
                return {"failed_writes": failed, **compare(site, folder)}
        finally:
            subprocess.run(["umount", str(full)], check=True)


def skip_writes(site: Lab, count: int) -> None:
    """Fault injection through the pinned map: the kernel programs ignore the next writes."""
    config = tomllib.loads((site.folder / "agent.toml").read_text())
    fd = libbpf.get(Path(config["pin_dir"]) / "control")
    memory = mmap.mmap(fd, layout.CONTROL.itemsize)
    np.frombuffer(memory, layout.CONTROL, 1)["skip"] = count
    os.close(fd)


def write_blocks(device: str, count: int, size: int = 4096) -> int:
    """Writes random blocks with O_DIRECT, one after the other; how many failed."""
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, size)
    end = os.lseek(fd, 0, os.SEEK_END)
    blocks = random.sample(range(end // size), count)
    failed = 0
    for block in blocks:
        buffer[:] = random.randbytes(size)
        try:
            os.pwrite(fd, buffer, block * size)
        except OSError as exc:
            if exc.errno not in (errno.EIO, errno.ENOSPC):
                raise
            failed += 1
    os.close(fd)
    return failed
