"""Restoring a point of a model machine, and looking at what came of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shared.keys.vault import FileVault
from shared.recovery import materialise as materialise_module
from shared.recovery import point_store
from shared.recovery.catalog import Catalog
from shared.recovery.folder import MANIFEST, Manifest
from shared.recovery.materialise import materialise
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import Position
from shared.recovery.references import resolve
from shared.recovery.seed import seed_blob
from shared.recovery.verify import make_plan
from tests.machine_log import ModelMachine
from tests.master_parts import sectors_of

MIB = 1024 * 1024


class Interrupted(Exception):
    pass


async def restore(
    machine: ModelMachine, reference: str, to_dir: Path, vault: FileVault | None = None
) -> Manifest:
    catalog = await Catalog.load(machine.store, machine.name)
    plan = await make_plan(machine.store, catalog, await resolve(catalog, reference))
    return await materialise(machine.store, vault or machine.vault, plan, to_dir)


async def interrupted(machine: ModelMachine, reference: str, to_dir: Path, at: str, nth: int) -> None:
    """Begin that restore, and end it at the `nth` visit of that point, as a kill would."""
    visits = 0

    def reach(point: str) -> None:
        nonlocal visits
        visits += point == at
        if visits == nth:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(materialise_module, "reach", reach)
        with pytest.raises(Interrupted):
            await restore(machine, reference, to_dir)


def shown_now(machine: ModelMachine) -> dict[str, str]:
    """What seed disks that stand at the machine's position say of themselves."""
    place, claim = str(machine.position), machine.id.claim
    return {"cursor": place, "pending": place, "cursor_claim": claim, "pending_claim": claim}


async def snapshot_now(machine: ModelMachine) -> PointDoc:
    """The point at the machine's last batch, snapshotted: seed disks as a master target would leave them."""
    snapshots = {}
    for name, disk in zip(machine.disk_names, machine.disks, strict=True):
        blob = seed_blob(name)
        await machine.store.delete(blob)
        await machine.store.pages.create(blob, -(-len(disk) // MIB) * MIB + 512)
        step_b = 4096 if len(disk) < MIB else MIB
        for at in range(0, len(disk), step_b):
            piece = bytes(disk[at : at + step_b])
            if any(piece):
                await machine.store.pages.write(blob, at, piece)
        await machine.store.set_metadata(blob, shown_now(machine))
        snapshots[name] = await machine.store.snapshot(blob)
    logged = logged_point(
        machine.name, machine.position, machine.id.claim, machine.captured_ns, "crash", ["p"]
    )
    doc = PointDoc(
        **{f: getattr(logged, f) for f in logged.__struct_fields__}
        | {"state": "snapshotted", "target": "page-blob", "snapshots": snapshots}
    )
    await point_store.write_new(machine.store, doc)
    return doc


async def with_base(machine: ModelMachine) -> PointDoc:
    """The point with snapshots that a full replication of full disks, and one write, made."""
    machine.disks[0][:] = machine.rng.randbytes(len(machine.disks[0]))
    await machine.begin_epoch()
    machine.write(mark="p")
    await machine.publish()
    return await snapshot_now(machine)


def check(machine: ModelMachine, position: Position, folder: Path, manifest: Manifest) -> None:
    assert Position.of(manifest.epoch, manifest.batch) == position
    assert sectors_of(manifest.missing) == machine.missing[position]
    for name, disk, digest, entry in zip(
        machine.disk_names, machine.disks, machine.digests[position], manifest.disks, strict=True
    ):
        data = (folder / f"{name}.raw").read_bytes()
        assert len(data) == len(disk) == entry.size_b
        assert hashlib.sha256(data).hexdigest() == digest == entry.sha256
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [MANIFEST, *(f"{name}.raw" for name in machine.disk_names)]
    )
