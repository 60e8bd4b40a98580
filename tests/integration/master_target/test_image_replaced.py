"""An image file that is not the one that its state is of: told, and begun anew, whoever put it there, and whenever its owner was killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from master_target.targets.image_file import ImageTarget
from master_target.targets.state import DiskInterval
from shared.errors import LeaseLostError
from shared.host import durable
from shared.machine.storage import MachineStorage
from shared.recovery.position import NOWHERE, Position
from shared.recovery.sparse import SparseFile
from tests.epoch_ids import CLAIM
from tests.machine_log import ModelMachine
from tests.master_parts import check_points, running, until, until_applied, until_snapshotted

DISK_B = 64 * 1024
BATCHES = 4
"""Each writes a block of its own and, again, the first. Before that the first one writes all of the disk: it is the full replication."""


def prefix(batches: int) -> bytes:
    """What the disk holds behind so many of them: the oracle."""
    disk = bytearray(DISK_B)
    for batch in range(1, batches + 1):
        for offset_b in (0, 4096 * batch):
            disk[offset_b : offset_b + 4096] = bytes([batch]) * 4096
    return bytes(disk)


async def opened(folder: Path) -> ImageTarget:
    return await ImageTarget.open(folder, "web1", "sda", DISK_B)


async def apply(target: ImageTarget, end: int, *, finish: bool = True) -> None:
    """The log from where the disk stands to `end`, each batch an interval; what was begun is done again."""
    state = target.state
    first = state.restart.batch if state.cursor != NOWHERE else 0
    for batch in range(first + 1, end + 1):
        await target.begin(
            DiskInterval(
                Position.of(1, batch - 1), Position.of(1, batch), DISK_B, CLAIM, f"d{batch - 1}", f"d{batch}"
            )
        )
        if batch == 1:
            await target.clear(0, DISK_B)
        for offset_b in (0, 4096 * batch):
            await target.write(offset_b, memoryview(bytes([batch]) * 4096))
        if finish or batch < end:
            await target.finish()


async def check(target: ImageTarget) -> None:
    """I6: where it says that it stands, it is that prefix."""
    if target.state.clean and target.state.cursor != NOWHERE:
        assert await target.read(0, DISK_B) == prefix(target.state.cursor.batch)


async def check_goes_on(folder: Path) -> None:
    """Whoever comes next, it gets to the end of the log, right at each of its batches, and nothing is wrong then."""
    for end in range(1, BATCHES + 1):
        target = await opened(folder)
        await check(target)
        await apply(target, end)
        await check(target)
        await target.close()
    assert target.problem is None
    assert (folder / "web1" / "sda.img").read_bytes() == prefix(BATCHES)


async def check_is_begun_anew_and_told(files: Files) -> None:
    target = await opened(files.folder)
    assert (target.state.cursor, target.problem is not None) == (NOWHERE, True)
    await target.close()
    await check_goes_on(files.folder)


class Files:
    """One disk's, and what somebody has of before: at the first batch."""

    def __init__(self, folder: Path, other: Path) -> None:
        self.folder, self.other = folder, other
        self.image, self.state = folder / "web1" / "sda.img", folder / "web1" / "sda.state.json"
        self.old_image, self.old_state = folder / "old.img", folder / "old.json"

    async def stand_at(self, end: int, *, finish: bool = True) -> None:
        target = await opened(self.folder)
        await apply(target, 1)
        await target.close()
        run("cp", "-a", self.image, self.old_image)
        run("cp", "-a", self.state, self.old_state)
        target = await opened(self.folder)
        await apply(target, end, finish=finish)
        await target.close()


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)


def other_file(files: Files) -> None:
    files.image.unlink()
    run("cp", "--sparse=never", files.old_image, files.image)


def renamed(files: Files) -> None:
    """As rsync does, with all times and attributes."""
    run("cp", "-a", files.old_image, files.folder / "web1" / ".sda.img.XXXX")
    run("mv", files.folder / "web1" / ".sda.img.XXXX", files.image)


