"""Recovery points, their documents, and the roll that names them (pure; kept by point_store.py). Layout in FORMAT.md beside this file.

A point names one ordered position, whole in the log, for all disks of the machine. It exists as soon as the
log up to it is indexed (`logged`: it restores by replay); once apply has reached it and all disks are
snapshotted it is `snapshotted`. Its document is written last in both steps, so whatever a document promises
is there: first the index entry, then the document; then the snapshots of all disks, then the document
again.

One writer (I7). The *roll* names the documents that are points, and the term of the master target that may change it. It is replaced by
compare-and-swap only, and whoever takes a machine raises the term first: from then on an earlier owner cannot add a point or remove one. A
document that the roll does not name is none, whoever wrote it: so what a stale owner creates late never comes to light, and an expired
point does not come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from shared import decoding
from shared.batch import Range
from shared.errors import UNDECODABLE, IntegrityError
from shared.log.epoch_id import UNKNOWN, EpochId
from shared.log.epochs import EpochDisk
from shared.recovery.position import NOWHERE, Position, format_ns
from shared.recovery.unreadable import Unreadable, as_written
from shared.vocabulary import Consistency, PointState

FORMAT_VERSION: Final = 1
FOLDER: Final = "points/"
ROLL: Final = f"{FOLDER}roll.json"


class PointDoc(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`<epoch>-<batch>`"""
    machine: str
    epoch: int
    batch: int
    claim: str = UNKNOWN
    """Of the epoch: a point of another claim than the epoch's document has is of another epoch, and its log is not this one's."""
    captured_ns: int
    """The moment of the image, as the machine's wall clock showed it then; Unix ns."""
    time: str
    """The same for people: RFC 3339, UTC."""
    consistency: str = Consistency.CRASH
    state: PointState = PointState.LOGGED
    marks: tuple[str, ...] = ()
    """Ids of the bookmarks that asked for it."""
    target: str = ""
    """What holds the snapshots: `page-blob` or `image`; empty while there are none."""
    snapshots: dict[str, str] = {}
    """Disk name → snapshot id, for all disks or for none."""
    digest: str = ""
    """Of its batch (hex): it, and its snapshots, are of the history of the log that has this batch there. Empty: not known."""
    disks: tuple[EpochDisk, ...] = ()
    """Those of its epoch, when there are snapshots: so that these restore without the epoch's document. Older documents do not say it."""
    suspect: bool = False
    """Writes may be missing in it. False in every document: later epochs say it, and the catalog sets it (`EpochInfo.doubts`)."""
    unreadable: tuple[Range, ...] = ()
    """Source ranges that are missing in the snapshots: catch-up could not read them, and they were not written since."""
    unreadable_covers: bool | msgspec.UnsetType = msgspec.UNSET
    """See Unreadable. Older documents do not say it; nor do those of points without snapshots, which name none."""
    listed_ns: int = 0
    """When its segment came into storage, by storage's clock; about when the index listed it. 0: not known."""
    term: int = 0
    """The owner's, that wrote the document last; see `Roll`. 0: written before there were terms."""
    term_claim: str = UNKNOWN
    """Of that term: an owner with its number is not for certain the same."""
    v: int = FORMAT_VERSION

    @property
    def position(self) -> Position:
        return Position.of(self.epoch, self.batch)

    @property
    def epoch_id(self) -> EpochId:
        return EpochId(self.epoch, self.claim)

    @property
    def missing(self) -> Unreadable:
        return as_written(self.unreadable, self.unreadable_covers)

    @property
    def restores_alone(self) -> bool:
        """Whether its snapshots restore it, without any log."""
        return self.state == PointState.SNAPSHOTTED and self.target == "page-blob"


