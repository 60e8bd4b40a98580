"""What makes a disk protectable, over made-up sysfs folders of every kind."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.capture import device_program, disks, layout
from agent.capture.disks import (
    Attributes,
    describe,
    find_disk,
    lying_on,
    read_attributes,
    size_of,
)
from agent.capture.suitable import check, check_set
from shared.errors import DeviceNotFoundError, NotADiskError, UnsuitableDiskError, UsageError
from tests.disk_parts import make_disk


def test_an_ordinary_disk_is_described_and_accepted(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"device/wwid": "naa.5000c500\n"})
    check(disk)
    assert (disk.name, disk.bytes, disk.diskseq, disk.serial) == ("sda", 1 << 20, 7, "naa.5000c500")
    assert not disk.bio_based
    assert disk.iostats


def test_a_drive_is_empty_where_sysfs_says_so_and_not_where_it_says_nothing(tmp_path: Path) -> None:
    """A fixed disk has a medium: where its size could not be read sysfs says 0, too."""
    for name, size, removable, is_empty in (
        ("sda", "0", "1", True), ("sdb", "", "1", False), ("sdc", "2048", "1", False),
        ("sdd", "0", "0", False), ("loop0", "0", "0", True), ("nbd0", "0", "0", True),
    ):  # fmt: skip
        assert make_disk(tmp_path, name, {"size": size, "removable": removable}).is_empty is is_empty
    silent = describe(Path("/dev/sda"), tmp_path / "block/sda", 8, 0, lambda _: disks.UNKNOWN, sysfs=tmp_path)
    assert (silent.sectors, silent.is_empty) == (0, False)


def test_a_disk_without_request_queues_is_bio_based(tmp_path: Path) -> None:
    assert make_disk(tmp_path, "md0", mq=False).bio_based


@pytest.mark.parametrize(
    ("attributes", "cause"),
    [
        ({"size": "0"}, "its size is zero"),
        ({"ro": "1"}, "it is read-only"),
        ({"queue/dax": "1"}, "DAX"),
        ({"queue/zoned": "host-managed"}, "zoned"),
        ({"holders/dm-3/dm/uuid": "mpath-360000"}, "one path of the multipath device dm-3"),
    ],
)
def test_unsuitable_disks_are_refused_with_their_cause(
    tmp_path: Path, attributes: dict[str, str], cause: str
) -> None:
    disk = make_disk(tmp_path, "sda", attributes)
    with pytest.raises(UnsuitableDiskError, match=cause) as caught:
        check(disk)
    assert caught.value.action
    if cause == "it is read-only":  # it goes on: nothing is written to it past capture
        check(disk, is_captured=True)
    else:
        with pytest.raises(UnsuitableDiskError, match=cause):
            check(disk, is_captured=True)


@pytest.mark.parametrize("name", ["pmem0s", "zram0", "ram3"])
def test_a_disk_that_the_kernel_gives_pages_past_the_hooks_is_refused(tmp_path: Path, name: str) -> None:
    disk = make_disk(tmp_path, name, mq=False)
    btf = tmp_path / "kernel/btf/vmlinux"
    btf.parent.mkdir(parents=True)
    btf.write_bytes(b"\0open\0release\0zram_rw_page\0ioctl\0")  # a kernel from 6.3 on
    check(disk, sysfs=tmp_path)
    btf.write_bytes(b"\0open\0release\0rw_page\0ioctl\0")
    check(make_disk(tmp_path, "sda"), sysfs=tmp_path)
    with pytest.raises(UnsuitableDiskError, match=r"single pages \(rw_page\)") as caught:
        check(disk, sysfs=tmp_path)
    assert "6.3" in caught.value.action


@pytest.mark.parametrize("place", ["holders/md1", "md0p1/holders/md1"])
@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize(
    ("holder", "hides"),
    [
        ({"md/level": "linear"}, True),
        ({"md/level": "faulty"}, True),
        ({"md/level": "raid0", "queue/iostats": "0"}, True),
        ({"md/level": "raid0", "queue/iostats": "1"}, False),
        ({"md/level": "raid1", "queue/iostats": "0"}, False),
        ({"md/level": "raid5", "queue/iostats": "0"}, False),
        ({"dm/uuid": "LVM-abc", "queue/iostats": "0"}, False),
        ({"bcache/state": "no cache"}, True),
        ({"bcache/state": "clean"}, False),
    ],
)
def test_a_disk_below_one_that_hands_on_its_bios_is_refused_if_it_has_no_requests(
    tmp_path: Path, place: str, clones: bool, holder: dict[str, str], hides: bool
) -> None:
    btf = tmp_path / "kernel/btf/md_mod"
    btf.parent.mkdir(parents=True)
    btf.write_bytes(b"\0md_io_clone\0" if clones else b"\0md_io_acct\0")
    made = {f"{place}/{name}": text for name, text in holder.items()} | {"md0p1/partition": "1"}
    check(make_disk(tmp_path, "sda", made), sysfs=tmp_path)
    disk = make_disk(tmp_path, "md0", made, mq=False)
    if not hides or (clones and "md/level" in holder):
        check(disk, sysfs=tmp_path)
        return
    make_disk(tmp_path, "md1", holder, mq=False)
    for is_captured in (False, True):
        with pytest.raises(UnsuitableDiskError, match="md1 lies on it") as caught:
            check(disk, sysfs=tmp_path, is_captured=is_captured)
    assert "Protect /dev/md1" in caught.value.action
    assert ("iostats" in caught.value.action) == ("queue/iostats" in holder)


def test_the_program_that_is_asked_says_of_a_disk_what_reading_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = {"md/level": "raid0", "bcache/state": "no cache", "queue/iostats": "0", "md/uuid": "1-2-3"}
    make_disk(tmp_path, "md1", over, mq=False)
    device_program.attributes(["md1"], tmp_path)
    said = Attributes.of(ast.literal_eval(capsys.readouterr().out), has_requests=False)
    assert said == read_attributes(tmp_path / "block/md1")
    assert (said.md_level, said.bcache_state, said.queue.iostats) == ("raid0", "no cache", False)
    assert said.names["md/uuid"] == "1-2-3"


def test_a_logical_volume_on_top_is_no_multipath(tmp_path: Path) -> None:
    check(make_disk(tmp_path, "sda", {"holders/dm-0/dm/uuid": "LVM-abc"}))


def test_a_partition_is_refused_and_its_disk_named(tmp_path: Path) -> None:
    make_disk(tmp_path, "sda")
    part = tmp_path / "block/sda/sda1"
    part.mkdir()
    (part / "partition").write_text("1\n")
    with pytest.raises(NotADiskError, match="it is a partition") as caught:
        describe(Path("/dev/sda1"), part, 8, 1)
    assert "/dev/sda" in caught.value.action


def test_a_missing_device_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError):
        find_disk(tmp_path / "nothing")
    with pytest.raises(DeviceNotFoundError):
        describe(Path("/dev/sdz"), tmp_path / "nothing", 8, 99)


def test_a_regular_file_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADiskError, match="not a block device"):
        find_disk(tmp_path / "file")


def test_a_disk_and_what_lies_on_it_are_not_protected_together(tmp_path: Path) -> None:
    lower = make_disk(tmp_path, "sda")
    part = tmp_path / "block/sda/sda1"
    part.mkdir()
    (part / "partition").write_text("1\n")
    upper = make_disk(tmp_path, "md0", major=9, mq=False)
    slaves = tmp_path / "block/md0/slaves"
    slaves.mkdir()
    (slaves / "sda1").symlink_to(part)
    with pytest.raises(UsageError, match="cannot be protected together"):
        check_set([lower, upper], sysfs=tmp_path)
    check_set([upper], sysfs=tmp_path)


@pytest.mark.parametrize("gone", ["block/md0", "block/md0/slaves", "block/md0/holders"])
def test_what_goes_away_between_two_looks_is_gone(
    tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path, "md0", mq=False)
    for folder in ("slaves", "holders"):
        (tmp_path / "block/md0" / folder).mkdir()
    real = Path.iterdir

    def removed_just_now(folder: Path) -> Iterator[Path]:
        if folder.name in ("slaves", "holders"):
            shutil.rmtree(tmp_path / gone, ignore_errors=True)
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", removed_just_now)
    assert lying_on([disk], sysfs=tmp_path) == []
    with contextlib.suppress(DeviceNotFoundError):
        assert describe(disk.path, tmp_path / "block/md0", 8, 0).slaves == ()


def test_a_disk_named_twice_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda")
    with pytest.raises(UsageError, match="same disk"):
        check_set([disk, disk], sysfs=tmp_path)


def test_a_grown_disk_has_its_new_size_and_a_replaced_or_removed_one_has_none(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda")
    assert size_of(disk, sysfs=tmp_path) == disk.sectors
    (tmp_path / "block/sda/size").write_text("4096")
    assert size_of(disk, sysfs=tmp_path) == 4096
    (tmp_path / "block/sda/diskseq").write_text("8")
    assert size_of(disk, sysfs=tmp_path) == 0
    (tmp_path / "block/sda").rename(tmp_path / "block/sdb")
    assert size_of(disk, sysfs=tmp_path) == 0


def test_a_tail_that_is_less_than_a_logical_block_is_no_part_of_the_disk(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"size": "2051", "queue/logical_block_size": "4096"})
    assert disk.sectors == 2048
    assert size_of(disk, sysfs=tmp_path) == 2048
    (tmp_path / "block/sda/size").write_text("2063")  # it grew by a block and a bit
    assert size_of(disk, sysfs=tmp_path) == 2056
    assert make_disk(tmp_path, "sdb", {"size": "2051"}).sectors == 2051


def test_blocks_that_no_record_can_hold_are_refused(tmp_path: Path) -> None:
    check(make_disk(tmp_path, "sda", {"queue/logical_block_size": "4096"}))
    with pytest.raises(UnsuitableDiskError, match="its logical blocks have 16384 bytes"):
        check(make_disk(tmp_path, "sdb", {"queue/logical_block_size": "16384"}))


def test_a_scsi_unit_serial_number_is_found(tmp_path: Path) -> None:
    assert make_disk(tmp_path, "sda", {"device/vpd_pg80": "\0\x80\0\x04sc17"}).serial == "sc17"


def test_a_driver_without_requests_counts_whatever_its_iostats_say(tmp_path: Path) -> None:
    assert make_disk(tmp_path, "dm-0", {"queue/iostats": "0"}, mq=False).iostats
    assert not make_disk(tmp_path, "sda", {"queue/iostats": "0"}).iostats


def test_a_disk_without_serial_has_an_empty_one(tmp_path: Path) -> None:
    assert make_disk(tmp_path, "sda").serial == ""


@pytest.mark.parametrize(("sectors", "words"), [(1, 1), (32 * 64, 1), (32 * 64 + 1, 2), (1 << 31, 1 << 20)])
def test_a_bitmap_covers_its_disk(sectors: int, words: int) -> None:
    assert layout.bitmap_words(sectors) == words


def test_the_number_of_this_machines_disks_can_be_read() -> None:
    for folder in (disks.SYSFS / "block").iterdir():
        major, minor = (folder / "dev").read_text().split(":")
        disk = describe(Path("/dev") / folder.name, folder.resolve(), int(major), int(minor))
        assert disk.name == folder.name.replace("!", "/")
        assert os.makedev(disk.major, disk.minor)


def test_attributes_of_a_disk_that_had_the_name_before_are_not_those_of_this_one(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, "sda", {"serial": "S1", "queue/zoned": "host-managed"})
    assert (disk.serial, disk.zoned) == ("S1", True)
    folder = tmp_path / "block/sda"
    before = read_attributes(folder)
    (folder / "diskseq").write_text("8\n")
    after = describe(disk.path, folder, 8, 0, lambda folder: before)
    assert (after.serial, after.names, after.zoned, after.diskseq) == ("", {}, False, 8)


def test_a_path_that_leads_in_a_circle_is_no_disks_and_costs_nothing(tmp_path: Path) -> None:
    circle, link, target = tmp_path / "circle", tmp_path / "link", tmp_path / "sdb"
    circle.symlink_to(circle)
    target.touch()
    link.symlink_to(target)
    disk: Any = SimpleNamespace(path=target)
    assert [disks.leads_to(str(path), disk) for path in (circle, link, target, tmp_path / "gone")] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not disks.leads_to(str(target), cast(Any, SimpleNamespace(path=circle)))