def moved_over(files: Files) -> None:
    """Away to another file system, and back: another inode, and the time of the last write is kept."""
    run("mv", files.image, files.other / "moved.img")
    run("mv", files.other / "moved.img", files.image)


def backup(files: Files) -> None:
    """Of image and state together."""
    files.image.unlink()
    run("cp", "-a", files.old_image, files.image)
    run("cp", "-a", files.old_state, files.state)


def empty(files: Files) -> None:
    run("cp", "/dev/null", files.image)


def cut(files: Files) -> None:
    run("truncate", "-s", "4096", files.image)


def torn_backup(files: Files) -> None:
    """Of a disk that an interval overtook while it was copied: `cp -p` has asked for the time before it read, so the copy has that of the
    first batch, and some of what came behind."""
    with files.old_image.open("r+b") as copy:
        told = os.fstat(copy.fileno())
        copy.seek(4096 * 2)
        copy.write(bytes([2]) * 4096)
        copy.flush()
        os.utime(copy.fileno(), ns=(told.st_atime_ns, told.st_mtime_ns))
    backup(files)


def exchanged(files: Files) -> None:
    """With the image of another disk, which was written last at the same time."""
    said = files.image.stat()
    other = files.folder / "web1" / "sdb.img"
    other.write_bytes(bytes(DISK_B))
    os.utime(other, ns=(said.st_atime_ns, said.st_mtime_ns))
    run("mv", files.image, files.folder / "web1" / "away")
    run("mv", other, files.image)


OTHER_FILES = [other_file, renamed, empty, cut, moved_over, backup, torn_backup, exchanged]
"""Of another inode or size: told at any time."""


def in_place(files: Files) -> None:
    run("cp", files.old_image, files.image)


def in_place_with_times(files: Files) -> None:
    run("cp", "-p", files.old_image, files.image)


def torn_in_place(files: Files) -> None:
    """As `rsync --inplace` restores such a backup, and its state."""
    was = files.image.stat().st_ino
    with files.image.open("r+b") as image:
        image.write(prefix(1))
        image.seek(4096 * 2)
        image.write(bytes([2]) * 4096)
    said = files.old_image.stat()
    os.utime(files.image, ns=(said.st_atime_ns, said.st_mtime_ns))
    run("cp", "-p", files.old_state, files.state)
    assert files.image.stat().st_ino == was


def dd(files: Files) -> None:
    run("dd", f"if={files.old_image}", f"of={files.image}", "conv=notrunc")


def cut_and_extended(files: Files) -> None:
    run("truncate", "-s", "4096", files.image)
    run("truncate", "-s", str(DISK_B), files.image)


def older_state(files: Files) -> None:
    run("cp", files.old_state, files.state)


CHANGED = [in_place, in_place_with_times, torn_in_place, dd, cut_and_extended, older_state]
"""The same file, with other contents than the state says: told where no interval was under way."""


def renamed_and_back(files: Files) -> None:
    run("mv", files.image, files.folder / "away")
    run("mv", files.folder / "away", files.image)


def relabelled(files: Files) -> None:
    run("chmod", "640", files.image)
    run("ln", files.image, files.folder / "link")


def read_and_folder_moved(files: Files) -> None:
    run("cp", "-a", files.image, files.folder / "copy.img")
    run("cp", "--reflink=auto", files.image, files.folder / "clone.img")
    run("touch", "-r", files.image, files.folder / "web1" / "web1")
    run("mv", files.folder / "web1", files.folder / "away")
    run("mv", files.folder / "away", files.folder / "web1")


Deed = Callable[[Files], None]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    other = Path("/dev/shm") / f"{tmp_path.name}-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    other.mkdir()
    assert other.stat().st_dev != tmp_path.stat().st_dev
    try:
        yield Files(tmp_path, other)
    finally:
        shutil.rmtree(other)


