"""Which deletion of a machine stands, by the last word that was said: `deletion.json` in its container, beside all that would go with it.

A database that is set back with its whole host, which nobody notices, may have a deletion that was taken back since, or said again. Here it
finds that. So what was said last has to stay: the document is changed by compare-and-swap alone, and a write that arrives late, behind the
next word, is refused (its ETag is that of an older version). That is why it is none of the container's metadata, which can only be set
over whatever is there.

What did not come about after all is taken back only where nobody has written since, to what had stood before: never to what this database
thinks should stand.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from shared import decoding
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import UNDECODABLE, BlobExistsError, BlobNotFoundError, PreconditionError, TransientError
from shared.log import names

_log = logging.get()

NONE: Final = ""
"""No deletion stands."""
_MOST_B: Final = 4096
"""Of what is longer this is the beginning, and no note."""
_TRIES: Final = 8


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    deletion: str
    claim: str
    """Random: tells whose write it was when its answer was lost."""


class Written(NamedTuple):
    """A word that was written here."""

    before: str
    """What had stood until then."""
    etag: str


class _Found(NamedTuple):
    deletion: str
    claim: str
    etag: str
    """Empty: there is no document."""


async def read(store: BlobStore) -> str:
    """The id of the deletion that stands, or NONE; also where the document cannot be read, so a person has to say it again. Raises
    StorageError."""
    return (await _read(store)).deletion


async def write(store: BlobStore, deletion: str) -> Written:
    """From now on this one stands, whatever is there, and whatever was sent before. Raises StorageError."""
    written = await _write(store, deletion, lambda _found: True)
    assert written is not None
    return written


async def take_out(store: BlobStore, deletion: str) -> Written | None:
    """From now on no deletion stands, if it is this one that did. None: it is another word's. Raises StorageError."""
    return await _write(store, NONE, lambda found: found == deletion)


async def renew(store: BlobStore, deletion: str) -> Written | None:
    """The same once more, if it is this one that stands: so that is known that it may be written. None: it is another word's. Raises
    StorageError."""
    return await _write(store, deletion, lambda found: found == deletion)


async def take_back(store: BlobStore, written: Written) -> bool:
    """What had stood before stands again; unless somebody has written since. Whether it does. Raises StorageError."""
    try:
        await store.replace(names.DELETION_DOCUMENT, _encoded(written.before)[0], if_match=written.etag)
    except (PreconditionError, BlobNotFoundError):
        return False
    return True


async def _write(store: BlobStore, deletion: str, may: Callable[[str], bool]) -> Written | None:
    data, claim = _encoded(deletion)
    before = NONE
    for _ in range(_TRIES):
        found = await _read(store)
        if found.claim == claim:  # the answer to this very write was lost
            return Written(before, found.etag)
        if not may(found.deletion):
            return None
        before = found.deletion
        try:
            if found.etag:
                etag = await store.replace(names.DELETION_DOCUMENT, data, if_match=found.etag)
            else:
                etag = await store.create(names.DELETION_DOCUMENT, data)
        except (BlobExistsError, PreconditionError):
            continue  # somebody was faster, or it was this call's first attempt
        return Written(before, etag)
    raise TransientError(
        f"Could not note in container {store.container} which deletion stands",
        cause=f"the document {names.DELETION_DOCUMENT} was another one at each of {_TRIES} attempts",
    )


def _encoded(deletion: str) -> tuple[bytes, str]:
    claim = secrets.token_hex(8)
    return msgspec.json.encode(_Note(deletion=deletion, claim=claim)), claim


async def _read(store: BlobStore) -> _Found:
    found = await store.read_versioned(names.DELETION_DOCUMENT, _MOST_B)
    if found is None:
        return _Found(NONE, "", "")
    data, etag = found
    try:
        note = decoding.decode(data, type=_Note)
    except UNDECODABLE as exc:
        _log.warning("a note of a deletion cannot be read", container=store.container, cause=str(exc))
        return _Found(NONE, "", etag)
    return _Found(note.deletion, note.claim, etag)