class Roll(msgspec.Struct, frozen=True, kw_only=True):
    """`points/roll.json`: which documents are points."""

    machine: str
    term: int
    """Of the master target that owns the machine; each owner takes the next."""
    term_claim: str = UNKNOWN
    """Random: tells the term from another one of its number, which storage that was set back gives out again."""
    points: tuple[str, ...] = ()
    """Ids, in log order. The newest is never removed: it tells which marks have been documented."""
    aside: tuple[str, ...] = ()
    """Ids of points that were struck out: the log was set back, and has another batch there, or none yet. Their documents and snapshots,
    which may be all that is left of that history, are kept as long as a point may be."""
    claims: dict[int, str] = {}
    """Of each epoch that `points` and `aside` name."""
    unjudged: bool = False
    """Points were taken from documents alone: any of them may be of another history of the log. The next look at the log says of which."""
    v: int = FORMAT_VERSION

    @property
    def positions(self) -> tuple[Position, ...]:
        return _parsed(self.points)

    @property
    def set_aside(self) -> tuple[Position, ...]:
        return _parsed(self.aside)

    @property
    def newest(self) -> Position:
        """The newest position that was ever a point: all marks up to it have been documented, but for those of another history."""
        return max((*self.positions, *self.set_aside), default=NOWHERE)


def _parsed(ids: Sequence[str]) -> tuple[Position, ...]:
    return tuple(p for id_ in ids if (p := Position.parse(id_)))


def counts(doc: PointDoc, roll: Roll) -> bool:
    """Whether readers are told of the document: the roll names it (also as set aside), or is older, since it was set back to a copy. Only
    what a roll names gets snapshots, and the newest that it names is never struck out: so a point with snapshots behind the newest was
    named by a later roll.
    """
    of_another = roll.claims.get(doc.epoch, doc.claim) != doc.claim
    return (
        doc.id in roll.points
        or doc.id in roll.aside
        or (doc.state == PointState.SNAPSHOTTED and doc.position > roll.newest and not of_another)
    )


def logged_point(
    machine: str, position: Position, claim: str, captured_ns: int, consistency: str, marks: Sequence[str]
) -> PointDoc:
    return PointDoc(
        id=str(position),
        machine=machine,
        epoch=position.epoch,
        batch=position.batch,
        claim=claim,
        captured_ns=captured_ns,
        time=format_ns(captured_ns),
        consistency=consistency,
        marks=tuple(marks),
    )


def blob_name(position: Position) -> str:
    return f"{FOLDER}{position.epoch:08d}-{position.batch:012d}.json"


def position_of(name: str) -> Position | None:
    """The position in a point document's blob name; None for other blobs (the roll, and whatever people put beside it)."""
    position = Position.parse(name.rsplit("/", 1)[-1].removesuffix(".json"))
    return position if position is not None and blob_name(position) == name else None


def decode(data: bytes, name: str) -> PointDoc:
    """Raises IntegrityError when `data` is no point document of a version that is known here, or that of another point than the name says:
    the name decides which point there is.
    """
    try:
        doc = decoding.decode(data, type=PointDoc)
    except UNDECODABLE as exc:
        raise _unreadable(name, str(exc)) from exc
    if doc.v != FORMAT_VERSION:
        raise _unreadable(name, f"it has format version {doc.v}; this program knows {FORMAT_VERSION}")
    if doc.position != position_of(name) or doc.id != str(doc.position):
        raise _unreadable(name, f"it is the document of point {doc.id}")
    return doc


def decode_roll(data: bytes, name: str) -> Roll:
    """Raises IntegrityError when `data` is no roll of a version that is known here."""
    action = "Delete it: it is made anew from the documents of the points."
    what = f"The roll of recovery points {name} could not be read"
    try:
        roll = decoding.decode(data, type=Roll)
    except UNDECODABLE as exc:
        raise IntegrityError(what, cause=str(exc), action=action) from exc
    ids = (*roll.points, *roll.aside)
    if roll.v != FORMAT_VERSION or len(_parsed(ids)) != len(ids):
        cause = f"it has format version {roll.v}, or names what is no position"
        raise IntegrityError(what, cause=cause, action=action)
    return roll


def _unreadable(name: str, cause: str) -> IntegrityError:
    return IntegrityError(
        f"Recovery point document {name} could not be read",
        cause=cause,
        action="It can be restored by its position while its log is retained; delete the document to go on.",
    )
