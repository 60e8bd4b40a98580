"""What a block device is, from sysfs. (Whether it can be protected: suitable.py.)

Pure reading: nothing is opened for writing, nothing is changed. `sysfs` is a parameter so that every kind
of disk can be tested.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from agent.capture import device_program
from agent.capture.device_program import text as _text
from shared.errors import DeviceNotFoundError, NotADiskError, cause_of

SYSFS: Final = Path("/sys")
GONE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
"""What the kernel says of a disk, or of an entry of sysfs, that is no more."""
_HANDING_ON: Final = frozenset({"linear", "faulty"})
HANDING_ON_UNCOUNTED: Final = "raid0"
"""Levels of md: `hider`."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What sysfs says of a disk's queue."""

    block_b: int
    counts: bool
    dax: bool
    zoned: bool
    iostats: bool = True
    """What the attribute says; whether anybody counts by it is another thing (`counts`)."""

    @staticmethod
    def of(texts: Sequence[str], *, has_requests: bool) -> Queue:
        """From the texts of the attributes (`device_program.QUEUE`)."""
        block_b, iostats, dax, zoned = texts
        return Queue(
            block_b=int(block_b) if block_b.isdigit() else 512,
            # Drivers without requests count by themselves, or not at all, whatever the attribute says.
            counts=iostats != "0" or not has_requests,
            dax=dax == "1",
            zoned=zoned not in ("", "-", "none"),
            iostats=iostats != "0",
        )


@dataclass(frozen=True, slots=True)
class Attributes:
    """What sysfs says of a disk, and may hang with it: whoever reads of the queue waits while somebody changes it and the disk does not
    answer; who reads a serial number may ask the device. Who may not hang takes them from `answer.attributes`."""

    queue: Queue
    names: Mapping[str, str]
    """By the attribute (`device_program.NAMES`), its text; empty where there is none."""
    diskseq: int = 0
    """Of whom this is said."""
    md_level: str = ""
    bcache_state: str = ""

    @staticmethod
    def of(texts: Sequence[str], *, has_requests: bool) -> Attributes:
        """From what `device_program.attributes` prints of one disk."""
        if not texts:
            return UNKNOWN
        diskseq, *rest = texts
        n = len(device_program.QUEUE)
        queue, (md_level, bcache_state), names = rest[:n], rest[n : n + 2], rest[n + 2 :]
        return Attributes(
            Queue.of(queue, has_requests=has_requests),
            dict(zip(device_program.NAMES, names, strict=True)),
            int(diskseq or 0),
            md_level,
            bcache_state,
        )


UNKNOWN: Final = Attributes(Queue(512, counts=True, dax=False, zoned=False), {})
"""Of a disk that does not answer: such a one is not taken in, and one that is captured stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A whole disk. Bound by `diskseq` within a boot, by `serial` across boots."""

    path: Path
    """As the user named it; stays usable."""
    name: str
    """The kernel's name, for example "loop0"."""
    major: int
    minor: int
    diskseq: int
    """Grows whenever a device number is given to another disk; 0 on kernels before 5.15."""
    sectors: int
    """Size in 512-byte sectors, down to a whole logical block: the rest nobody can read or write. 0 also where it is not known."""
    serial: str
    """WWN, serial number or the like; empty when the disk has none."""
    bio_based: bool
    """Takes bios without requests (md, dm, zram, nvme multipath heads); decides which hooks see its
    writes."""
    read_only: bool
    iostats: bool
    """The kernel counts its sectors: the audit needs that."""
    dax: bool
    zoned: bool
    slaves: tuple[str, ...]
    """Kernel names of the disks right below it."""
    multipath_holder: str
    """The multipath device that this disk is a path of, or empty."""
    hidden_by: str = ""
    """See `hider`."""
    names: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of its `Attributes`."""
    block_b: int = 512
    """A logical block, the least that can be read or written."""
    is_empty: bool = False
    """Sysfs says, beside the rest that it says, that it has no sectors: a drive without a medium. (A fixed disk says that, too, when its
    size could not be read: it is there, and does not answer.)"""
    id: str = ""
    """The stable id, once it is bound (agent/capture/binding.py); else the name, as blob names have it."""

    @property
    def bytes(self) -> int:
        return self.sectors * 512

    @property
    def device(self) -> str:
        """Where the kernel itself puts it, whatever becomes of the links to it."""
        return f"/dev/{self.name}"


def read_queue(folder: Path) -> Queue:
    """May hang."""
    texts = [_text(folder / "queue" / attribute) for attribute in device_program.QUEUE]
    return Queue.of(texts, has_requests=(folder / "mq").is_dir())


def read_attributes(folder: Path) -> Attributes:
    """May hang."""
    names = {name: _text(folder / name) for name in device_program.NAMES}
    over = (_text(folder / attribute) for attribute in device_program.OVER)
    return Attributes(read_queue(folder), names, _diskseq(folder), *over)


AttributesOf = Callable[[Path], Attributes]
"""By the disk's folder in sysfs."""


