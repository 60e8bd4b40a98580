"""Recovery points and their documents, `points/<machine>/<epoch>-<batch>.json`. Layout in FORMAT.md beside
this file.

A point names one ordered position, whole in the log, for all disks of the machine. It exists as soon as the
log up to it is indexed (`logged`: it restores by replay); once apply has reached it and all disks are
snapshotted it is `snapshotted`. Its document is written last in both steps, so whatever a document promises
is there: first the index entry, then the document; then the snapshots of all disks, then the document
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

import msgspec

from shared import logging
from shared.blob import BlobStore
from shared.errors import BlobExistsError, BlobNotFoundError, IntegrityError
from shared.recovery.parallel import parallel
from shared.recovery.position import Position, format_ns

_log = logging.get()

FORMAT_VERSION: Final = 1
_WIDTH: Final = 8
PointState = Literal["logged", "snapshotted"]
Range = tuple[int, int, int]
"""(disk number, first sector, sectors)."""


class PointDoc(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`<epoch>-<batch>`"""
    machine: str
    epoch: int
    batch: int
    captured_ns: int
    """Wall clock of the machine, Unix ns: the newest write that the point contains."""
    time: str
    """The same for people: RFC 3339, UTC."""
    consistency: str = "crash"
    state: PointState = "logged"
    marks: tuple[str, ...] = ()
    """Ids of the bookmarks that asked for it."""
    target: str = ""
    """What holds the snapshots: `page-blob` or `image`; empty while there are none."""
    snapshots: dict[str, str] = {}
    """Disk name → snapshot id, for all disks or for none."""
    suspect: bool = False
    """An audit shortfall was found after it was taken: writes may be missing in it."""
    unreadable: tuple[Range, ...] = ()
    """Source ranges that catch-up could not read since the epoch began."""
    v: int = FORMAT_VERSION

    @property
    def position(self) -> Position:
        return Position.of(self.epoch, self.batch)


def logged_point(
    machine: str, position: Position, captured_ns: int, consistency: str, marks: Sequence[str]
) -> PointDoc:
    return PointDoc(
        id=str(position),
        machine=machine,
        epoch=position.epoch,
        batch=position.batch,
        captured_ns=captured_ns,
        time=format_ns(captured_ns),
        consistency=consistency,
        marks=tuple(marks),
    )


def prefix(machine: str) -> str:
    return f"points/{machine}/"


def blob_name(machine: str, position: Position) -> str:
    return f"{prefix(machine)}{position.epoch:08d}-{position.batch:012d}.json"


def position_of(name: str) -> Position | None:
    """The position in a point document's blob name; None for other blobs."""
    return Position.parse(name.rsplit("/", 1)[-1].removesuffix(".json"))


def decode(data: bytes, name: str) -> PointDoc:
    """Raises IntegrityError when `data` is no point document of a version that is known here."""
    try:
        doc = msgspec.json.decode(data, type=PointDoc)
    except msgspec.DecodeError as exc:
        raise _unreadable(name, str(exc)) from exc
    if doc.v != FORMAT_VERSION:
        raise _unreadable(name, f"it has format version {doc.v}; this program knows {FORMAT_VERSION}")
    return doc


async def write_new(store: BlobStore, doc: PointDoc) -> bool:
    """Write the document of a new point; False, and nothing done, when the point has one already."""
    try:
        await store.create(blob_name(doc.machine, doc.position), msgspec.json.encode(doc))
    except BlobExistsError:
        return False
    return True


async def replace(store: BlobStore, doc: PointDoc) -> None:
    """Write the document of a point that has one. Only the holder of the machine's claim may call this."""
    await store.replace(blob_name(doc.machine, doc.position), msgspec.json.encode(doc), None)


async def read(store: BlobStore, machine: str, position: Position) -> PointDoc | None:
    """The document of the point at `position`; None when there is none. Raises IntegrityError."""
    name = blob_name(machine, position)
    try:
        return decode(await store.read(name), name)
    except BlobNotFoundError:
        return None


async def list_docs(store: BlobStore, machine: str) -> list[PointDoc]:
    """All point documents of a machine, in log order. One that vanishes meanwhile (retention) is left out; so is, with a
    warning, one that cannot be read: it must not keep people from the others.
    """
    positions = sorted([p async for info in store.list(prefix(machine)) if (p := position_of(info.name))])
    found: dict[Position, PointDoc] = {}

    async def fetch(position: Position) -> None:
        try:
            doc = await read(store, machine, position)
        except IntegrityError as exc:
            _log.warning("point document left out", machine=machine, **exc.as_dict())
            return
        if doc is not None:
            found[position] = doc

    await parallel((partial(fetch, position) for position in positions), _WIDTH)
    return [found[position] for position in positions if position in found]


async def delete(store: BlobStore, machine: str, position: Position) -> None:
    """Harmless when it is gone already."""
    await store.delete(blob_name(machine, position))


def _unreadable(name: str, cause: str) -> IntegrityError:
    return IntegrityError(
        f"Recovery point document {name} could not be read",
        cause=cause,
        action="It can be restored by its position while its log is retained; delete the document to go on.",
    )
