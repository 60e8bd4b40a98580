"""Looking before leaping: is everything there that a recovery point needs, and does it open?"""

from __future__ import annotations

import msgspec

from shared import logging
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, SnapshotError
from shared.recovery.catalog import Catalog
from shared.recovery.fit import check_disks, check_extents
from shared.recovery.plan import Plan, base_candidates, replay_steps
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob, shown_position
from shared.vault import Vault

_log = logging.get()


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was found to be there and in order. A failure is an error, not a result."""

    machine: str
    id: str
    time_ns: int
    base: str | None
    """Id of the point whose snapshots the restore starts from."""
    segments: int
    batches: int
    log_b: int


async def make_plan(store: BlobStore, catalog: Catalog, position: Position) -> Plan:
    """How to restore `position`: from the newest base that proves valid. Raises LogGapError, LogMisfitError."""
    epoch = catalog.epoch(position.epoch)
    check_disks(catalog.machine, epoch.epoch, epoch.disks)
    base = None
    for doc in base_candidates(position, list(catalog.docs.values())):
        try:
            await check_snapshots(store, catalog, doc)
        except SnapshotError as exc:
            _log.warning("point not used as base", machine=catalog.machine, point=doc.id, **exc.as_dict())
        else:
            base = doc
            break
    captured_ns = await catalog.captured_ns(position)
    return Plan(
        machine=catalog.machine,
        position=position,
        captured_ns=captured_ns,
        suspect=catalog.is_suspect(position, captured_ns),
        disks=epoch.disks,
        point=catalog.docs.get(position),
        base=base,
        replay=replay_steps(catalog.entries(position.epoch), base.batch if base else 0, position),
    )


async def check_snapshots(store: BlobStore, catalog: Catalog, doc: PointDoc) -> None:
    """Raises SnapshotError unless every disk of the epoch has its snapshot and each names the point's position (I6)."""
    for disk in catalog.epoch(doc.epoch).disks:
        what = f"Recovery point {doc.id} has no valid snapshot of disk {disk.name}"
        snapshot = doc.snapshots.get(disk.name)
        if snapshot is None:
            raise SnapshotError(what, cause="its document names none")
        try:
            info = await store.properties(seed_blob(disk.name), snapshot)
        except BlobNotFoundError as exc:
            raise SnapshotError(what, cause=f"snapshot {snapshot} does not exist") from exc
        shown = shown_position(info.metadata)
        if shown != doc.position:
            raise SnapshotError(what, cause=f"snapshot {snapshot} shows position {shown}, not {doc.position}")
        if info.size_b < disk.sectors * SECTOR:
            raise SnapshotError(what, cause=f"snapshot {snapshot} has {info.size_b} bytes, the disk has more")


async def verify(store: BlobStore, vault: Vault, catalog: Catalog, position: Position) -> Verification:
    """Reads and opens all that a restore of `position` would read of the log, and looks up its snapshots.

    Raises what the restore would raise: LogGapError, IntegrityErrors, StorageErrors; and SnapshotError when the point's document
    promises snapshots that are not there.
    """
    doc = catalog.docs.get(position)
    if doc is not None and doc.state == "snapshotted" and doc.target == "page-blob":
        await check_snapshots(store, catalog, doc)
    plan = await make_plan(store, catalog, position)
    batches = 0
    for step in plan.replay:
        opened = await catalog.reader.batches(step.entry, vault, step.first, step.last)
        check_extents(opened, plan.disks)
        batches += len(opened)
    return Verification(
        machine=plan.machine,
        id=str(position),
        time_ns=plan.captured_ns,
        base=plan.base.id if plan.base else None,
        segments=len(plan.replay),
        batches=batches,
        log_b=plan.log_b,
    )
