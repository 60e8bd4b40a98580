"""Terms of an epoch's log: who had it, one after the other. Whoever creates a term's document has taken it (writer.py)."""

from __future__ import annotations

import msgspec

from shared.blob import BlobStore
from shared.log import names


class TermDocument(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    term: int
    owner: str
    claim: str
    """Random: tells who made it when the answer to the create was lost."""
    after: int
    """The last batch that the owner knew when it took the term."""
    created_ns: int


async def terms(store: BlobStore, epoch: int) -> list[int]:
    """All terms ever taken in the epoch."""
    return [names.term_of(blob.name) async for blob in store.list(names.term_prefix(epoch))]