@pytest.mark.parametrize("is_idle", [True, False])
@pytest.mark.parametrize("deed", OTHER_FILES)
async def test_another_file_is_begun_anew_and_told(files: Files, deed: Deed, is_idle: bool) -> None:
    await files.stand_at(3, finish=is_idle)
    deed(files)
    target = await opened(files.folder)
    assert target.state.cursor == NOWHERE
    assert target.problem is not None
    assert target.problem.code == "US608"
    said = "1-1" if deed in (backup, torn_backup) else "1-3" if is_idle else "1-2"
    assert said in target.problem.cause
    await target.close()
    await check_goes_on(files.folder)


@pytest.mark.parametrize("deed", CHANGED)
async def test_a_file_that_is_not_as_it_was_left_is_begun_anew_and_told(files: Files, deed: Deed) -> None:
    await files.stand_at(3)
    deed(files)
    await check_is_begun_anew_and_told(files)


@pytest.mark.parametrize("deed", [renamed_and_back, relabelled])
async def test_a_file_that_was_touched_at_rest_is_begun_anew_since_only_contents_could_tell(
    files: Files, deed: Deed
) -> None:
    await files.stand_at(3)
    deed(files)
    await check_is_begun_anew_and_told(files)


@pytest.mark.parametrize(
    ("deed", "is_idle"),
    [
        (read_and_folder_moved, True),
        (read_and_folder_moved, False),
        (renamed_and_back, False),
        (relabelled, False),
    ],
)
async def test_what_changes_no_contents_costs_nothing(files: Files, deed: Deed, is_idle: bool) -> None:
    await files.stand_at(3, finish=is_idle)
    deed(files)
    target = await opened(files.folder)
    assert (target.state.cursor, target.problem) == (Position.of(1, 3 if is_idle else 2), None)
    await target.close()
    await check_goes_on(files.folder)


@pytest.mark.parametrize("deed", [other_file, renamed, backup, empty, cut, *CHANGED[:-1]])
async def test_no_state_and_no_snapshot_of_it_is_written_by_an_owner_that_stands_idle_meanwhile(
    files: Files, deed: Deed
) -> None:
    await files.stand_at(1)
    owner = await opened(files.folder)
    await apply(owner, 3)
    deed(files)
    for work in (owner.snapshot(), apply(owner, 4)):
        with pytest.raises(LeaseLostError):
            await work
    assert await owner.snapshots() == []
    await owner.close()
    await check_goes_on(files.folder)


async def test_it_is_told_until_the_disk_is_where_it_was_over_restarts_and_when_it_happens_again(
    files: Files,
) -> None:
    await files.stand_at(3)
    for end in (1, 2):
        other_file(files)
        for again in (0, end):
            target = await opened(files.folder)
            await apply(target, again)
            assert target.problem is not None
            assert "1-3" in target.problem.cause
            await target.close()
    target = await opened(files.folder)
    await apply(target, 3)
    assert target.problem is None
    await target.close()
    assert "lost_at" not in files.state.read_text()
    await check_goes_on(files.folder)


NEW: dict[str, tuple[str, ...]] = {
    "unnamed": ("name", "inode", "generation", "modified_ns", "changed_ns", "lost_at"),
    "mtime": ("name", "changed_ns"),
}
"""What the state documents of two older versions did not have yet."""


def as_before(state: Path, version: str) -> None:
    said = msgspec.json.decode(state.read_bytes(), type=dict[str, str])
    kept = {key: said[key] for key in said if key not in NEW[version]}
    assert len(said) - len(kept) == len({*NEW[version]} - {"lost_at"})
    state.write_bytes(msgspec.json.encode(kept))


@pytest.mark.parametrize("version", NEW)
@pytest.mark.parametrize("is_idle", [True, False])
async def test_what_an_older_version_wrote_is_taken_as_it_is_once(
    files: Files, is_idle: bool, version: str
) -> None:
    await files.stand_at(3, finish=is_idle)
    as_before(files.state, version)
    target = await opened(files.folder)
    assert (target.state.cursor, target.problem) == (Position.of(1, 3 if is_idle else 2), None)
    await apply(target, 3)
    await target.close()
    assert all(f'"{key}"' in files.state.read_text() for key in NEW[version] if key != "lost_at")
    renamed(files)
    await check_is_begun_anew_and_told(files)


