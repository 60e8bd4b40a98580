"""A restore that is killed goes on where it was, and ends with the same disks."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from shared.blob import BlobConfig, BlobStore
from shared.recovery.catalog import Catalog
from shared.recovery.materialise import Progress, materialise
from shared.recovery.references import resolve
from shared.recovery.verify import make_plan
from tests.crash.restore_child import Parameters
from tests.machine_log import ModelMachine
from tests.master_parts import running, sectors_of, until_snapshotted


async def restore_until_killed(model: ModelMachine, blob: BlobConfig, to: Path, crash_at: str) -> None:
    parameters = Parameters(blob=blob, vault=str(model.vault.path), machine=model.name, to=str(to))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.crash.restore_child"),
        env=os.environ | {"UNDERSTUDY_CRASH_AT": crash_at},
        stdin=asyncio.subprocess.PIPE,
    )
    await process.communicate(
        msgspec.json.encode(parameters, enc_hook=str)
    )  # it ends by itself, and says where it stood
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "crash_at",
    ["restore.after-base-group", "restore.after-runs", "restore.after-segment:2", "restore.before-manifest"],
)
async def test_a_killed_restore_goes_on_and_gives_the_same_disks(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path, crash_at: str
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    model.disks[0][:] = model.rng.randbytes(len(model.disks[0]))
    await model.begin_epoch()
    model.fail_to_read((0, 0, 400))
    model.write(mark="base")
    await model.publish()
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    for n in range(4):
        model.fail_to_read((1, 30 * n, 60))
        model.write(8)
    await model.publish(segments=4)

    to = tmp_path / "out"
    await restore_until_killed(model, blob_config, to, crash_at)
    catalog = await Catalog.load(store, model.name)
    plan = await make_plan(store, catalog, await resolve(catalog, "latest"))
    assert plan.base is not None
    seen: list[Progress] = []
    manifest = await materialise(store, model.vault, plan, to, seen.append)
    assert [disk.sha256 for disk in manifest.disks] == model.sha256()
    assert [(to / f"{n}.raw").read_bytes() for n in model.disk_names] == model.disks
    assert sectors_of(manifest.missing) == model.missing[model.position]
    assert sorted(p.name for p in to.iterdir()) == ["loop0.raw", "loop1.raw", "manifest.json"]
    base = next(p for p in seen if p.stage == "base" and p.done_b)
    assert base.done_b > 0  # what was downloaded before the kill is counted at once, not downloaded again
    if crash_at.startswith("restore.after-segment"):
        log = [p.done_b for p in seen if p.stage == "log"]
        assert log[1] > 0
        assert len(log) == 2 + 2  # two of the four segments are left


async def test_when_the_base_is_another_one_the_restore_begins_again(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    model.disks[0][:] = model.rng.randbytes(len(model.disks[0]))
    await model.begin_epoch()
    model.write(8)
    model.write(8, mark="m")
    await model.publish(segments=2)
    to = tmp_path / "out"
    await restore_until_killed(model, blob_config, to, "restore.after-segment")
    async with running(model) as machine:
        await until_snapshotted(machine, model)
    catalog = await Catalog.load(store, model.name)
    plan = await make_plan(store, catalog, await resolve(catalog, "latest"))
    assert plan.base is not None
    assert not plan.replay
    manifest = await materialise(store, model.vault, plan, to)
    assert [disk.sha256 for disk in manifest.disks] == model.sha256()


async def test_when_an_image_was_deleted_meanwhile_the_restore_begins_again(
    store: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    for _ in range(3):
        model.write()
        await model.publish()
    to = tmp_path / "restored"
    await restore_until_killed(model, blob_config, to, "restore.before-manifest")
    (to / f"{model.disk_names[0]}.raw").unlink()
    catalog = await Catalog.load(model.store, model.name)
    plan = await make_plan(model.store, catalog, await resolve(catalog, "latest"))
    manifest = await materialise(model.store, model.vault, plan, to)
    assert [disk.sha256 for disk in manifest.disks] == model.sha256()
