"""`make demo`: the main job, end to end, on this host, with nothing simulated but the disks (loop devices) and Azure (Azurite).

Two disks with file systems are written by a running workload. It protects them under load; recovery points appear; then the source is
lost in the middle of a write. The disks are restored from blob storage, checked with fsck, mounted, and every file is compared with
the checksum in its name. Exit code 0 only if all of it held.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.loopdisk import attached, loop_disk

DISK_B: Final = 320 << 20
UNDERSTUDY: Final = str(Path(sys.executable).with_name("understudy"))
FILE_SYSTEMS: Final = ("ext4", "xfs")
OPTIONS: Final = {"ext4": "rw", "xfs": "nouuid"}
"""XFS refuses a second file system of the same identity: here the source is still mounted."""
UNDER_LOAD_S: Final = 20.0


def main() -> int:
    if os.geteuid() != 0:
        print("demo: must run as root (loop devices, BPF); use: sudo make demo", file=sys.stderr)
        return 2
    folder = Path("/dev/shm") / f"understudy-demo-{secrets.token_hex(3)}"
    lab = Path("/tmp") / folder.name
    folder.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            return run(folder, lab, stack)
    except (DemoError, subprocess.CalledProcessError) as exc:
        print(f"\ndemo FAILED: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class DemoError(Exception):
    """Something did not hold."""


def run(folder: Path, lab: Path, stack: contextlib.ExitStack) -> int:
    say("Source: two disks, ext4 and xfs, with a workload that writes files all the time")
    devices = [stack.enter_context(loop_disk(folder / f"source-{kind}", DISK_B)) for kind in FILE_SYSTEMS]
    mounts = [
        stack.enter_context(mounted(device, folder / f"mnt-{kind}", make=kind))
        for device, kind in zip(devices, FILE_SYSTEMS, strict=True)
    ]
    workload = subprocess.Popen([sys.executable, "-m", "tests.system.workload", *map(str, mounts)])
    stack.callback(ended, workload)

    say("Understudy: a whole installation on this host; initial replication while the workload runs")
    stack.callback(understudy_quiet, "lab", "down", "--dir", str(lab), "--wipe", "--yes")
    disks = [argument for device in devices for argument in ("--disk", device)]
    understudy("lab", "up", "--dir", str(lab), *disks, "--point-interval", "5", "--segment-seconds", "2")
    os.environ["UNDERSTUDY_LAB"] = str(lab)
    began = time.monotonic()
    understudy("machine", "wait", "lab", "--for", "ordered", "--timeout", "90")
    initial_s = time.monotonic() - began

    say(
        f"Protected. The workload goes on for {UNDER_LOAD_S:.0f} s; points are made every 5 s, and one on request"
    )
    time.sleep(UNDER_LOAD_S)
    understudy("point", "create", "lab", "--wait")
    points = read("point", "list", "lab")
    understudy("machine", "show", "lab")

    say("Disaster: the machine dies in the middle of a write")
    workload.send_signal(signal.SIGKILL)
    disaster = time.time()
    workload.wait()
    understudy("lab", "kill", "agent", "--dir", str(lab))
    written_b = sum(used_b(mount) for mount in mounts)

    say("Recovery: the latest point, from blob storage")
    target = folder / "restored"
    began = time.monotonic()
    understudy("restore", "lab", "--point", "latest", "--to", str(target))
    restore_s = time.monotonic() - began

    files, newest = 0, 0.0
    for device, kind in zip(devices, FILE_SYSTEMS, strict=True):
        image = target / f"{Path(device).name}.raw"
        if image.stat().st_size != DISK_B:
            raise DemoError(f"{image} has {image.stat().st_size} bytes, the disk had {DISK_B}")
        with (
            attached(image) as restored,
            mounted(restored, folder / f"check-{kind}", options=OPTIONS[kind]) as mount,
        ):
            checked, last = check_files(mount)
            files += checked
            newest = max(newest, last)
        fsck(image, kind)
    if not files:
        raise DemoError("the restored disks hold no files at all")
    table(
        {
            "data on the source": f"{written_b / 1e6:.0f} MB in use on {len(devices)} disks of {DISK_B >> 20} MiB",
            "initial replication": f"{initial_s:.1f} s, under load",
            "recovery points": f"{len(points)}",
            "RPO at the disaster": f"{disaster - newest:.1f} s",
            "time to restore": f"{restore_s:.1f} s",
            "files checked": f"{files}, every checksum right",
            "verdict": "RECOVERED: fsck clean, both file systems mounted",
        }
    )
    return 0


def say(text: str) -> None:
    print(f"\n[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


def understudy(*arguments: str) -> None:
    print(f"$ understudy {' '.join(arguments)}", flush=True)
    if (code := subprocess.run([UNDERSTUDY, "--output", "table", *arguments]).returncode) != 0:
        raise DemoError(f"`understudy {' '.join(arguments)}` ended with exit code {code}")


def understudy_quiet(*arguments: str) -> None:
    subprocess.run([UNDERSTUDY, *arguments], capture_output=True, check=False)


def read(*arguments: str) -> Any:
    output = subprocess.run([UNDERSTUDY, *arguments, "--output", "json"], check=True, capture_output=True)
    return json.loads(output.stdout)


@contextlib.contextmanager
def mounted(device: str, where: Path, *, make: str = "", options: str = "rw") -> Iterator[Path]:
    if make:
        subprocess.run([f"mkfs.{make}", "-q", *(["-F"] if make == "ext4" else ["-f"]), device], check=True)
    where.mkdir()
    subprocess.run(["mount", "-o", options, device, str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def check_files(mount: Path) -> tuple[int, float]:
    """How many files the workload had finished there, each compared with its name, and when the newest was written."""
    count, newest = 0, 0.0
    for path in mount.glob("done/*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            raise DemoError(f"{path} does not have the contents that were written")
        count += 1
        newest = max(newest, path.stat().st_mtime)
    return count, newest


def fsck(image: Path, kind: str) -> None:
    """The journal was replayed by mounting; now nothing may be left to repair."""
    command = ["e2fsck", "-f", "-n", str(image)] if kind == "ext4" else ["xfs_repair", "-n", "-f", str(image)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"{' '.join(command)} found damage:\n{done.stdout}{done.stderr}")


def used_b(mount: Path) -> int:
    status = os.statvfs(mount)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def ended(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
