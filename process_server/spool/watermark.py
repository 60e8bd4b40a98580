"""`state.json` in an epoch's spool folder: our term, and the last batch that we know was listed. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from shared import durable, logging
from shared.errors import UNDECODABLE, SpoolError, SpoolStateError

_NAME: Final = "state.json"

_log = logging.get()


class Watermark(msgspec.Struct, frozen=True):
    """Of the epoch with this claim. Both may be lower than the truth, and then the checks that use them are only less strict: a full disk
    keeps nobody from uploading.
    """

    term: int
    uploaded: int
    claim: str


def read(folder: Path, claim: str) -> Watermark:
    """What the folder remembers of this epoch; zeroes if it never had a term, cannot tell, or was another epoch's. Raises SpoolError."""
    path = folder / _NAME
    nothing = Watermark(0, 0, claim)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Watermark)
    except FileNotFoundError:
        return nothing
    except OSError as exc:
        raise SpoolError(f"{path} could not be read", cause=exc.strerror or str(exc)) from exc
    except UNDECODABLE as exc:
        _log.warning("spool state is damaged and ignored", path=str(path), cause=str(exc))
        return nothing
    return found if found.claim == claim else nothing


def remember(folder: Path, mark: Watermark, *, durably: bool = True) -> SpoolStateError | None:
    """Why it could not be written, which hinders nothing but later checks."""
    try:
        durable.replace_file(folder / _NAME, msgspec.json.encode(mark), durable=durably)
    except OSError as exc:
        return SpoolStateError(f"{folder / _NAME} could not be written", cause=exc.strerror or str(exc))
    return None
