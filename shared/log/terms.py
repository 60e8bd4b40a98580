"""Terms of an epoch's log: who had it, one after the other. Whoever creates a term's document has taken it (writer.py).

The document's claim stands in its blob's metadata, too, so that a list tells which terms these are. Where it is not there (a tool that
copies an account may leave it behind) the document is read.

A document that cannot be read keeps nobody from the log, for nobody can mend it: its number is taken, its claim is nobody's, so the next
owner takes the next number, and whoever took this one hears that it is not ours any more, and does the same.
"""

from __future__ import annotations

import contextlib

import msgspec

from shared import decoding
from shared.blob import BlobStore
from shared.errors import UNDECODABLE, BlobExistsError, BlobNotFoundError, IndexDamagedError
from shared.log import names
from shared.log.epoch_id import UNKNOWN
from shared.log.index import NO_TERM, Term

_CLAIM = "claim"


class TermDocument(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    term: int
    owner: str
    claim: str
    """Random: with the number it is the term's identity. Tells as well who made it when the answer to the create was lost."""
    after: int
    """The last batch that the owner knew when it took the term."""
    created_ns: int


async def create(store: BlobStore, epoch: int, document: TermDocument) -> Term | None:
    """The term, when it is taken now; None when another has it, or had it."""
    name, data = names.term_document(epoch, document.term), msgspec.json.encode(document)
    try:
        await store.create(name, data, {_CLAIM: document.claim})
    except BlobExistsError:
        if await store.read(name) != data:
            return None
    return Term(document.term, document.claim)


async def newest_term(store: BlobStore, epoch: int) -> Term:
    """The last one that was taken; NO_TERM if none ever was. Its claim is UNKNOWN when nothing tells it."""
    newest = NO_TERM
    async for info in store.list(names.term_prefix(epoch)):
        number = names.term_of(info.name)
        if number is not None and number > newest.number:
            newest = Term(number, info.metadata.get(_CLAIM, UNKNOWN))
    if newest.number and not newest.claim:
        with contextlib.suppress(IndexDamagedError):
            newest = Term(newest.number, (await read_term(store, epoch, newest.number)).claim)
    return newest


async def owner_of(store: BlobStore, epoch: int, term: Term) -> str:
    """Which process server took the term; empty when nobody did, or its document is gone or cannot be read."""
    if term == NO_TERM:
        return ""
    try:
        return (await read_term(store, epoch, term.number)).owner
    except (BlobNotFoundError, IndexDamagedError):
        return ""


async def read_term(store: BlobStore, epoch: int, number: int) -> TermDocument:
    """Raises BlobNotFoundError, IndexDamagedError."""
    name = names.term_document(epoch, number)
    data = await store.read(name)
    try:
        return decoding.decode(data, type=TermDocument)
    except UNDECODABLE as exc:
        raise IndexDamagedError(f"The term document {name} cannot be read", cause=str(exc)) from exc