def find_disk(path: Path, *, sysfs: Path = SYSFS, attributes_of: AttributesOf = read_attributes) -> Disk:
    """The disk that `path` names. Raises DeviceNotFoundError, NotADiskError."""
    try:
        status = path.stat()
    except OSError as exc:
        raise DeviceNotFoundError(f"{path} does not exist", cause=cause_of(exc)) from exc
    if not stat.S_ISBLK(status.st_mode):
        raise NotADiskError(
            f"{path} cannot be protected",
            cause="it is not a block device",
            action="Name the disk, for example /dev/sdb.",
        )
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    folder = (sysfs / f"dev/block/{major}:{minor}").resolve()
    return describe(path, folder, major, minor, attributes_of, sysfs=sysfs)


def leads_to(path: str, disk: Disk) -> bool:
    """Whether a path, which an operator may have named, is the disk's now. Of one that leads nowhere, or in a circle, nothing is raised."""
    return os.path.realpath(path) == os.path.realpath(disk.path)


def describe(
    path: Path,
    folder: Path,
    major: int,
    minor: int,
    attributes_of: AttributesOf = read_attributes,
    *,
    sysfs: Path = SYSFS,
) -> Disk:
    """The disk whose sysfs folder is `folder`. Raises NotADiskError for a partition, DeviceNotFoundError
    when it is gone."""
    if not folder.is_dir():
        raise DeviceNotFoundError(f"{path} does not exist", cause=f"the kernel has no device {major}:{minor}")
    if (folder / "partition").exists():
        raise NotADiskError(
            f"{path} cannot be protected",
            cause="it is a partition",
            action=f"Protect the whole disk, /dev/{folder.parent.name}.",
        )
    attributes, diskseq = attributes_of(folder), _diskseq(folder)
    if attributes.diskseq != diskseq:  # they are of a disk that had this name before
        attributes = UNKNOWN
    queue, size = attributes.queue, _text(folder / "size")
    return Disk(
        path=path,
        name=folder.name.replace("!", "/"),
        major=major,
        minor=minor,
        diskseq=diskseq,
        sectors=_down_to_blocks(int(size or 0), queue.block_b),
        serial=_serial(attributes.names),
        names=attributes.names,
        bio_based=_is_bio_based(folder),
        read_only=_text(folder / "ro") == "1",
        iostats=queue.counts,
        dax=queue.dax,
        zoned=queue.zoned,
        slaves=tuple(entry.name for entry in entries(folder / "slaves")),
        multipath_holder=multipath_holder(folder),
        hidden_by=hider(folder, attributes_of, sysfs=sysfs),
        block_b=queue.block_b,
        is_empty=size == "0" and attributes is not UNKNOWN and _may_lack_medium(folder),
        id=folder.name,
    )


def hider(folder: Path, attributes_of: AttributesOf = read_attributes, *, sysfs: Path = SYSFS) -> str:
    """The device over the disk of this folder whose writes nobody sees enter the disk; empty where there is none. May hang, by default.

    The kernel announces a bio to devices without requests (`block_bio_queue`) once. A device that hands on the very bio that it was given
    has had it announced already, and what lies below, if it has no requests either, takes it unannounced. (What has requests announces
    the request.) Others make a bio of their own, which is announced. To hand on what they are given is the way

    - of md before Linux 6.5: linear and faulty always, raid0 while it does not count (to count, it makes bios of its own); other levels
      never do so with a write. Since then md always makes its own, and has a type for these by which that is known;
    - of bcache that has no cache.
    """
    if not _is_bio_based(folder):
        return ""
    for holder in _holders(folder):
        about = attributes_of(holder)
        is_uncounted = about.md_level == HANDING_ON_UNCOUNTED and not about.queue.iostats
        if about.md_level in _HANDING_ON or is_uncounted:
            if not _md_clones(sysfs):
                return holder.name
        elif about.bcache_state == "no cache":
            return holder.name
    return ""


