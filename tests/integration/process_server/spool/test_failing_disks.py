"""Cache disks that fail for real: full, not deletable, unreadable, with failing syncs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from process_server.spool import machine_folder
from process_server.spool.spool import MachineLog
from shared.blob import BlobConfig, BlobStore
from shared.errors import (
    SpoolError,
    SpoolFullError,
    SpoolLeftoversError,
    SpoolLostError,
    SpoolStateError,
)
from shared.log import names
from shared.log.epochs import newest_epoch
from tests.logs import make_chain
from tests.loopdisk import loop_disk
from tests.spools import (
    Gated,
    append_all,
    epoch_folders,
    hello,
    hello_again,
    make_spool,
    opened,
    read_log,
    same_batches,
    spool_files,
    started,
    until,
    uploaded,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_full_cache_disk_loses_nothing_and_goes_on_when_there_is_room(
    store: BlobStore, small_disk: Path, tmp_path: Path
) -> None:
    chain = make_chain(40, sectors=128)  # 64 KiB each, every other incompressible
    folder = small_disk / "spool"
    ballast = small_disk / "ballast"
    spool = make_spool(folder, store, size_b=8 << 20)
    async with opened(spool) as log:
        ballast.write_bytes(bytes(1 << 20))
        taken = 0
        with pytest.raises(SpoolFullError, match="No space left"):
            for m in chain:
                await log.append(*m)
                taken += 1
        assert 10 < taken < 40
        position = await log.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (taken, chain[taken - 1].digest)
        ballast.unlink()
        await append_all(log, chain[taken:])
        await log.flush()
        assert log.pending_b == 0
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left; removed, it gives it back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return ballast


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_restart_on_a_full_cache_disk_uploads_what_it_holds(
    store: BlobStore, small_disk: Path, tmp_path: Path
) -> None:
    chain = make_chain(100)  # so many that their footer needs room of its own
    folder = small_disk / "spool"
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain)
        fill(small_disk)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 100)
        assert (await log.begin(await hello_again(store, 1))).spooled == 100
        assert len([b async for b in store.list(names.term_prefix(1))]) == 2
    assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB on which even a folder takes room."""
    folder = tmp_path / "ext4"
    folder.mkdir()
    with loop_disk(tmp_path / "ext4.img", 8 << 20) as device:
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", device], check=True)
        subprocess.run(["mount", device, str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def nothing_deletable(folder: Path) -> Iterator[None]:
    """Until the block ends, files can be made in the folder, but none can be deleted or replaced."""
    subprocess.run(["chattr", "+a", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-a", folder], check=True)


def kinds(log: MachineLog) -> set[type[Exception]]:
    return {type(error) for error in log.errors}


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_spool_files_that_cannot_be_deleted_are_told_and_go_when_they_can(
    store: BlobStore, small_ext4: Path
) -> None:
    folder = small_ext4 / "spool"
    chain = make_chain(4)
    async with opened(make_spool(folder, store, check_seconds=0.2)) as log:
        with nothing_deletable(folder / "m1/00000001"):
            await append_all(log, chain[:2])
            await log.flush()
            await until(log, lambda: kinds(log) >= {SpoolLeftoversError, SpoolStateError})
            assert len(spool_files(folder)) == 1
            await append_all(log, chain[2:])
            await log.flush()  # and it goes on meanwhile
        await until(log, lambda: not log.errors)
        assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


async def test_listed_files_that_a_restart_finds_before_a_gap_are_deleted_and_not_called_unlisted(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    home = folder / "m1/00000001"
    chain = make_chain(9)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated)) as log:
            await append_all(log, chain[:3])
            [first] = home.glob("*.seg")
            kept = first.read_bytes()
            gated.gate.set()
            await log.flush()
            await append_all(log, chain[3:6])
            await log.flush()
            await until(log, lambda: not spool_files(folder))
            gated.gate.clear()
            await append_all(log, chain[6:])
        first.write_bytes(kept)  # as if it could not be deleted
        gated.gate.set()
        async with opened(make_spool(folder, gated), epoch=1) as log:
            await log.flush()
            assert not log.errors
    assert spool_files(folder) == []
    assert same_batches(await read_log(store, folder), chain)


async def test_a_spool_file_that_the_disk_does_not_give_for_a_while_ends_no_epoch(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    chain = make_chain(3)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated)) as log:
            await append_all(log, chain)
    [path] = (folder / "m1/00000001").glob("*.seg")
    away = path.with_suffix(".away")
    path.rename(away)
    path.mkdir()  # reading it fails
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("Is a directory" in error.cause for error in log.errors))
        with pytest.raises(SpoolError) as caught:
            await log.begin(await hello_again(store, 1))
        assert not caught.value.ends_epoch
        path.rmdir()
        away.rename(path)
        assert (await log.begin(await hello_again(store, 1))).spooled == 3
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
@pytest.mark.parametrize("size_b", [1 << 20, 1], ids=["the only file", "the first of three"])
async def test_what_the_disk_does_not_give_for_long_is_set_aside_and_the_machine_goes_on(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_b: int
) -> None:
    """That there are later files says nothing about storage: what the first one held need not have been listed."""
    monkeypatch.setattr(machine_folder, "UNREADABLE_S", 0.0)
    folder = tmp_path / "spool"
    chain = make_chain(3)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=size_b)) as log:
            await append_all(log, chain)
    path = min((folder / "m1/00000001").glob("*.seg"))
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # nothing answers behind it
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any(isinstance(e, SpoolLostError) for e in log.errors))
        assert (await log.begin(await hello_again(store, 1))).spooled == 0
        await append_all(log, chain)  # this agent still has them
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_a_new_epoch_that_finds_no_room_is_allocated_once_and_the_old_one_drains(
    blob_config: BlobConfig, small_ext4: Path
) -> None:
    old, new = make_chain(20, sectors=128), make_chain(3, epoch=2)
    reboot = msgspec.structs.replace(hello(0, "reboot"), agent_id="agent")
    folder = small_ext4 / "spool"
    async with Gated.connect(blob_config) as store:
        store.gate = asyncio.Event()
        async with opened(make_spool(folder, store, size_b=64 << 20)) as log:
            await append_all(log, old)
            fill(small_ext4)
            for _ in range(3):
                with pytest.raises(SpoolFullError, match="No space left"):
                    await log.begin(reboot)
            assert await newest_epoch(store) == 2
            store.gate.set()
            await until(log, lambda: epoch_folders(folder) == [])
            assert len([b async for b in store.list(names.term_prefix(1))]) == 1, "it simply goes on"
            assert (await log.begin(reboot)).epoch == 2
            await append_all(log, new)
            await log.flush()
        assert same_batches(await read_log(store, folder, 1), old)
        assert same_batches(await read_log(store, folder, 2), new)


