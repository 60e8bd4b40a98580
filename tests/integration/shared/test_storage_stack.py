"""On which disks a path lies, asked of real stacks."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.host import storage_stack
from shared.host.storage_stack import disks_below, whole_disk
from tests.loopdisk import attached, loop_disk

MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: below it lies no disk."""
    made = Path("/dev/shm") / f"understudy-stack-{secrets.token_hex(3)}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def command(*arguments: object) -> str:
    return subprocess.run(
        [str(part) for part in arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@contextlib.contextmanager
def mounted(where: Path, *arguments: object) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    command("mount", *arguments, where)
    try:
        yield where
    finally:
        command("umount", where)


@contextlib.contextmanager
def formatted(
    folder: Path, name: str, kind: str = "ext4", size_b: int = 128 * MIB
) -> Iterator[tuple[str, Path]]:
    """A mounted file system on a loop disk; the disk's kernel name, and where it is mounted."""
    with loop_disk(folder / f"{name}.img", size_b) as device:
        command(f"mkfs.{kind}", "-q", device)
        with mounted(folder / name, device) as where:
            yield Path(device).name, where


def test_memory_lies_on_no_disk(folder: Path) -> None:
    assert disks_below(folder) == set()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_file_system_lies_on_its_disk_also_where_nothing_exists_yet(folder: Path, kind: str) -> None:
    with formatted(folder, "a", kind, 400 * MIB) as (disk, where):
        assert disks_below(where) == {disk}
        assert disks_below(where / "not" / "made yet") == {disk}
        (where / "link").symlink_to(where / "later")
        (folder / "link").symlink_to(where / "link")
        assert disks_below(folder / "link") == {disk}


def test_a_subvolume_of_btrfs_lies_on_all_devices_of_its_file_system(folder: Path) -> None:
    with loop_disk(folder / "a.img", 256 * MIB) as a, loop_disk(folder / "b.img", 256 * MIB) as b:
        command("mkfs.btrfs", "-q", "-d", "raid0", "-m", "raid1", a, b)
        names = {Path(a).name, Path(b).name}
        with mounted(folder / "whole", a) as whole:
            command("btrfs", "subvolume", "create", whole / "sub")
            with mounted(folder / "sub", "-o", "subvol=sub", b) as sub:
                assert disks_below(whole / "sub" / "x") == names
                assert disks_below(sub) == names


def test_a_bind_mount_lies_where_its_source_does(folder: Path) -> None:
    with formatted(folder, "a") as (disk, where):
        (where / "inner").mkdir()
        with mounted(folder / "bound", "--bind", where / "inner") as bound:
            assert disks_below(bound / "x") == {disk}


def test_what_is_mounted_over_a_folder_counts_and_not_what_is_below(folder: Path) -> None:
    with formatted(folder, "a") as (_, where), mounted(where, "-t", "tmpfs", "none"):
        assert disks_below(where) == set()


def test_an_overlay_lies_where_its_writes_go(folder: Path) -> None:
    with formatted(folder, "lower") as (_, lower), formatted(folder, "upper") as (disk, upper):
        for name in ("up, and up", "work"):
            (upper / name).mkdir()
        options = f"lowerdir={lower},upperdir={upper}/up\\, and up,workdir={upper}/work"
        with mounted(folder / "over", "-t", "overlay", "-o", options, "none") as over:
            assert disks_below(over / "file") == {disk}


def test_an_overlay_over_its_own_upper_folder_lies_on_what_is_under_it(folder: Path) -> None:
    (folder / "lower").mkdir()
    with formatted(folder, "a") as (disk, where):
        for name in ("upper", "work"):
            (where / "over" / name).mkdir(parents=True)
        options = f"lowerdir={folder}/lower,upperdir={where}/over/upper,workdir={where}/over/work"
        with mounted(where / "over", "-t", "overlay", "-o", options, "none") as over:
            assert disks_below(over / "file") == {disk}


def test_in_a_container_whose_root_is_an_overlay_nothing_is_found_below_it(folder: Path) -> None:
    """The folder that takes the writes is in another mount namespace."""
    names = {name: folder / name for name in ("upper", "work", "root")}
    for place in names.values():
        place.mkdir()
    options = f"lowerdir=/,upperdir={names['upper']},workdir={names['work']}"
    # As a container sees it: its root is mounted nowhere, and a volume stands where the path would lead.
    script = (
        f"mount -t overlay -o {options} none {names['root']} && cd {names['root']} && mkdir -p old && "
        f"pivot_root . old && mount -t proc proc /proc && umount -l /old && exec {sys.executable} -c "
        "'from shared.host.storage_stack import disks_below; from pathlib import Path; print(disks_below(Path(\"/var\")))'"
    )
    found = command("unshare", "--mount", "--propagation=private", "sh", "-c", script)
    assert found == "set()"


def test_a_loop_disk_lies_on_the_disk_of_its_file(folder: Path) -> None:
    with formatted(folder, "outer", "btrfs", 256 * MIB) as (outer, where):
        inner_file = where / "inner file"
        inner_file.touch()
        inner_file.write_bytes(b"")
        with inner_file.open("r+b") as file:
            file.truncate(64 * MIB)
        with attached(inner_file) as device:
            command("mkfs.ext4", "-q", device)
            with mounted(folder / "inner", device) as inner:
                assert disks_below(inner) == {Path(device).name, outer}
                assert disks_below(Path(device)) == {Path(device).name, outer}


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_loop_disk_whose_file_was_deleted_or_renamed_still_lies_on_its_disk(
    folder: Path, kind: str
) -> None:
    with formatted(folder, "outer", kind, 256 * MIB) as (outer, where):
        backing = where / "backing"
        with backing.open("wb") as file:
            file.truncate(MIB)
        with attached(backing) as device:
            backing.unlink()
            assert disks_below(Path(device)) == {Path(device).name, outer}


def test_a_partition_is_its_disk(folder: Path) -> None:
    with loop_disk(folder / "a.img", 64 * MIB) as device:
        command("addpart", device, 1, 2048, 65536)
        partition = Path(f"{device}p1")
        made = not partition.exists()  # without udev nobody makes the node
        if made:
            number = Path(f"/sys/class/block/{partition.name}/dev").read_text().strip()
            command("mknod", partition, "b", *number.split(":"))
        try:
            command("mkfs.ext4", "-q", partition)
            with mounted(folder / "a", partition) as where:
                assert disks_below(where) == {Path(device).name}
            assert whole_disk(partition) == Path(device).name
        finally:
            if made:
                partition.unlink()
            command("delpart", device, 1)


def test_a_mapped_device_lies_on_what_it_is_made_of(folder: Path) -> None:
    """LVM and LUKS are mappings of this kind."""
    name = f"understudy-{secrets.token_hex(3)}"
    with loop_disk(folder / "a.img", 32 * MIB) as a, loop_disk(folder / "b.img", 32 * MIB) as b:
        table = f"0 65536 linear {a} 0\n65536 65536 linear {b} 0\n"
        done = subprocess.run(
            ["dmsetup", "create", name], input=table, text=True, capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this kernel has no device mapper: {done.stderr.strip()}")
        try:
            node = Path(command("dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", name))
            command("dmsetup", "mknodes")
            command("mkfs.ext4", "-q", f"/dev/mapper/{name}")
            with mounted(folder / "a", f"/dev/mapper/{name}") as where:
                assert disks_below(where) == {node.name, Path(a).name, Path(b).name}
        finally:
            command("dmsetup", "remove", "--retry", name)


@pytest.mark.skipif(not Path("/proc/mdstat").exists(), reason="this kernel has no md")
def test_an_md_array_lies_on_its_members(folder: Path) -> None:
    with loop_disk(folder / "a.img", 32 * MIB) as a, loop_disk(folder / "b.img", 32 * MIB) as b:
        md = Path(f"/dev/md{100 + secrets.randbelow(100)}")
        command("mdadm", "--build", md, "--level=linear", "--raid-devices=2", "--run", a, b)
        try:
            assert disks_below(md) == {whole_disk(md), Path(a).name, Path(b).name}
        finally:
            command("mdadm", "--stop", md)


def test_every_layer_below_a_device_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logical volume on an array on a partition of one disk and on the whole of another: as sysfs shows it on any kernel."""
    real = folder / "devices"
    for made in ("dm-0/slaves", "md0/slaves", "sda/sda1", "cciss!c0d0"):
        (real / made).mkdir(parents=True)
    (real / "sda/sda1/partition").write_text("1\n")
    (real / "dm-0/slaves/md0").symlink_to(real / "md0")
    (real / "md0/slaves/sda1").symlink_to(real / "sda/sda1")
    (real / "md0/slaves/cciss!c0d0").symlink_to(real / "cciss!c0d0")
    (folder / "numbers").mkdir()
    with loop_disk(folder / "a.img", MIB) as device:
        number = Path(device).stat().st_rdev
        (folder / "numbers" / f"{os.major(number)}:{os.minor(number)}").symlink_to(real / "dm-0")
        monkeypatch.setattr(storage_stack, "_BLOCK", folder / "numbers")
        assert disks_below(Path(device)) == {"dm-0", "md0", "sda", "cciss/c0d0"}


def test_odd_paths_lie_where_their_nearest_folder_does(folder: Path) -> None:
    with formatted(folder, "a") as (disk, where):
        (where / "circle").symlink_to(where / "circle")
        for odd in ("circle", "x" * 300, "not \udcff utf-8\n"):
            assert disks_below(where / odd) == {disk}


def test_what_is_no_device_is_no_disk(folder: Path) -> None:
    assert whole_disk(folder) == ""
    assert whole_disk(folder / "none") == ""
    assert whole_disk(Path("/dev/null")) == ""
