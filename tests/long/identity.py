"""Mixed workloads on a file system; afterwards the restored disks are identical to the source, byte by byte, and the audit is exact."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.lab import Lab, lab
from tests.long.story import Result, scratch, two_disks

MKFS: Final = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-m", "raid1", "-d", "single"],
}
DISK_B: Final = 320 << 20
"""XFS wants more than 300 MB."""
FIO_SIZE: Final = "12m"
FIO: Final = {
    "direct": ["--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=io_uring", "--iodepth=16"],
    "large": ["--rw=write", "--bs=1m", "--direct=1", "--ioengine=libaio", "--iodepth=4"],
    "sub-page": ["--rw=randwrite", "--bs=512", "--direct=1", "--ioengine=psync"],
    "nowait": [
        "--rw=randwrite",
        "--bs=4k",
        "--direct=1",
        "--ioengine=pvsync2",
        "--nowait=1",
        "--overwrite=1",
    ],
    "buffered": ["--rw=randwrite", "--bssplit=512/30:4k/40:60k/30", "--ioengine=psync", "--fsync=32"],
    "mapped": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
}


def identity_of(kind: str) -> Result:
    """One file system, over two disks where it can (btrfs), else one on each."""
    with (
        scratch() as folder,
        two_disks(folder, DISK_B) as devices,
        lab(devices, point_interval=10, segment_seconds=2) as site,
    ):
        together = kind == "btrfs"
        targets = [devices] if together else [[device] for device in devices]
        for i, members in enumerate(targets):
            subprocess.run([*MKFS[kind], *members], check=True)
            where = folder / f"mnt-{i}"
            where.mkdir()
            subprocess.run(["mount", "-o", "discard", members[0], str(where)], check=True)
            try:
                ran = workloads(where)
            finally:
                subprocess.run(["umount", str(where)], check=True)
        site.wait_ordered(120)
        return {"workloads": ran, **compare(site, folder)}


def identity_over_md() -> Result:
    """One file system over an md linear of both disks, where the kernel has md; a kernel without it is reported, not skipped over."""
    if not Path("/proc/mdstat").exists():
        return {"lacking": "this kernel has no md: nothing was tested"}
    with (
        scratch() as folder,
        two_disks(folder, DISK_B) as devices,
        lab(devices, point_interval=10, segment_seconds=2) as site,
    ):
        md = "/dev/md/understudy-test"
        build = ["mdadm", "--build", md, "--level=linear", "--raid-devices=2", "--run", *devices]
        subprocess.run(build, check=True)
        try:
            subprocess.run([*MKFS["ext4"], md], check=True)
            (folder / "mnt").mkdir()
            subprocess.run(["mount", md, str(folder / "mnt")], check=True)
            try:
                ran = workloads(folder / "mnt")
            finally:
                subprocess.run(["umount", str(folder / "mnt")], check=True)
        finally:
            subprocess.run(["mdadm", "--stop", md], check=True)
        site.wait_ordered(120)
        return {"workloads": ran, **compare(site, folder)}


def workloads(where: Path) -> list[str]:
    """Runs all of them in one file system; the names of those that could run here."""
    ran = []
    for name, options in FIO.items():
        # RWF_NOWAIT may be refused by the file system (EAGAIN, EOPNOTSUPP): that is part of the test, not a failure of it.
        done = subprocess.run(
            [
                "fio",
                f"--name={name}",
                f"--directory={where}",
                f"--size={FIO_SIZE}",
                "--randrepeat=0",
                *options,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            ran.append(name)
        elif name != "nowait":
            raise AssertionError(f"fio {name}: {done.stdout}{done.stderr}")
    subprocess.run(["cp", "-r", "/usr/include/linux", str(where / "tree")], check=True)
    subprocess.run(["tar", "-cf", str(where / "tree.tar"), "-C", str(where), "tree"], check=True)
    shutil.rmtree(where / "tree")
    (where / "large.0.0").unlink()
    subprocess.run(["fstrim", str(where)], check=True)
    subprocess.run(["cp", str(where / "tree.tar"), str(where / "again.tar")], check=True)
    return [*ran, "copy", "tar", "delete", "fstrim"]


def compare(site: Lab, folder: Path) -> Result:
    """A point of now, restored and compared with the disks; and the audit's verdict."""
    point = site.create_point()
    images = site.restore(point["id"], folder / "restored")
    for device, image in zip(site.devices, images, strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)
    audit = site.machine()["audit"]
    inexact = {name: disk for name, disk in audit["disks"].items() if disk["outcome"] != "exact"}
    if inexact:
        raise AssertionError(f"the audit is not exact: {inexact}")
    return {"point": point["id"], "audit": audit["disks"]}