@pytest.mark.parametrize("is_idle", [True, False])
async def test_an_older_version_that_named_the_file_is_not_believed_of_another(
    files: Files, is_idle: bool
) -> None:
    await files.stand_at(3, finish=is_idle)
    as_before(files.state, "mtime")
    renamed(files)
    await check_is_begun_anew_and_told(files)


async def test_of_an_older_version_too_a_file_of_another_size_is_another(files: Files) -> None:
    await files.stand_at(3)
    as_before(files.state, "unnamed")
    cut(files)
    await check_is_begun_anew_and_told(files)


async def test_a_snapshot_that_another_file_replaced_shows_nothing(files: Files) -> None:
    await files.stand_at(3)
    target = await opened(files.folder)
    snapshot = await target.snapshot()
    assert await target.shows_as_it_is(snapshot)
    run("cp", files.old_image, files.folder / "web1" / snapshot)
    assert not await target.shows_as_it_is(snapshot)
    await target.close()


async def test_a_snapshot_is_one_whose_owner_and_mode_are_changed_or_that_a_backup_brings_in_place(
    files: Files,
) -> None:
    """It was written once: no copy of it has other contents."""
    await files.stand_at(3)
    target = await opened(files.folder)
    name = await target.snapshot()
    snapshot = files.folder / "web1" / name
    run("cp", "-p", snapshot, files.folder / "kept")
    run("chmod", "640", snapshot)
    run("cp", "-p", files.folder / "kept", snapshot)
    assert await target.shows_as_it_is(name)
    run("cp", "-p", files.old_image, snapshot)
    assert not await target.shows_as_it_is(name)
    await target.close()


