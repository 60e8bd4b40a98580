"""The master target, killed at every named point of apply and of making points; then the invariants (I6), and a clean second run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from shared.blob import BlobConfig
from shared.log import names
from shared.machine.storage import MachineStorage
from shared.recovery import point_store
from shared.recovery.seed import seed_blob
from tests.machine_log import ModelMachine
from tests.master_parts import (
    check_points,
    running,
    seed_digests,
    until_applied,
    until_ended,
    until_snapshotted,
)

KILLS = [
    "unreadable.after-note",
    "apply.after-begin",
    "apply.after-a-write",
    "apply.after-a-write:7",
    "apply.before-finish",
    "apply.after-a-finish",
    "points.after-document",
    "points.after-roll",
    "points.after-a-snapshot",
    "points.after-a-snapshot:2",
    "points.after-snapshots",
]
IMAGE_KILLS = [
    "apply.after-a-write:7",
    "apply.after-a-finish",
    "image.before-snapshot-state",
    "points.after-a-snapshot",
]
"""Where an image file differs from a page blob."""


def write_config(folder: Path, blob: BlobConfig, **more: object) -> Path:
    path = folder / "master-target.toml"
    settings = {"name": "mt1", "vault_file": str(folder / "vault.json"), "poll_s": 0.02, **more}
    storage = {
        "url": blob.url,
        "container": blob.container,
        "account_key_file": str(blob.account_key_file),
        "ca_file": str(blob.ca_file),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    lines += ["[blob]", *(f"{key} = {json.dumps(value)}" for key, value in storage.items())]
    lines += ["[bridge]", "behind_s = 0.0", "request_b = 8192"]
    path.write_text("\n".join(lines) + "\n")
    return path


async def start(config: Path, crash_at: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "master_target", "--config", str(config)),
        env=os.environ | {"UNDERSTUDY_CRASH_AT": crash_at},
        stderr=asyncio.subprocess.DEVNULL,
    )


@pytest.mark.parametrize("target", ["page-blob", "image"])
async def test_killed_anywhere_the_disks_and_all_points_are_right_after_a_restart(
    machine_storage: MachineStorage, blob_config: BlobConfig, tmp_path: Path, target: str
) -> None:
    images = tmp_path / "images" if target == "image" else None
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    config = write_config(
        tmp_path, blob_config, **({"target": "image", "image_dir": str(images)} if images else {})
    )
    await model.begin_epoch()
    kills = IMAGE_KILLS if images else KILLS
    for i, crash_at in enumerate(kills):
        if i == len(kills) // 2:
            await model.begin_epoch("agent restarted")
        model.fail_to_read(
            (0, 10 * i, 30), (1, 5 * i, 40)
        )  # some of it is written before the mark, some behind it
        model.write(8)
        model.write(8, mark=crash_at)
        model.write(8)
        await model.publish()
        await until_ended(await start(config, crash_at), -signal.SIGKILL)
        # Whatever a document promises is there, also right after the kill.
        for doc in await point_store.list_docs(model.store, model.name):
            if doc.state == "snapshotted" and not images:
                assert await seed_digests(model, doc.snapshots) == model.digests[doc.position]
    async with running(model, image_dir=images) as machine:
        await until_applied(machine, model.position)
        docs = await until_snapshotted(machine, model)
    assert [d.marks for d in docs] == [(crash_at,) for crash_at in kills]
    await check_points(model, tmp_path / "restored")
    if images:
        for name, disk in zip(model.disk_names, model.disks, strict=True):
            assert (images / model.name / f"{name}.img").read_bytes() == disk
    else:
        assert await seed_digests(model) == model.sha256()


async def test_sigterm_ends_the_daemon_and_leaves_nothing_unfinished(
    machine_storage: MachineStorage, blob_config: BlobConfig, tmp_path: Path
) -> None:
    model = await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    await model.begin_epoch()
    model.write(mark="m")
    await model.publish()
    process = await start(write_config(tmp_path, blob_config))
    while not any(d.state == "snapshotted" for d in await point_store.list_docs(model.store, model.name)):
        assert process.returncode is None
    process.terminate()
    await until_ended(process, 0)
    for name in model.disk_names:
        info = await model.store.properties(seed_blob(name))
        assert not info.leased
        assert info.metadata["cursor"] == info.metadata["pending"] == str(model.position)
    assert not (await model.store.properties(names.MASTER)).leased
