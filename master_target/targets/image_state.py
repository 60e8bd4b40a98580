"""Which file the state document of a disk image is of: so that it is believed of no other.

An image that somebody puts in the place of ours is a disk image, too: an older copy out of a backup, say. Believed where the document
stands, it would be a point that is no prefix of anything (I6). So the document names the file that it was written for, and how that was
left. A file is ours that has the *size* of the disk and

- as long as no interval is begun, the *time of its last change*: no write of ours comes between a finished interval and the next document,
  so any that does is somebody else's. It is durable with the data (fsync), or a power cut would take it back. A copy that keeps the time
  of a file that nobody has changed since (`mv`, `cp -p`, `rsync -a`) has its contents, wherever it lies now. So its inode number does not
  count: there are file systems that give another at each mount (FUSE), and `resize2fs` moves inodes;
- in the middle of an interval, where the time may be that of any of our writes and tells nothing, our *inode number*, in the *generation*
  of it: a file that gets the number of one that was deleted has another generation, where the file system keeps them (ext4, xfs, btrfs;
  no others are known to).

Where the next interval begins at batch 0, nothing that lies on the disk is needed, and so the file may be any.

What follows from that for `cp`, `mv`, `rsync`, `dd` and others: FORMAT.md.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from typing import Final

import msgspec

from master_target.targets import state
from master_target.targets.state import DiskState
from shared.errors import SeedDiskError
from shared.recovery.position import NOWHERE, Position, format_ns

_GET_GENERATION: Final = 0x80087601
"""FS_IOC_GETVERSION."""


class ImageFile(msgspec.Struct, frozen=True):
    """A file, and how it lies there. `generation`: 0 where the file system keeps none."""

    inode: int
    generation: int
    modified_ns: int
    size_b: int

    @classmethod
    def of(cls, fd: int) -> ImageFile:
        """Raises OSError."""
        found = os.fstat(fd)
        return cls(found.st_ino, _generation(fd), found.st_mtime_ns, found.st_size)


class ImageState(msgspec.Struct, frozen=True):
    """The document beside an image."""

    disk: DiskState
    file: ImageFile | None
    """Which it is of; None: an older version, which did not say it, wrote it."""
    lost_at: Position = NOWHERE
    """Where the disk stood when another file lay in its image's place, and it was begun anew, until it is there again."""

    def differs(self, found: ImageFile) -> str:
        """How it is seen that the document is not of `found`, or not as this lies there; empty: it is of it."""
        if self.disk.restart.batch == 0:
            return ""
        if found.size_b != self.disk.disk_b:
            return f"it has {found.size_b} bytes, and the disk {self.disk.disk_b}"
        if self.file is None:
            return ""
        if self.disk.clean:
            if found.modified_ns != self.file.modified_ns:
                return (
                    f"it was changed last at {format_ns(found.modified_ns)}, and was left as it was at"
                    f" {format_ns(self.file.modified_ns)}"
                )
        elif (found.inode, found.generation) != (self.file.inode, self.file.generation):
            return (
                f"it is inode {found.inode} (generation {found.generation}), and the image was inode"
                f" {self.file.inode} (generation {self.file.generation})"
            )
        return ""

    def encode(self) -> dict[str, str]:
        said = self.disk.encode()
        if self.file is not None:
            said["inode"], said["generation"] = str(self.file.inode), str(self.file.generation)
            said["modified_ns"] = str(self.file.modified_ns)
        if self.lost_at != NOWHERE:
            said["lost_at"] = str(self.lost_at)
        return said


def decode(said: Mapping[str, str], name: str) -> ImageState:
    """Raises SeedDiskError when it is garbled."""
    disk = state.decode(said, name)
    try:
        file = None
        if "inode" in said:
            inode, generation, modified_ns = (
                int(said[key]) for key in ("inode", "generation", "modified_ns")
            )
            file = ImageFile(inode, generation, modified_ns, disk.disk_b)
    except (KeyError, ValueError) as exc:
        raise SeedDiskError(
            f"The state of disk image {name} could not be read",
            cause=f"which file it is of is not said: {exc}",
            action="Something else wrote it. Delete it: the disk is then rebuilt from the log.",
        ) from exc
    return ImageState(disk, file, Position.parse(said.get("lost_at", "")) or NOWHERE)


def _generation(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_GENERATION, bytes(8))[:4], "little")
    except OSError:  # the file system has none: the number alone has to do
        return 0
