"""Which deletion of a machine stands, by the last word that was said: `deletion.json` in its container, beside all that would go with it.

A database that is set back with its whole host, which nobody notices, may have a deletion that was taken back since, or said again. Here it
finds that. So what was said last has to stay: the document is changed by compare-and-swap alone, and a write that arrives late, behind the
next word, is refused (its ETag is that of an older version). That is why it is none of the container's metadata, which can only be set
over whatever is there.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from shared import decoding, logging
from shared.blob import BlobStore
from shared.errors import UNDECODABLE, BlobExistsError, PreconditionError
from shared.log import names

_log = logging.get()

NONE: Final = ""
"""No deletion stands."""


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    deletion: str
    claim: str
    """Random: tells whose write it was when its answer was lost."""


async def read(store: BlobStore) -> str:
    """The id of the deletion that stands, or NONE; also where the document cannot be read, so a person has to say it again. Raises
    StorageError."""
    found = await store.read_versioned(names.DELETION_DOCUMENT)
    if found is None:
        return NONE
    try:
        return decoding.decode(found[0], type=_Note).deletion
    except UNDECODABLE as exc:
        _log.warning("a note of a deletion cannot be read", container=store.container, cause=str(exc))
        return NONE


async def write(store: BlobStore, deletion: str) -> None:
    """From now on this one stands, whatever is there, and whatever was sent before. Raises StorageError."""
    data = msgspec.json.encode(_Note(deletion=deletion, claim=secrets.token_hex(8)))
    while True:
        found = await store.read_versioned(names.DELETION_DOCUMENT)
        if found is not None and found[0] == data:
            return  # the answer to this very write was lost
        try:
            if found is None:
                await store.create(names.DELETION_DOCUMENT, data)
            else:
                await store.replace(names.DELETION_DOCUMENT, data, if_match=found[1])
        except (BlobExistsError, PreconditionError):
            continue  # somebody was faster, or it was this call's first attempt
        return
