"""How an epoch's local files stand to its index: the facts that `ownership` decides on, fetched from both. Reads storage and disk."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

from process_server.spool.file import SpooledSegment
from process_server.spool.machine_folder import Runs
from process_server.spool.ownership import LocalFile, Relation, chosen_run, meeting_point, relate
from shared.blob import BlobStore
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.errors import SegmentMissingError, SegmentVersionError
from shared.log.epoch_id import EpochId
from shared.log.index import Fold
from shared.log.reader import listed_digest

_log = logging.get()


class Sorted(NamedTuple):
    """Local files, compared with an index."""

    relation: Relation
    """Of the run that can be gone on with."""
    files: tuple[LocalFile, ...]
    """That run."""
    here: str
    there: str
    """Digests at the meeting point."""
    listed: list[SpooledSegment]
    rest: list[SpooledSegment]
    """What continues the index; its first one may be the hind part of a file."""
    unlisted: list[tuple[SpooledSegment, str]]
    """What can not be listed, and why."""

    @property
    def pending_b(self) -> int:
        return sum(spooled.size_b for spooled in self.rest)


async def sort_files(
    store: BlobStore, machine: str, epoch: EpochId, runs: Runs, fold: Fold, threads: Executor
) -> Sorted:
    """`fold` is the epoch's index. Raises SpoolError, and what reading the log raises."""
    last = fold.last
    chosen = chosen_run([[s.local() for s in run] for run in runs], last)
    run = runs[chosen] if runs else []
    files = tuple(s.local() for s in run)
    here, there = await _digests(store, machine, epoch, run, fold, threads)
    relation = relate(files, last, here, there)
    listed: list[SpooledSegment] = []
    unlisted: list[tuple[SpooledSegment, str]] = []
    for earlier in runs[:chosen]:
        # Its last digest covers all batches before: what the index has there as well is listed, and was only not deleted.
        end = earlier[-1].last
        if await _there(store, machine, epoch, end.number, fold) == end.digest:
            listed += earlier
        else:
            unlisted += [(s, "they lie before what is listed, and do not lead to it") for s in earlier]
    unlisted += [
        (s, f"batches {run[-1].last.number + 1} to {r[0].first.number - 1} before them are lost")
        for r in runs[chosen + 1 :]
        for s in r
    ]
    rest: list[SpooledSegment] = []
    match relation:
        case Relation.LISTED | Relation.CONTINUES:
            done = [s for s in run if s.last.number <= last]
            listed += done
            rest = run[len(done) :]
            if rest and rest[0].first.number <= last:
                rest = [await in_thread(rest[0].behind, last, executor=threads), *rest[1:]]
        case Relation.CONTRADICTED:
            why = f"the index lists other batches up to {last}"
            if not there:
                why = f"the index has their numbers, up to {last}, and the segment that says whether it means them cannot be read"
            unlisted += [(s, why) for s in run]
        case Relation.BEHIND_A_GAP:
            unlisted += [
                (s, f"batches {last + 1} to {run[0].first.number - 1} before them are lost") for s in run
            ]
    return Sorted(relation, files, here, there, listed, rest, unlisted)


async def _digests(
    store: BlobStore, machine: str, epoch: EpochId, run: list[SpooledSegment], fold: Fold, threads: Executor
) -> tuple[str, str]:
    """At the meeting point: here, and in the index."""
    number = meeting_point([s.local() for s in run], fold.last)
    if number is None:
        return "", ""
    holder = next(s for s in run if number <= s.last.number)
    here = await in_thread(holder.digest_of, number, executor=threads)
    return here, await _there(store, machine, epoch, number, fold)


async def _there(store: BlobStore, machine: str, epoch: EpochId, number: int, fold: Fold) -> str:
    """The digest of a batch by the index; empty when it lists none of this number, or in a segment that is lost."""
    if number == fold.last:
        return fold.last_digest
    newest = {entry.last: entry.last_digest for entry in fold.entries}
    try:
        return newest.get(number) or await listed_digest(store, machine, epoch, number)
    except SegmentVersionError:
        raise  # a newer process server can read it
    except SegmentMissingError as exc:
        _log.warning("spooled batches cannot be compared with the log", machine=machine, **exc.as_dict())
        return ""
