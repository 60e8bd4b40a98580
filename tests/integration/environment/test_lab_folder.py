"""A lab's folder on a disk that fails, and with things in it that are not the lab's."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failing_disks import FAILING
from tests.lab import CommandFailedError, Lab
from tests.loopdisk import loop_disk


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path("/dev/shm") / f"understudy-labfolder-{secrets.token_hex(3)}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def disk(folder: Path) -> Iterator[str]:
    with loop_disk(folder / "disk", 16 << 20) as device:
        yield device


def failed(lab: Lab, *arguments: str) -> CommandFailedError:
    with pytest.raises(CommandFailedError) as caught:
        lab.run("lab", *arguments)
    assert "Traceback" not in caught.value.stderr
    return caught.value


@pytest.mark.parametrize("kind", FAILING)
def test_a_lab_on_a_failing_disk_ends_with_a_named_error_and_can_be_wiped(disk: str, kind: str) -> None:
    with FAILING[kind]() as place:
        lab = Lab(place.where / "lab", [disk])
        place.fail()
        error = failed(lab, "up", "--disk", disk)
        assert (error.exit_code, kind in error.stderr) == (5, True)
        if place.heals:
            (place.where / "filler0").unlink()  # room for a name, none for bytes
            error = failed(lab, "up", "--disk", disk)
            assert (error.exit_code, kind in error.stderr) == (5, True)
            lab.run("lab", "down", "--wipe", "--yes")
            assert not lab.folder.exists()


@pytest.mark.long
def test_a_lab_that_runs_on_a_disk_that_becomes_full_is_wiped(folder: Path, disk: str) -> None:
    with FAILING["No space left on device"]() as place:
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", place.where], check=True)
        lab = Lab(place.where / "lab", [disk])
        lab.up()
        lab.kill("process-server")
        place.fail()
        lab.start("process-server")
        lab.run("lab", "down", "--wipe", "--yes")
        assert not lab.folder.exists()


@pytest.mark.long
def test_what_is_mounted_below_a_lab_is_neither_emptied_nor_unmounted(folder: Path, disk: str) -> None:
    lab = Lab(folder / "lab", [disk])
    lab.up()
    inside = lab.folder / "not mine"
    inside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        (inside / "file").write_text("kept")
        error = failed(lab, "down", "--wipe", "--yes")
        assert f"mounted on {inside}" in error.stderr
        assert (inside / "file").read_text() == "kept"
        assert lab.status()["daemons"]["agent"]["state"] == "running"
    finally:
        subprocess.run(["umount", inside], check=True)
    lab.run("lab", "down", "--wipe", "--yes")
    assert not lab.folder.exists()


def test_a_lab_whose_folder_is_a_mount_leaves_the_mount(folder: Path, disk: str) -> None:
    where = folder / "mount"
    where.mkdir()
    with loop_disk(folder / "other", 256 << 20) as other:
        subprocess.run(["mkfs.ext4", "-q", other], check=True)
        subprocess.run(["mount", other, where], check=True)
        try:
            lab = Lab(where, [disk])
            lab.up()
            lab.run("lab", "down", "--wipe", "--yes")
            assert [path.name for path in where.iterdir()] == ["lost+found"]
        finally:
            subprocess.run(["umount", where], check=True)
