"""Which point people mean. A reference to a point is one of:

    latest              the last ordered batch of the log: lowest RPO
    latest-processed    the newest point with snapshots: lowest RTO
    <epoch>-<batch>     that ordered batch
    RFC 3339 time       the last ordered batch captured at or before it

A time is refused where it would give something else than the machine's state then: before the first ordered batch, in the
future, behind what has arrived in storage, where the machine's clock does not tell (times.py), and in a period in which order was
not kept. Such a period begins right after the last ordered batch before it (order was lost some time after it, nobody knows when)
and ends with the next ordered batch.
"Newest" goes by position, never by time.
"""

from __future__ import annotations

from functools import partial

from shared.batch import StreamState
from shared.errors import (
    NoPointsError,
    PointNotFoundError,
    PointReferenceError,
)
from shared.recovery import history, times
from shared.recovery.catalog import Catalog
from shared.recovery.position import Position, format_ns, parse_rfc3339
from shared.recovery.times import Moment
from shared.vocabulary import PointState


async def resolve(catalog: Catalog, reference: str) -> Position:
    """The position that `reference` means. Raises PointReferenceError, PointNotFoundError, NoPointsError."""
    if reference == "latest":
        return _latest(catalog)
    if reference == "latest-processed":
        return _latest_processed(catalog)
    if position := Position.parse(reference):
        if not history.contains(catalog.runs, position) and not catalog.is_snapshotted(position):
            raise await _no_point(
                catalog, f"at position {position}", position, _why_none_at(catalog, position)
            )
        return position
    if (at_ns := parse_rfc3339(reference)) is not None:
        return await _at_time(catalog, at_ns)
    raise PointReferenceError(
        f"'{reference}' does not name a recovery point",
        cause="it is no known word, no point id, and no RFC 3339 time with offset like 2024-01-31T12:00:00+01:00",
    )


def _latest(catalog: Catalog) -> Position:
    if catalog.damaged and max(catalog.damaged) >= max((run.last.epoch for run in catalog.runs), default=0):
        raise catalog.damage(max(catalog.damaged))
    if not catalog.runs:
        raise NoPointsError(
            f"Machine '{catalog.machine}' has no recovery point yet",
            cause="its log holds no ordered batch: the first replication is not complete",
        )
    return catalog.runs[-1].last


def _latest_processed(catalog: Catalog) -> Position:
    ready = [*filter(partial(_is_processed, catalog), catalog.documented())]
    if not ready:
        raise NoPointsError(
            f"Machine '{catalog.machine}' has no processed recovery point yet",
            cause="no point of it has been applied to the seed disks",
            action="Wait for the master target, or restore `latest`, which needs the log only.",
        )
    return max(ready)


def _is_processed(catalog: Catalog, position: Position) -> bool:
    doc = catalog.docs.get(position)
    return (doc is not None and doc.state == PointState.SNAPSHOTTED) or catalog.alone(position) is not None


async def _at_time(catalog: Catalog, at_ns: int) -> Position:
    """See times.py for what a time means, and when it means nothing."""
    asked = f"at {format_ns(at_ns)}"
    around = times.around(catalog.history, at_ns)
    rows = [
        Moment(Position.of(epoch, row.number), row.captured_ns, row.state == StreamState.ORDERED)
        for epoch, entry in around.entries
        for row in await catalog.reader.footer(entry)
    ]
    if not rows:
        if not catalog.history:
            _latest(catalog)
        raise await _no_point(catalog, asked, around.before, times.AHEAD, around.behind)
    passed = times.passed(rows, at_ns)
    if passed is None:
        begin = rows[0].position
        raise await _no_point(
            catalog, asked, Position.of(begin.epoch, begin.batch - 1), "the log begins later"
        )
    last, at_end = rows[passed], passed == len(rows) - 1
    if cause := times.doubt(around, rows, passed, at_ns):
        raise await _no_point(catalog, asked, around.before, cause, max(last.position, around.behind))
    if last.captured_ns == at_ns and last.ordered:
        return last.position
    if at_end and catalog.damaged and max(catalog.damaged) >= last.position.epoch:
        raise catalog.damage(max(catalog.damaged))
    if at_end and at_ns > catalog.now_ns:
        raise await _no_point(catalog, asked, last.position, "this time is in the future")
    newest = catalog.epochs[-1].epoch
    if (
        at_end
        and newest == last.position.epoch
        and last.ordered
        and at_ns - last.captured_ns > times.SILENCE_NS
    ):
        cause = f"the log in storage reaches {format_ns(last.captured_ns)}; what the machine wrote after it has not arrived"
        raise await _no_point(catalog, asked, last.position, cause)
    if at_end and newest > last.position.epoch:
        cause = f"order was not kept at that time: epoch {newest} has begun and holds no batch yet"
        raise await _no_point(catalog, asked, last.position, cause)
    if any(not row.ordered for row in rows[passed : passed + 2]):
        raise await _no_point(catalog, asked, last.position, "order was not kept at that time")
    return last.position


async def _no_point(
    catalog: Catalog, asked: str, position: Position, cause: str, behind: Position | None = None
) -> PointNotFoundError:
    """The error for a reference that means no point, with the ordered positions up to `position` and behind it (or `behind`)."""
    after = position if behind is None else max(position, behind)
    said = [cause]
    for word, near in (
        ("nearest earlier", history.at_or_before(catalog.runs, position)),
        (
            "nearest later",
            history.at_or_after(catalog.runs, Position.of(after.epoch, after.batch + 1)),
        ),
    ):
        when = f"{near} of {format_ns(await catalog.captured_ns(near))}" if near else "none"
        said.append(f"{word} point: {when}")
    return PointNotFoundError(
        f"Machine '{catalog.machine}' has no recovery point {asked}", cause="; ".join(said)
    )


def _why_none_at(catalog: Catalog, position: Position) -> str:
    lost = next((doc for doc in catalog.lost if doc.position == position), None)
    return catalog.why_lost(lost) if lost is not None else "no ordered batch is listed there"
