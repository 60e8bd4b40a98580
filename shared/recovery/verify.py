"""Looking before leaping: is everything there that a recovery point needs, and does it open?"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import IntegrityError, LogGapError, SnapshotError
from shared.keys.vault import Vault
from shared.recovery import history
from shared.recovery.alone import UNTOLD_DISKS, UNTOLD_SUSPICION, check_snapshots, disks_of, numbered
from shared.recovery.catalog import Catalog
from shared.recovery.fit import check_disks, check_extents
from shared.recovery.folder import Journal
from shared.recovery.plan import Plan, Replay, base_candidates, replay_steps
from shared.recovery.points import PointDoc
from shared.recovery.position import Position

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
    """How to restore `position`, which references.py resolved: from the newest base that proves valid; if the restore has `begun`, from its
    own, as long as that does. Raises LogGapError, LogMisfitError.
    """
    if (alone := catalog.alone(position)) is not None:
        return await _plan_alone(store, catalog, alone)
    epoch = catalog.epoch(position.epoch)
    check_disks(catalog.machine, epoch.epoch, epoch.disks)
    docs = base_candidates(position, list(catalog.docs.values()))
    candidates: list[PointDoc | None] = [*docs, None]
    if not history.contains(catalog.runs, position):
        # No ordered batch of the log is there: nothing may be replayed, and what has been snapshotted there is its image.
        candidates = [doc for doc in docs if doc.position == position]
    elif (
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
        digest=await catalog.digest(position) or (base.digest if base is not None and at_base else ""),
        captured_ns=captured_ns,
        suspect=catalog.is_suspect(position),
        disks=epoch.disks,
        point=catalog.docs.get(position),
        base=base,
        replay=replay,
        remarks=_remarks(catalog, epoch.epoch),
    )


def _remarks(catalog: Catalog, epoch: int) -> tuple[str, ...]:
    error = catalog.rebuilt.get(epoch)
    if error is None:
        return ()
    return (f"{error.what}: {error.cause}. Its disks are those that its points with snapshots name.",)


async def _plan_alone(store: BlobStore, catalog: Catalog, doc: PointDoc) -> Plan:
    disks = await disks_of(store, doc)
    check_disks(catalog.machine, doc.epoch, disks)
    await check_snapshots(store, disks, doc)
    untold = catalog.is_untold(doc)
    base, unnumbered = numbered(doc, disks)
    return Plan(
        machine=catalog.machine,
        epoch=doc.epoch_id,
        position=doc.position,
        digest=doc.digest,
        captured_ns=doc.captured_ns,
        suspect=untold or catalog.is_suspect(doc.position),
        disks=disks,
        point=doc,
        base=base,
        replay=(),
        remarks=(
            catalog.why_lost(doc) + ". The image is that of the point's snapshots.",
            *([] if doc.disks else [UNTOLD_DISKS]),
            *unnumbered,
            *([UNTOLD_SUSPICION] if untold else []),
        ),
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
                await check_snapshots(store, catalog.epoch(doc.epoch).disks, doc)
                await _check_history(catalog, doc)
            return doc, replay_steps(entries, doc.batch if doc else 0, position)
        except (SnapshotError, LogGapError) as exc:
            trouble = exc
            if doc is not None:
                _log.warning("point not used as base", machine=catalog.machine, point=doc.id, **exc.as_dict())
    raise trouble or LogGapError(
        f"The log does not lead to position {position}", cause="no ordered batch is listed there"
    )


async def _check_history(catalog: Catalog, doc: PointDoc) -> None:
    """Raises SnapshotError when the log was set back to before the point and went on otherwise: it has another batch there."""
    there = await catalog.digest(doc.position) if doc.digest else None
    if there is not None and there != doc.digest:
        raise SnapshotError(
            f"The snapshots of recovery point {doc.id} are of another history of the log",
            cause=f"batch {doc.batch} of the log is not the one behind which they were taken",
        )


async def verify(store: BlobStore, vault: Vault, catalog: Catalog, position: Position) -> Verification:
    """Reads and opens all that a restore of `position` would read of the log, and looks up its snapshots.

    Raises what the restore would raise: LogGapError, IntegrityErrors, StorageErrors; and SnapshotError when the point's document
    promises snapshots that are not there.
    """
    doc = catalog.docs.get(position)
    if doc is not None and doc.restores_alone and catalog.alone(position) is None:
        await check_snapshots(store, catalog.epoch(doc.epoch).disks, doc)
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
