"""Fixed VHD: raw disk data, then one footer of 512 bytes. Pure. Layout in FORMAT.md beside this file.

Azure imports a page blob as a managed disk when it is a fixed VHD whose size without the footer is a whole
number of mebibytes. Two readers of a VHD disagree about its size: Virtual PC goes by the geometry field
(cylinders × heads × sectors, which rounds down), Hyper-V, Azure and disk2vhd by the current-size field.
qemu chooses by the creator application; `win ` makes it, too, use the size field.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from shared.errors import IntegrityError

FOOTER_SIZE: Final = 512
ALIGNMENT_B: Final = 1024 * 1024

_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
_CHECKSUM_AT: Final = 64
_FIXED: Final = 2
_EPOCH_2000: Final = 946_684_800


def capacity_b(disk_b: int) -> int:
    """The VHD's disk size for a source disk of `disk_b` bytes: rounded up to a whole mebibyte."""
    return -(-disk_b // ALIGNMENT_B) * ALIGNMENT_B


def geometry(disk_b: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors per track) by the algorithm of the VHD specification, appendix "CHS
    Calculation".
    """
    sectors = min(disk_b // 512, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        cylinder_heads = sectors // per_track
    else:
        per_track = 17
        cylinder_heads = sectors // per_track
        heads = max((cylinder_heads + 1023) // 1024, 4)
        if cylinder_heads >= heads * 1024 or heads > 16:
            per_track, heads = 31, 16
            cylinder_heads = sectors // per_track
        if cylinder_heads >= heads * 1024:
            per_track, heads = 63, 16
            cylinder_heads = sectors // per_track
    return cylinder_heads // heads, heads, per_track


def footer(disk_b: int, name: str) -> bytes:
    """The footer of a disk of `disk_b` bytes (a multiple of 512). The same for the same size and name,
    whenever it is made.
    """
    fields = (
        b"conectix",
        2,  # features: the reserved bit, always set
        0x0001_0000,
        0xFFFF_FFFF_FFFF_FFFF,  # fixed disks have no dynamic header
        1_600_000_000 - _EPOCH_2000,  # creation time: a constant, so that the footer can be written again
        b"win ",
        0x0006_0003,
        b"Wi2k",
        disk_b,
        disk_b,
        *geometry(disk_b),
        _FIXED,
    )
    rest = (uuid.uuid5(uuid.NAMESPACE_URL, f"understudy:{name}").bytes, 0, bytes(427))
    return _FOOTER.pack(*fields, _checksum(_FOOTER.pack(*fields, 0, *rest)), *rest)


def disk_size_b(data: bytes) -> int:
    """The disk size that a footer states. Raises IntegrityError when it is no footer of a fixed VHD, or a
    damaged one.
    """
    if len(data) != FOOTER_SIZE or not data.startswith(b"conectix"):
        raise _bad("there is no VHD footer at its end")
    fields = _FOOTER.unpack(data)
    without = data[:_CHECKSUM_AT] + bytes(4) + data[_CHECKSUM_AT + 4 :]
    if fields[14] != _checksum(without):
        raise _bad("the checksum of its VHD footer does not match")
    if fields[13] != _FIXED:
        raise _bad(f"its VHD footer says disk type {fields[13]}, not {_FIXED} (fixed)")
    return int(fields[9])


def _checksum(data: bytes) -> int:
    return ~sum(data) & 0xFFFF_FFFF


def _bad(cause: str) -> IntegrityError:
    return IntegrityError(
        "A seed disk is not a fixed VHD",
        cause=cause,
        action="Delete the blob: it is then rebuilt from the log.",
    )
