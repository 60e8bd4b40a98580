"""Looking before leaping: is everything there that a recovery point needs, and does it open?"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shared import logging
from shared.batch import SECTOR
from shared.blob import BlobStore
from shared.errors import BlobNotFoundError, IntegrityError, LogGapError, SnapshotError
from shared.recovery.catalog import Catalog
from shared.recovery.fit import check_disks, check_extents
from shared.recovery.folder import Journal
from shared.recovery.plan import Plan, Replay, base_candidates, replay_steps
from shared.recovery.points import PointDoc
from shared.recovery.position import Position
from shared.recovery.seed import seed_blob, shown_claim, shown_position
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


async def make_plan(
    store: BlobStore, catalog: Catalog, position: Position, begun: Journal | None = None
) -> Plan:
    """How to restore `position`: from the newest base that proves valid; if the restore has `begun`, from its own, as long as that does.
    Raises LogGapError, LogMisfitError.
    """
    epoch = catalog.epoch(position.epoch)
    check_disks(catalog.machine, epoch.epoch, epoch.disks)
    candidates: list[PointDoc | None] = [*base_candidates(position, list(catalog.docs.values())), None]
    if (
        begun is not None
        and (begun.origin.id, begun.origin.claim) == (str(position), epoch.claim)
        and begun.claims
    ):
        candidates.insert(0, begun.base)
    base, replay = await _beginning(store, catalog, position, candidates)
    at_base = base is not None and not replay  # then nothing of the log is needed
    captured_ns = base.captured_ns if base is not None and at_base else await catalog.captured_ns(position)
    return Plan(
        machine=catalog.machine,
        epoch=epoch.id,
        position=position,
        captured_ns=captured_ns,
        suspect=catalog.is_suspect(position),
        disks=epoch.disks,
        point=catalog.docs.get(position),
        base=base,
        replay=replay,
    )


async def _beginning(
    store: BlobStore, catalog: Catalog, position: Position, candidates: Sequence[PointDoc | None]
) -> tuple[PointDoc | None, tuple[Replay, ...]]:
    """The first of the bases (None: zeroes) that is there and from which the log leads to `position`. Raises what the last one lacks."""
    entries = catalog.entries(position.epoch)
    trouble: IntegrityError | None = None
    for doc in candidates:
        try:
            if doc is not None:
                await check_snapshots(store, catalog, doc)
            return doc, replay_steps(entries, doc.batch if doc else 0, position)
        except (SnapshotError, LogGapError) as exc:
            trouble = exc
            if doc is not None:
                _log.warning("point not used as base", machine=catalog.machine, point=doc.id, **exc.as_dict())
    assert trouble is not None
    raise trouble


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
        claim = shown_claim(info.metadata)
        if (shown, claim) != (doc.position, doc.claim):
            raise SnapshotError(
                what,
                cause=f"snapshot {snapshot} shows position {shown} of claim {claim or 'unknown'}, "
                f"not {doc.position} of claim {doc.claim}",
            )
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
        opened = await catalog.reader.batches(plan.epoch, step.entry, vault, step.first, step.last)
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
