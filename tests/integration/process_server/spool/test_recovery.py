"""What a restart makes of a spool that is damaged, of another version, or not given by its disk."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from process_server.spool import machine_folder
from shared.blob import BlobConfig, BlobStore
from shared.errors import (
    SetAsideError,
    SpoolError,
    SpoolLostError,
    SpoolVersionError,
)
from tests.logs import make_chain
from tests.spools import (
    Gated,
    append_all,
    hello,
    hello_again,
    left_behind,
    make_spool,
    opened,
    read_log,
    same_batches,
    started,
    until,
    uploaded,
)


@pytest.mark.parametrize("left", [b"", b"\xff\xfe", b"[" * 100_000], ids=["empty", "garbage", "too deep"])
async def test_a_damaged_state_document_locks_nobody_out(store: BlobStore, folder: Path, left: bytes) -> None:
    chain = make_chain(6)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:3])
        await log.flush()
        await append_all(log, chain[3:])
    (folder / "m1/00000001/state.json").write_bytes(left)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 6)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 6
    assert same_batches(await read_log(store, folder), chain)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
async def test_a_state_document_that_the_disk_does_not_give_for_long_locks_nobody_out(
    store: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(9)
    async with opened(make_spool(folder, store)) as log:
        await append_all(log, chain[:3])
        await log.flush()
        await append_all(log, chain[3:6])
    state = folder / "m1/00000001/state.json"
    state.unlink()
    os.mknod(state, 0o600 | stat.S_IFCHR, os.makedev(0, 0))  # nothing answers behind it
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("state.json could not be read" in error.what for error in log.errors))
        with pytest.raises(SpoolError, match="could not be read") as caught:
            await log.begin(await hello_again(store, 1))
        assert not caught.value.ends_epoch, "for a while it is waited for"
        monkeypatch.setattr(machine_folder, "UNREADABLE_S", 0.0)
        await until(log, lambda: uploaded(log) == 6)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 6
        await append_all(log, chain[6:])
        await log.flush()
    assert same_batches(await read_log(store, folder), chain)
    assert state.is_file(), "written anew"


async def test_a_spool_file_of_a_newer_version_stays_and_its_machine_says_so(
    store: BlobStore, folder: Path
) -> None:
    chain = make_chain(3)
    await left_behind(folder, store, chain)
    path = folder / "m1/00000001/000000000001.seg"
    ours = path.read_bytes()
    path.write_bytes(ours[:8] + b"\3" + ours[9:])
    async with started(make_spool(folder, store, check_seconds=0.05)) as log:
        await until(log, lambda: any(isinstance(e, SpoolVersionError) for e in log.errors))
        with pytest.raises(SpoolVersionError, match="cannot be read"):
            await log.begin(await hello_again(store, 1))
    assert path.read_bytes() == ours[:8] + b"\3" + ours[9:]
    path.write_bytes(ours)  # the program that wrote it is back
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 3)
    assert same_batches(await read_log(store, folder), chain)


async def test_behind_a_damaged_spool_file_the_log_goes_on_where_it_still_can_and_the_loss_is_told(
    store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(9)
    async with opened(make_spool(folder, store, size_b=1)) as log:
        await append_all(log, chain[:3])
        await log.flush()
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=1), epoch=1) as log:
            await append_all(log, chain[3:9])  # a file each
    damaged = folder / "m1/00000001/000000000006.seg"
    data = bytearray(damaged.read_bytes())
    data[30] ^= 1
    damaged.write_bytes(data)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: uploaded(log) == 5)  # without the agent
        assert (await log.begin(await hello_again(store, 1))).spooled == 5, (
            "an agent that has let go of 6 begins a new epoch"
        )
        lost, unlisted = log.errors
        assert isinstance(lost, SpoolLostError)
        assert "batches 6 to 6 of epoch 1" in lost.cause
        assert isinstance(unlisted, SetAsideError)
        assert "batches 6 to 6 before them are lost" in unlisted.cause
    assert (folder / "m1/damaged/00000001-000000000006.seg").read_bytes() == data
    assert len(list((folder / "m1/unlisted").glob("*.seg"))) == 3
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: len(log.errors) == 2)  # after a restart as well
        for kind in ("damaged", "unlisted"):
            for path in (folder / "m1" / kind).iterdir():
                path.unlink()
        await log.begin(hello(0))
        await until(log, lambda: log.errors == [])
    assert same_batches(await read_log(store, folder), chain[:5])


async def test_damage_that_only_the_upload_finds_is_set_aside_and_the_rest_goes_on(
    store: BlobStore, blob_config: BlobConfig, folder: Path
) -> None:
    chain = make_chain(9)
    async with Gated.connect(blob_config) as gated:
        gated.gate = asyncio.Event()
        async with opened(make_spool(folder, gated, size_b=2500)) as log:
            await append_all(log, chain)
    files = sorted((folder / "m1/00000001").glob("*.seg"))
    assert len(files) > 2
    data = bytearray(files[1].read_bytes())
    data[1000] ^= 1
    files[1].write_bytes(data)
    first = int(files[1].stem)
    async with started(make_spool(folder, store)) as log:
        await until(log, lambda: any("Damaged spool files" in e.what for e in log.errors))
        await until(log, lambda: uploaded(log) >= first - 1 and log.upload_trouble is None)
        position = await log.begin(await hello_again(store, 1))
        assert first - 1 <= position.spooled < int(files[2].stem)
        await append_all(log, chain[position.spooled :])  # this agent still has them
        await log.flush()
    assert (folder / f"m1/damaged/00000001-{files[1].name}").read_bytes() == data
    assert same_batches(await read_log(store, folder), chain)