async def test_a_disk_that_somebody_writes_to_while_it_is_copied_gets_no_snapshot(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    await files.stand_at(3)
    target = await opened(files.folder)
    real = ImageTarget._copy_to

    def copy_while_it_is_written(self: ImageTarget, path: Path) -> Any:
        dd(files)
        return real(self, path)

    monkeypatch.setattr(ImageTarget, "_copy_to", copy_while_it_is_written)
    with pytest.raises(LeaseLostError):
        await target.snapshot()
    assert await target.snapshots() == []
    await target.close()
    await check_goes_on(files.folder)


@pytest.mark.parametrize("is_idle", [True, False])
async def test_two_disks_that_are_exchanged_with_their_states_are_begun_anew(
    files: Files, is_idle: bool
) -> None:
    """And told only until they stand somewhere: where they stood nobody knows any more."""
    for disk in ("sdb", "sda"):
        target = await ImageTarget.open(files.folder, "web1", disk, DISK_B)
        await apply(target, 3, finish=is_idle)
        await target.close()
    for suffix in ("img", "state.json"):
        one, two = (files.folder / "web1" / f"{disk}.{suffix}" for disk in ("sda", "sdb"))
        run("mv", one, files.folder / "away")
        run("mv", two, one)
        run("mv", files.folder / "away", two)
    target = await opened(files.folder)
    assert (target.state.cursor, target.problem is not None) == (NOWHERE, True)
    await apply(target, 1)
    assert target.problem is None
    await target.close()
    await check_goes_on(files.folder)


def foreign(files: Files) -> None:
    files.image.unlink()
    files.image.write_bytes(b"secret!!" * (DISK_B // 8))


def foreign_without_state(files: Files) -> None:
    foreign(files)
    files.state.unlink()


@pytest.mark.parametrize("deed", [foreign, foreign_without_state])
@pytest.mark.parametrize("epoch", [1, 2])
async def test_nothing_stays_of_a_foreign_file_not_even_where_the_source_cannot_be_read(
    files: Files, epoch: int, deed: Deed
) -> None:
    await files.stand_at(3)
    first = DiskInterval(Position.of(epoch, 0), Position.of(epoch, 1), DISK_B, CLAIM, "d0", "d1")
    if epoch == 2:
        owner = await opened(files.folder)
        await owner.begin(first)
        await owner.close()  # killed
    deed(files)
    target = await opened(files.folder)
    await target.begin(first)
    await target.finish()  # nothing of the disk could be read
    assert await target.read(0, DISK_B) == bytes(DISK_B)
    await target.close()


class Killed(BaseException):
    """The process is no more."""


class Killer:
    """Ends it before or behind the `at`-th of all writes: of images, states, and what makes them durable."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        for where, name in (
            (durable, "replace_file"),
            (durable, "remove_file"),
            (durable, "sync_folder"),
            (SparseFile, "resize"),
            (SparseFile, "write"),
            (SparseFile, "clear"),
            (SparseFile, "sync"),
        ):
            patch.setattr(where, name, self._ending(getattr(where, name)))

    def _ending(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def ends(*args: Any, **options: Any) -> Any:
            self._count()
            result = real(*args, **options)
            self._count()
            return result

        return ends

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("deed", [None, renamed])
async def test_killed_between_any_two_writes_it_is_right_whatever_lies_there_then(
    files: Files, monkeypatch: pytest.MonkeyPatch, deed: Deed | None
) -> None:
    """Killed while a file that was replaced is begun anew and brought to where it was; then it may be replaced once more."""
    at = 0
    while True:
        shutil.rmtree(files.folder / "web1", ignore_errors=True)
        await files.stand_at(2)
        renamed(files)
        target = None
        with monkeypatch.context() as patch:
            killer = Killer(patch, at)
            try:
                target = await opened(files.folder)
                await apply(target, 3)
                await target.snapshot()
            except Killed:
                pass
        if target is not None:
            await target.close()
        if deed is not None:
            deed(files)
        target = await opened(files.folder)
        await check(target)
        assert target.problem is not None or (deed is None and target.state.cursor.batch >= 2)
        await target.close()
        await check_goes_on(files.folder)
        if killer.left >= 0:
            break
        at += 1
    assert at > 40


@pytest.mark.parametrize("deed", ["older copy", "empty file"])
async def test_a_machine_whose_image_was_replaced_is_right_again_with_all_its_points(
    machine_storage: MachineStorage, tmp_path: Path, deed: str
) -> None:
    images = tmp_path / "images"
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    model.write(8, mark="one")
    await model.publish()
    async with running(model, image_dir=images) as machine:
        await until_snapshotted(machine, model)
    image = images / model.name / f"{model.disk_names[0]}.img"
    run("cp", image, tmp_path / "old.img")
    model.write(8, mark="two")
    await model.publish()
    async with running(model, image_dir=images) as machine:
        await until_snapshotted(machine, model)
        assert machine.report().errors == []
    run("cp", tmp_path / "old.img" if deed == "older copy" else "/dev/null", image)
    told = set[tuple[str, str]]()
    # First without a word of the log behind: what is told there stays until the disk is where it was.
    async with running(model, image_dir=images) as machine:

        def seen() -> bool:
            told.update((problem.code, problem.object) for problem in machine.report().errors)
            return bool(told)

        await until(machine, seen)
        await until_applied(machine, model.position)
        await until(machine, lambda: not machine.report().errors)
    assert told == {("US608", model.disk_names[0])}
    model.write(8, mark="three")
    await model.publish()
    async with running(model, image_dir=images) as machine:
        docs = await until_snapshotted(machine, model)
    for doc in docs:
        shown = [images / model.name / doc.snapshots[name] for name in model.disk_names]
        sums = [hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest() for path in shown]
        assert sums == model.digests[doc.position]
    await check_points(model, tmp_path / "restored")
    for name, disk in zip(model.disk_names, model.disks, strict=True):
        assert (images / model.name / f"{name}.img").read_bytes() == disk