@pytest.fixture
def thin_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system whose block device has less room than it says, so that syncs fail; and a file whose removal makes room."""
    backing, folder = tmp_path / "backing", tmp_path / "thin"
    backing.mkdir()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(backing)], check=True)
    image = backing / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    loop = ""
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        made = subprocess.run(
            ["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True
        )
        loop = made.stdout.strip()
        subprocess.run(["mount", "-o", "errors=continue", loop, str(folder)], check=True)
        yield folder, backing / "ballast"
    finally:
        subprocess.run(["umount", str(folder)], check=False)
        if loop:
            subprocess.run(["losetup", "-d", loop], check=True)
        subprocess.run(["umount", str(backing)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
async def test_a_sync_that_really_fails_loses_nothing_that_was_acknowledged(
    store: BlobStore, thin_disk: tuple[Path, Path]
) -> None:
    disk, ballast = thin_disk
    folder = disk / "spool"
    chain = make_chain(23, sectors=1024)  # 512 KiB each, every other incompressible
    async with opened(make_spool(folder, store, size_b=16 << 20)) as log:
        await append_all(log, chain[:3])
        ballast.write_bytes(bytes(7 << 20))
        taken = 3
        with pytest.raises(SpoolError, match="sync failed"):
            for m in chain[3:]:
                await log.append(*m)
                taken += 1
        assert taken < 23
        position = await log.begin(await hello_again(store, 1))
        assert (position.spooled, position.spooled_digest) == (taken, chain[taken - 1].digest)
        ballast.unlink()
        for _ in range(5):  # as the agent does: the file system may report old errors once more
            position = await log.begin(await hello_again(store, 1))
            assert position.spooled >= taken
            try:
                await append_all(log, chain[position.spooled :])
            except SpoolError:
                continue
            break
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert spool_files(folder) == []
