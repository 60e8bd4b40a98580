"""What identifies a disk, over made-up sysfs folders and partition tables."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from agent.capture.identify import all_disks, identities, partition_table
from tests.disk_parts import make_disk

GUID = uuid.UUID("6d1f0f5e-1111-2222-3333-000000000001")


def gpt(block_b: int) -> bytes:
    head = bytearray(8192)
    head[510:512] = b"\x55\xaa"  # the protective MBR
    struct.pack_into("<8s48x16s", head, block_b, b"EFI PART", GUID.bytes_le)
    return bytes(head)


def mbr(signature: int) -> bytes:
    head = bytearray(8192)
    struct.pack_into("<I", head, 0x1B8, signature)
    head[510:512] = b"\x55\xaa"
    return bytes(head)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"device/wwid": "naa.5000c500", "device/vpd_pg80": "\0\x80\0\x04sc17"}, ["wwid:naa.5000c500", "serial:sc17"]),
        ({"device/wwid": "t10.ATA     QEMU HARDDISK   QM00001 "}, ["wwid:t10.ATA QEMU HARDDISK QM00001"]),
        ({"wwid": "eui.0025385", "device/serial": "S4EV"}, ["wwid:eui.0025385", "serial:S4EV"]),
        ({"serial": "disk-7"}, ["serial:disk-7"]),
        ({"dm/uuid": "LVM-abc"}, ["dm:LVM-abc"]),
        ({"dm/uuid": ""}, []),
        ({"md/uuid": "1f:2e"}, ["md:1f:2e"]),
    ],
)  # fmt: skip
def test_what_the_kernel_says_of_a_disk(tmp_path: Path, attributes: dict[str, str], found: list[str]) -> None:
    disk = make_disk(tmp_path, "sdq", attributes)
    told = [str(identity) for identity in identities(disk, by_path=tmp_path / "none")]
    assert told == [*found, "name:sdq, 2048 sectors"]


@pytest.mark.parametrize("block_b", [512, 4096])
def test_a_gpt_lies_in_the_second_block(block_b: int) -> None:
    assert [str(identity) for identity in partition_table(gpt(block_b), block_b)] == [f"gpt:{GUID}"]


def test_an_mbr_has_a_signature_unless_it_is_zero() -> None:
    assert [str(identity) for identity in partition_table(mbr(0xDEADBEEF), 512)] == ["mbr:deadbeef"]
    for head in (mbr(0), bytes(8192), b"", gpt(512)[:560]):
        assert partition_table(head, 512) == []


def test_the_port_of_a_disk_is_known_by_its_link(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sdq")
    (tmp_path / "sdq").touch()
    links = tmp_path / "by-path"
    links.mkdir()
    (links / "pci-0000:00:04.0").symlink_to(links / "pci-0000:00:04.0")  # in a circle
    (links / "pci-0000:00:05.0").symlink_to(tmp_path / "sdq")
    (links / "pci-0000:00:05.0-part1").symlink_to(tmp_path / "sdq1")
    assert str(identities(disk, by_path=links)[0]) == "by-path:pci-0000:00:05.0"


def test_hidden_empty_and_multipath_disks_stand_nowhere(tmp_path: Path) -> None:
    for name, attributes in (
        ("sda", {"dev": "8:0"}),
        ("sdb", {"dev": "8:16", "size": "0"}),
        ("nvme0c0n1", {"dev": "259:1", "hidden": "1"}),
        ("sdc", {"dev": "8:32", "holders/dm-3/dm/uuid": "mpath-360000"}),
    ):
        make_disk(tmp_path, name, attributes)
    assert [disk.name for disk in all_disks(sysfs=tmp_path)] == ["sda"]
