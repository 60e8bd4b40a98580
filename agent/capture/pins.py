"""Pins: where capture lives while no agent runs. Maps and links pinned in a folder of bpffs keep the
programs attached.

A folder of pins is made under another name and renamed when everything in it is complete, and it gets that name back before anything
in it is removed. So what has the right name is whole, unless somebody else removed something of it (`attach.read_pinned` looks); a folder
with the other name is what a killed attachment or detachment left, and is removed by the next. Unpinning a link detaches its program.

While capture is attached afresh, the agent's state of the one before is pinned beside the folder (`former`): `fitting.attach_all`.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from agent.capture import libbpf
from shared import crashpoints
from shared.errors import BpfError, DetachError, DeviceError

_BPFFS: Final = Path("/sys/fs/bpf")
_LINK_PREFIX: Final = "link-"
_NEXT_PREFIX: Final = "next-"
"""A link that will take the place of the one of the same name: bpffs renames over what is there in one step."""
_GONE_WITHIN_S: Final = 10.0


def staging(pin_dir: Path) -> Path:
    return pin_dir.with_name(f"{pin_dir.name}-incomplete")


def former(pin_dir: Path) -> Path:
    """The state of the capture before, while the next one is not attached. Beside a folder that is there it means nothing."""
    return pin_dir.with_name(f"{pin_dir.name}-former")


def ensure_bpffs(pin_dir: Path) -> None:
    """Mounts bpffs at its usual place if `pin_dir` wants to be there; raises DeviceError if `pin_dir` would
    not be in a bpffs."""
    if pin_dir.is_relative_to(_BPFFS) and not os.path.ismount(_BPFFS):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(_BPFFS), b"bpf", ctypes.c_ulong(0), None) != 0:
            raise DeviceError(
                f"{_BPFFS} could not be mounted",
                cause=os.strerror(ctypes.get_errno()),
                action=f"Run as root, on a kernel with BPF: mount -t bpf bpf {_BPFFS}.",
            )
    existing = next(parent for parent in (pin_dir, *pin_dir.parents) if parent.exists())
    if _filesystem_type(existing) != libbpf.BPFFS_MAGIC:
        raise DeviceError(
            f"Capture cannot be pinned at {pin_dir}",
            cause=f"{existing} is not in a BPF file system",
            action=f"Choose a folder below {_BPFFS}.",
        )


def exist(pin_dir: Path) -> bool:
    """Whether something is pinned there; an empty folder is nothing."""
    return pin_dir.is_dir() and any(pin_dir.iterdir())


def publish(pin_dir: Path) -> None:
    """Gives the complete staging folder its name."""
    staging(pin_dir).rename(pin_dir)


def remove(folder: Path) -> None:
    """Removes a folder of pins; links first, since they do something."""
    if not folder.is_dir():
        return
    for path in sorted(
        folder.iterdir(), key=lambda path: not path.name.startswith((_LINK_PREFIX, _NEXT_PREFIX))
    ):
        path.unlink()
    folder.rmdir()


def link_path(folder: Path, program: str) -> Path:
    return folder / f"{_LINK_PREFIX}{program}"


def next_path(folder: Path, program: str) -> Path:
    return folder / f"{_NEXT_PREFIX}{program}"


def link_paths(folder: Path) -> list[Path]:
    """Links in force, and those of an upgrade that was not finished."""
    return sorted([*folder.glob(f"{_LINK_PREFIX}*"), *next_paths(folder)])


def next_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_NEXT_PREFIX}*"))


def unlinked(folder: Path, wanted: Iterable[str]) -> list[str]:
    """Which of these programs are not attached any more."""
    return [program for program in wanted if not link_path(folder, program).exists()]


def programs(folder: Path) -> list[str]:
    """The programs that are attached."""
    return [path.name.removeprefix(_LINK_PREFIX) for path in sorted(folder.glob(f"{_LINK_PREFIX}*"))]


def program_ids(folder: Path, leave_out: Collection[str] = (), *, also_next: bool = True) -> dict[int, int]:
    """Program id by link id, of the pinned links but those of the programs to `leave_out`."""
    ids = {}
    left_out = {path(folder, program) for program in leave_out for path in (link_path, next_path)}
    for path in link_paths(folder):
        if path in left_out or (not also_next and path.name.startswith(_NEXT_PREFIX)):
            continue
        fd = libbpf.get(path)
        try:
            info = libbpf.link_info(fd)
        finally:
            os.close(fd)
        ids[info.id] = info.prog_id
    return ids


def detach(pin_dir: Path, *, keep_former: bool = False) -> None:
    """Removes every trace of a capture from the kernel, and proves it: its pins, links and programs are
    gone when this returns. `keep_former`: but that one.

    No pins: nothing to do. Its maps go with the last process that has them open. Raises DetachError if
    something stays attached, which takes somebody else who holds a link of ours open.
    """
    ids: dict[int, int] = {}
    for folder in (staging(pin_dir), pin_dir):
        if folder.is_dir():
            ids |= program_ids(folder)
            if (
                folder == pin_dir
            ):  # a kill in between must not leave maps without links under a name that says: whole
                folder = folder.rename(staging(pin_dir))
            crashpoints.reach("attach.in-detach")
            remove(folder)
    if not keep_former:
        former(pin_dir).unlink(missing_ok=True)
    remove_empty(pin_dir.parent)
    links, programs = wait_until_gone(ids, ids.values())
    if links or programs:
        raise DetachError(
            f"Capture pinned at {pin_dir} is still attached",
            cause=held(links, programs),
            action="End what holds it (an agent that was detached by force, bpftool, a monitoring tool), then do it again: start the "
            "agent, or detach.",
        )


def wait_until_gone(links: Collection[int], programs: Collection[int]) -> tuple[set[int], set[int]]:
    """Until these, whose last pins were removed, are no more; what is left of them when that takes too long. The kernel lets go of each
    link in a worker of its own, after a grace period: until then its program runs. Nothing tells when."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    pause_s = 0.001
    while True:
        left = _known(libbpf.links()) & {*links}, _known(libbpf.programs()) & {*programs}
        if not any(left) or time.monotonic() > deadline:
            return left
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)


def held(links: Collection[int], programs: Collection[int]) -> str:
    """That somebody holds them, for people."""
    names = [f"link {link}" for link in sorted(links)] + [
        f"program {program}" for program in sorted(programs)
    ]
    return f"something holds its BPF {', '.join(names)} open"


def remove_empty(folder: Path) -> None:
    """Removes the folders above the pins that nobody else uses, up to the mount point."""
    while folder.is_dir() and not os.path.ismount(folder):
        try:
            folder.rmdir()
        except OSError:  # somebody else's pins are in it
            return
        folder = folder.parent


def _known(infos: Iterable[libbpf.LinkInfo | libbpf.ProgramInfo]) -> set[int]:
    return {info.id for info in infos}


def _filesystem_type(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()  # struct statfs: f_type comes first
    if libc.statfs(os.fsencode(path), buffer) != 0:
        raise BpfError(f"{path} could not be looked at", cause=os.strerror(ctypes.get_errno()))
    return int(buffer[0])
