"""What a machine's log index says about order: which batches are recovery points, which periods have none. Pure.

A *history* is the index entries of all epochs in log order, each with its epoch. All questions are answered from its *ordered
runs*: the maximal runs of consecutive batches of one epoch after each of which the stream was ordered.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from shared.log.epochs import EpochInfo
from shared.log.index import IndexEntry
from shared.recovery.points import PointDoc, logged_point
from shared.recovery.position import NOWHERE, Position
from shared.vocabulary import INITIAL_REPLICATION, Consistency
from shared.wire.messages import kernel_of

History = Sequence[tuple[int, IndexEntry]]
"""(epoch, entry), in log order."""


class OrderedRun(msgspec.Struct, frozen=True, kw_only=True):
    """Batches `first` to `last` of one epoch. Times are bounds that the index gives: the first batch was captured at or before
    `from_ns`, the last one at or after `to_ns`.
    """

    first: Position
    last: Position
    from_ns: int
    to_ns: int


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A period without points, because order was not kept."""

    after: Position | None
    """The last ordered position before it; None: there was none yet."""
    until: Position | None
    """The first ordered position behind it; None: it lasts."""
    since_ns: int | None
    until_ns: int | None
    cause: str


def ordered_runs(history: History) -> list[OrderedRun]:
    runs: list[OrderedRun] = []
    for epoch, entry in history:
        for first, last in entry.ordered:
            run = OrderedRun(
                first=Position.of(epoch, first),
                last=Position.of(epoch, last),
                from_ns=entry.first_captured_ns if first == entry.first else entry.last_captured_ns,
                to_ns=entry.last_captured_ns if last == entry.last else entry.first_captured_ns,
            )
            if runs and runs[-1].last == Position.of(epoch, first - 1):
                before = runs.pop()
                run = msgspec.structs.replace(run, first=before.first, from_ns=before.from_ns)
            runs.append(run)
    return runs


def contains(runs: Sequence[OrderedRun], position: Position) -> bool:
    """Whether `position` is an ordered batch."""
    return any(run.first <= position <= run.last for run in runs)


def at_or_before(runs: Sequence[OrderedRun], position: Position) -> Position | None:
    """The last ordered position that is not behind `position`."""
    found = [min(run.last, position) for run in runs if run.first <= position]
    return max(found, default=None)


def at_or_after(runs: Sequence[OrderedRun], position: Position) -> Position | None:
    """The first ordered position that is not before `position`."""
    found = [max(run.first, position) for run in runs if run.last >= position]
    return min(found, default=None)


def reasons(epochs: Sequence[EpochInfo]) -> dict[int, str]:
    """Why each of `epochs`, oldest first, began."""
    return {info.epoch: _reason(before, info) for before, info in itertools.pairwise([None, *epochs]) if info}


def _reason(before: EpochInfo | None, info: EpochInfo) -> str:
    """An agent whose capture is new knows of no epoch before it, and says that it replicates for the first time."""
    if before is None or info.reason != INITIAL_REPLICATION:
        return info.reason
    if before.boot and kernel_of(before.boot) == kernel_of(info.boot):
        return "nothing was captured for a time, as after `machine unprotect`; then all of it was copied"
    return "nothing was captured for a time: the machine was booted, or was not protected; then all of it was copied"


def gaps(history: History, reasons: Mapping[int, str], lost: Mapping[int, str]) -> list[Gap]:
    """The periods without points. `reasons`: why each epoch began, for all epochs whose document is known, also those without a batch;
    `lost`: of which epochs not all can be read, and why.
    """
    runs = ordered_runs(history)
    ends = [Position.of(epoch, 0) for epoch in reasons] + [Position.of(e, i.last) for e, i in history[-1:]]
    end = max(ends, default=NOWHERE)
    found = []
    for before, behind in zip([None, *runs], [*runs, None], strict=True):
        damage = [
            cause
            for epoch, cause in lost.items()
            if (before is None or epoch >= before.last.epoch)
            and (behind is None or epoch < behind.first.epoch)
        ]
        if behind is None and before is not None and before.last == end and not damage:
            continue  # ordered to the end of the log
        found.append(
            Gap(
                after=before.last if before else None,
                until=behind.first if behind else None,
                since_ns=before.to_ns if before else None,
                until_ns=behind.from_ns if behind else None,
                cause="; ".join(damage) or _cause(history, reasons, before, behind),
            )
        )
    return found


def _cause(
    history: History, reasons: Mapping[int, str], before: OrderedRun | None, behind: OrderedRun | None
) -> str:
    """What the stream itself said last in that period, else why the epoch began in which it ended. Looks at that period alone: a log of
    months has many segments and many periods.
    """
    said = ""
    start = 0 if before is None else bisect.bisect_right(history, before.last, key=_last)
    for at in range(start, len(history)):
        epoch, entry = history[at]
        if behind is not None and Position.of(epoch, entry.first) >= behind.first:
            break
        said = entry.cause or said
    epoch = behind.first.epoch if behind else max(reasons, default=0)
    if said == INITIAL_REPLICATION:  # of the copy; why there was one, its epoch says
        return reasons.get(epoch) or said
    return said or reasons.get(epoch, "")


def _last(item: tuple[int, IndexEntry]) -> Position:
    return Position.of(item[0], item[1].last)


def marked_points(machine: str, history: History, claims: Mapping[int, str]) -> Iterator[PointDoc]:
    """The points that marks asked for and that the index made real: those at ordered batches, in log order. `claims`: of each epoch."""
    for epoch, entry in history:
        for batch in sorted({mark.batch for mark in entry.marks}):
            if any(first <= batch <= last for first, last in entry.ordered):
                marks = [mark for mark in entry.marks if mark.batch == batch]
                yield logged_point(
                    machine,
                    Position.of(epoch, batch),
                    claims[epoch],
                    marks[0].captured_ns,
                    max((mark.consistency for mark in marks), key=_strength),
                    [mark.id for mark in marks],
                )


def _strength(consistency: str) -> int:
    """Its place among those that are known; -1 of another."""
    return next((at for at, known in enumerate(Consistency) if known == consistency), -1)