@cache
def _md_clones(sysfs: Path) -> bool:
    """A module's types are in a file of its own. Where no file is there, that is not known."""
    files = (sysfs / "kernel/btf" / name for name in ("md_mod", "vmlinux"))
    return any(file.exists() and b"\0md_io_clone\0" in file.read_bytes() for file in files)


def lying_on(disks: Sequence[Disk], *, sysfs: Path = SYSFS) -> list[tuple[Disk, Disk]]:
    """Pairs (upper, lower) of disks one of which lies on the other, over however many layers; pairs of lower ones first."""
    below = {disk.name: _all_below(disk.name, sysfs) for disk in disks}
    return [
        (upper, lower)
        for upper in sorted(disks, key=lambda disk: (len(below[disk.name]), disk.name))
        for lower in disks
        if lower.name in below[upper.name]
    ]


def size_of(disk: Disk, *, sysfs: Path = SYSFS) -> int:
    """The disk's size now, in sectors; 0 when it is gone, or its place was taken by another. Raises OSError when that cannot be told:
    whoever takes a disk for gone ends an epoch."""
    folder = sysfs / f"block/{disk.name.replace('/', '!')}"
    try:
        text = (folder / "size").read_text()
    except OSError as exc:
        if exc.errno in GONE:
            return 0
        raise
    return _down_to_blocks(int(text), disk.block_b) if still_stands(disk, sysfs=sysfs) else 0


def still_stands(disk: Disk, *, sysfs: Path = SYSFS) -> bool:
    """Whether the disk's name is its own still. Then what sysfs said under it before is of this disk, since no diskseq is given twice."""
    folder = sysfs / f"block/{disk.name.replace('/', '!')}"
    return _diskseq(folder) == disk.diskseq


def _diskseq(folder: Path) -> int:
    return int(_text(folder / "diskseq") or 0)


def _down_to_blocks(sectors: int, block_b: int) -> int:
    """Without a rest that is less than a logical block: no read or write ever reaches it."""
    return sectors - sectors % (block_b // 512)


def _all_below(name: str, sysfs: Path) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = right_below(waiting.pop(), sysfs=sysfs) - found
        found |= new
        waiting += new
    return found


def bare_below(name: str, protected: Collection[str], *, sysfs: Path = SYSFS) -> set[str]:
    """The lowest disks that hold parts of this one which none of the protected disks holds."""
    bare: set[str] = set()
    waiting = [name]
    while waiting:
        for below in right_below(waiting.pop(), sysfs=sysfs) - {*protected}:
            if right_below(below, sysfs=sysfs):
                waiting.append(below)
            else:
                bare.add(below)
    return bare


def right_below(name: str, *, sysfs: Path = SYSFS) -> set[str]:
    """The disks that this one lies on."""
    found = set()
    for entry in entries(sysfs / "block" / name.replace("/", "!") / "slaves"):
        # a slave can be a partition; its disk is the folder above
        real = entry.resolve()
        found.add((real.parent if (real / "partition").exists() else real).name.replace("!", "/"))
    return found


def entries(folder: Path) -> list[Path]:
    """Sorted. None where the folder is not there: a disk has no such thing, or went away between two looks at it."""
    try:
        return sorted(folder.iterdir())
    except OSError as exc:
        if exc.errno in GONE:
            return []
        raise


def _may_lack_medium(folder: Path) -> bool:
    return _text(folder / "removable") == "1" or folder.name.startswith(("loop", "nbd"))


def _is_bio_based(folder: Path) -> bool:
    return not (folder / "mq").is_dir()


def _holders(folder: Path) -> list[Path]:
    """What lies on the disk or on a partition of it."""
    places = [folder, *(entry for entry in entries(folder) if (entry / "partition").exists())]
    return [holder for place in places for holder in entries(place / "holders")]


def multipath_holder(folder: Path) -> str:
    for holder in entries(folder / "holders"):
        if _text(holder / "dm/uuid").startswith("mpath-"):
            return holder.name
    return ""


def _serial(names: Mapping[str, str]) -> str:
    return next((text for name in device_program.NAMES if (text := said(names, name))), "")


def said(names: Mapping[str, str], attribute: str) -> str:
    """What it says: of SCSI's unit serial number page without its header of four bytes."""
    text = names.get(attribute, "")
    return text[4:].strip() if attribute == "device/vpd_pg80" else text
