"""Point documents and their roll in blob storage.

A document also stands in its blob's metadata, as long as it is small enough, so that listing a machine's points takes one request
for thousands of them. Storage writes content and metadata of a block blob as one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import msgspec

from shared.blob import BlobInfo, BlobStore
from shared.daemon import logging
from shared.errors import BlobExistsError, BlobNotFoundError, IntegrityError, PreconditionError
from shared.recovery import points
from shared.recovery.parallel import parallel
from shared.recovery.points import PointDoc, Roll
from shared.recovery.position import Position

_log = logging.get()

_WIDTH: Final = 8
_METADATA_MAX_B: Final = 7900
"""Azure takes 8 KiB of metadata, and aiohttp a header as long as that."""


class Stored(NamedTuple):
    """A document with the version in which it was read: what `change` swaps."""

    doc: PointDoc
    etag: str


async def write_new(store: BlobStore, doc: PointDoc) -> bool:
    """Write the document of a new point; False, and nothing done, when there is a document already."""
    data = msgspec.json.encode(doc)
    try:
        await store.create(points.blob_name(doc.position), data, _metadata(data))
    except BlobExistsError:
        return False
    return True


async def change(store: BlobStore, doc: PointDoc, etag: str) -> None:
    """Write `doc` over the version of its document that has this ETag. Raises PreconditionError when it has another, or is gone."""
    data = msgspec.json.encode(doc)
    name = points.blob_name(doc.position)
    try:
        await store.replace(name, data, etag, _metadata(data))
    except (PreconditionError, BlobNotFoundError) as exc:
        stored = await read(store, doc.position)
        if stored is None or stored.doc != doc:  # else our own try, of which the answer was lost
            raise PreconditionError(f"{name} was not changed", cause="somebody else changed it") from exc


async def read(store: BlobStore, position: Position) -> Stored | None:
    """The document of the point at `position`; None when there is none. Raises IntegrityError."""
    name = points.blob_name(position)
    found = await store.read_versioned(name)
    return None if found is None else Stored(points.decode(found[0], name), found[1])


async def read_roll(store: BlobStore) -> Roll | None:
    """None when no master target has written one: then every document is a point. Raises IntegrityError."""
    name = points.ROLL
    try:
        return points.decode_roll(await store.read(name), name)
    except BlobNotFoundError:
        return None


async def list_docs(store: BlobStore, machine: str) -> list[PointDoc]:
    """The documents of all points of a machine, in log order. One that vanishes meanwhile (retention) is left out; so is, with a
    warning, one that cannot be read: it must not keep people from the others, and nor must a roll that cannot be read.
    """
    # The roll first: a point that is added meanwhile is then behind its newest, and is taken for a mark without a document.
    try:
        roll = await read_roll(store)
    except IntegrityError as exc:
        _log.warning("roll of points not used: every document counts", machine=machine, **exc.as_dict())
        roll = None
    docs = (await survey(store, machine)).docs
    return docs if roll is None else [doc for doc in docs if points.counts(doc, roll)]


class Survey(NamedTuple):
    """Documents, whether the roll names them or not."""

    docs: list[PointDoc]
    """In log order."""
    unreadable: frozenset[Position]
    """Where documents stand that cannot be read here: damaged, or of a newer version. Nobody knows what they name."""
    stored_ns: dict[Position, int]
    """When each document was written last, by the storage's clock, Unix ns."""
    etags: dict[Position, str]
    """Of the version of each document that was seen, or of one before it."""


async def survey(store: BlobStore, machine: str) -> Survey:
    """All documents that are there, with the positions of those that cannot be read."""
    found: dict[Position, PointDoc] = {}
    stored_ns: dict[Position, int] = {}
    etags: dict[Position, str] = {}
    unreadable: set[Position] = set()
    to_read: list[tuple[str, Position]] = []

    def take(name: str, position: Position, data: bytes) -> None:
        try:
            doc = points.decode(data, name)
        except IntegrityError as exc:
            _log.warning("point document left out", machine=machine, **exc.as_dict())
            unreadable.add(position)
        else:
            found[doc.position] = doc

    async def fetch(name: str, position: Position) -> None:
        try:
            take(name, position, await store.read(name))
        except BlobNotFoundError:
            _log.debug("point expired while it was read", blob=name)

    async for info in store.list(points.FOLDER):
        position = points.position_of(info.name)
        if position is None:
            continue
        stored_ns[position], etags[position] = stored_ns_of(info), info.etag
        if (data := _from_metadata(info.metadata)) is not None:
            take(info.name, position, data)
        else:
            to_read.append((info.name, position))
    await parallel((partial(fetch, *one) for one in to_read), _WIDTH)
    return Survey([doc for _, doc in sorted(found.items())], frozenset(unreadable), stored_ns, etags)


def stored_ns_of(info: BlobInfo) -> int:
    """When the blob was written last, by the storage's clock."""
    return int(info.last_modified.timestamp()) * 1_000_000_000


async def delete(store: BlobStore, position: Position, etag: str | None = None) -> None:
    """Harmless when it is gone already; when it has changed since it had this ETag, it stays."""
    name = points.blob_name(position)
    try:
        await store.delete(name, if_match=etag)
    except PreconditionError as exc:
        _log.info("point document was changed or removed by another", blob=name, **exc.as_dict())


def _metadata(data: bytes) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    return {"doc": text} if len(text) <= _METADATA_MAX_B else {}


def _from_metadata(metadata: Mapping[str, str]) -> bytes | None:
    """None where they hold no copy: the content is read instead."""
    text = metadata.get("doc")  # None, too, for an empty value
    try:
        return base64.b64decode(text, validate=True) if text else None
    except ValueError:
        return None
