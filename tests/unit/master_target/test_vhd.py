"""The footer of a fixed VHD. That other programs read it is tested with qemu-img (integration)."""

from __future__ import annotations

import pytest

from master_target.targets import vhd
from shared.errors import IntegrityError

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("disk_b", "capacity_b"), [(512, MIB), (MIB, MIB), (MIB + 1, 2 * MIB), (8 << 40, 8 << 40)]
)
def test_capacity_is_rounded_up_to_whole_mebibytes(disk_b: int, capacity_b: int) -> None:
    assert vhd.capacity_b(disk_b) == capacity_b


@pytest.mark.parametrize("disk_b", [MIB, 127 * 1024 * MIB, 8 << 40])
def test_a_footer_states_its_size_and_is_always_the_same(disk_b: int) -> None:
    footer = vhd.footer(disk_b, "disks/web1/sda.vhd")
    assert len(footer) == vhd.FOOTER_SIZE
    assert vhd.disk_size_b(footer) == disk_b
    assert footer == vhd.footer(disk_b, "disks/web1/sda.vhd") != vhd.footer(disk_b, "disks/web1/sdb.vhd")


@pytest.mark.parametrize(
    ("disk_b", "chs"),
    [
        (2 * 1024 * MIB, (4161, 16, 63)),
        (128 * MIB, (963, 16, 17)),
        (65535 * 16 * 255 * 512 * 2, (65535, 16, 255)),
    ],
)
def test_geometry_follows_the_specification(disk_b: int, chs: tuple[int, int, int]) -> None:
    assert vhd.geometry(disk_b) == chs


def test_what_is_no_intact_footer_is_refused() -> None:
    footer = vhd.footer(MIB, "x")
    for damaged in (b"", footer[:-1], bytes(512), footer[:48] + b"\x01" + footer[49:]):
        with pytest.raises(IntegrityError):
            vhd.disk_size_b(damaged)
