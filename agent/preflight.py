"""`python -m agent preflight DEVICE…`: could these disks be protected, in which mode, and why not better?

Leaves nothing behind: it loads the programs, lets them watch one 4-KiB read of each disk, and unloads them.
Nothing is written, pinned, mounted or configured. Exit code: 0 if every disk can be protected, else that of
the first problem.
"""

from __future__ import annotations

import argparse
import enum
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.capture import answer, attach, disks, identify, suitable
from agent.capture.binding import Identity, Kind
from agent.capture.calibrate import Calibration
from agent.capture.disks import Disk
from shared.daemon.limits import check_page_blob_target
from shared.errors import DeviceError, DiskTooLargeError, UnderstudyError, UnsuitableDiskError

_BITMAP_B_PER_TIB: Final = 24 << 20
_GIB: Final = 1 << 30
_TIB: Final = 1 << 40


class Mode(enum.Enum):
    ORDERED = "ordered"
    BITMAP = "bitmap"
    SCAN = "scan"


GUARANTEES: Final = {
    Mode.ORDERED: "every write is copied in order: recovery points at any moment",
    Mode.BITMAP: "changed blocks are known, their order is not: the copy follows, but never makes a recovery point",
    Mode.SCAN: "changes are not seen at all: only comparing whole disks would find them (not in this version)",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one device would get. Without `error` it can be protected, in `mode`."""

    device: str
    error: UnderstudyError | None = None
    disk: Disk | None = None
    mode: Mode | None = None
    cause: str = ""
    """Why the mode is not ordered."""
    notes: tuple[str, ...] = ()
    identity: Identity | None = None
    """What the disk would be bound by."""

    def as_dict(self) -> dict[str, object]:
        row: dict[str, object] = {"device": self.device, "protectable": self.error is None}
        if self.error:
            row["error"] = self.error.as_dict()
        if self.disk:
            row |= {
                "name": self.disk.name,
                "bytes": self.disk.bytes,
                "serial": self.disk.serial,
                "kind": "bio-based" if self.disk.bio_based else "blk-mq",
                "kernel_memory_bytes": bitmap_memory_b(self.disk),
            }
        if self.identity:
            row["identity"] = str(self.identity)
        if self.mode:
            row |= {"mode": self.mode.value, "guarantee": GUARANTEES[self.mode], "cause": self.cause}
        return row | {"notes": list(self.notes)}


_BY_TABLE: Final = (
    "it has no serial number, and is told from others by its partition table: a clone of it looks the same"
)
_WEAK: Final = {
    Kind.GPT: _BY_TABLE,
    Kind.MBR: _BY_TABLE,
    Kind.BY_PATH: "nothing identifies it but the port that it is plugged into: another disk there is taken for it",
    Kind.NAME: "it has no serial number: after a reboot it cannot be told from another disk of its name and size",
}
Rehearse = Callable[[Sequence[Disk]], Calibration]


def examine(
    devices: Sequence[str],
    *,
    sysfs: Path = disks.SYSFS,
    check_machine: Callable[[], None] = attach.check_machine,
    rehearse: Rehearse = attach.rehearse,
    ask: Callable[[Sequence[str]], dict[str, answer.Answer]] = answer.ask,
) -> list[Finding]:
    """One finding per device. The parameters are the machine; tests give others."""
    machine_error: DeviceError | None = None
    try:
        check_machine()
    except DeviceError as exc:
        machine_error = exc
    return [_examine(device, sysfs, machine_error, rehearse, ask) for device in devices]


def _examine(
    device: str,
    sysfs: Path,
    machine_error: DeviceError | None,
    rehearse: Rehearse,
    ask: Callable[[Sequence[str]], dict[str, answer.Answer]],
) -> Finding:
    try:
        disk = disks.find_disk(Path(device), sysfs=sysfs)
    except UnderstudyError as exc:
        return Finding(device, exc)
    try:
        suitable.check(disk, sysfs=sysfs)
    except UnderstudyError as exc:
        return Finding(device, exc, disk)
    notes = []
    if not disk.iostats:
        notes.append(
            "the kernel does not count its sectors (iostats = 0): switch that on, else capture cannot be audited"
        )
    try:
        check_page_blob_target(disk.name, disk.bytes)
    except DiskTooLargeError as exc:
        notes.append(f"as a page blob it cannot be kept: {exc.cause}. {exc.action}")
    told = ask([str(disk.path)])[str(disk.path)]
    if told.cause:
        return Finding(device, UnsuitableDiskError(f"{device} cannot be protected", cause=told.cause), disk)
    identity = identify.identities(disk, told)[0]
    if note := _WEAK.get(identity.kind):
        notes.append(note)
    error = machine_error
    if not error:
        try:
            calibration = rehearse([disk])
        except DeviceError as exc:
            error = exc
    if error:
        return Finding(device, error, disk, Mode.SCAN, error.cause, tuple(notes), identity)
    mode = Mode.BITMAP if calibration.cause else Mode.ORDERED
    return Finding(device, None, disk, mode, calibration.cause, tuple(notes), identity)


def bitmap_memory_b(disk: Disk) -> int:
    """Kernel memory for the disk's three bitmaps."""
    return -(-disk.bytes * _BITMAP_B_PER_TIB // _TIB)


def exit_code(findings: Sequence[Finding]) -> int:
    return next((finding.error.exit_code for finding in findings if finding.error), 0)


def as_text(findings: Sequence[Finding], release: str) -> str:
    lines = [f"Kernel {release}"]
    for finding in findings:
        disk = finding.disk
        size = f"  {_size(disk.bytes)}  {_kind(disk)}" if disk else ""
        mode = finding.mode.value if finding.mode else "none"
        lines += ["", f"{finding.device}{size}", f"  mode   {mode}"]
        if finding.mode:
            lines.append(f"  means  {GUARANTEES[finding.mode]}")
        if finding.error:
            lines.append(f"  error  {finding.error.code} {finding.error}")
        elif finding.cause:
            lines.append(f"  why    {finding.cause}")
        if finding.identity:
            lines.append(f"  bound  by {finding.identity}")
        lines += [f"  note   {note}" for note in finding.notes]
    return "\n".join(lines)


def _size(size_b: int) -> str:
    return f"{size_b / _GIB:.1f} GiB" if size_b >= _GIB else f"{size_b / (1 << 20):.1f} MiB"


def _kind(disk: Disk) -> str:
    return "bio-based" if disk.bio_based else "blk-mq"


def main(argv: Sequence[str]) -> int:
    """Prints what was found and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m agent preflight", description="Says whether disks can be protected, and how well."
    )
    parser.add_argument("devices", nargs="+", metavar="DEVICE")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    findings = examine(options.devices)
    if options.output == "json":
        report = {"kernel": platform.release(), "devices": [finding.as_dict() for finding in findings]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(findings, platform.release()) + "\n")
    return exit_code(findings)
