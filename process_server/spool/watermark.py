"""`state.json` in an epoch's spool folder: our term, and the last batch that we know was listed. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.daemon import logging
from shared.errors import UNDECODABLE, SpoolError, SpoolStateError, cause_of
from shared.host import durable
from shared.log.epoch_id import UNKNOWN
from shared.log.index import NO_TERM, Term

_NAME: Final = "state.json"

_log = logging.get()


class Watermark(msgspec.Struct, frozen=True):
    """Of the epoch with this claim. Both may be lower than the truth, and then the checks that use them are only less strict: a full disk
    keeps nobody from uploading, and a document that is damaged or that the disk does not give keeps nobody out.

    With a term that is not known, or is not the newest any more, whose the log is goes by the owner's name in the term document
    (ownership.py): a log that another server took bears another name, so nothing is taken from it. With an `uploaded` that is too low,
    storage that forgot segments is found by the files here that continue them, and by what the agent has, as on a server that never had
    the machine. Both are written anew, and true, with the next term.
    """

    term: int
    uploaded: int
    claim: str
    term_claim: str = UNKNOWN
    """Of our term. Without one (an older document) no term counts as ours but by the owner's name."""
    container: str = ""
    """Of the machine, when the log was opened. Empty in an older document: nobody can tell with which container such an epoch went."""

    @property
    def taken(self) -> Term:
        return Term(self.term, self.term_claim) if self.term_claim else NO_TERM


def path_in(folder: Path) -> Path:
    return folder / _NAME


def read(folder: Path, claim: str, give_up: Callable[[Path], bool] = lambda _path: False) -> Watermark:
    """What the folder remembers of this epoch; zeroes if it never had a term, cannot tell, or was another epoch's.

    Raises SpoolError when the disk does not give it, unless `give_up` says that it was waited for long enough.
    """
    path = path_in(folder)
    nothing = Watermark(0, 0, claim)
    try:
        found = decoding.decode(path.read_bytes(), type=Watermark)
    except FileNotFoundError:
        return nothing
    except OSError as exc:
        if not give_up(path):
            raise SpoolError(f"{path} could not be read", cause=cause_of(exc)) from exc
        _log.warning("spool state is not given by the disk and ignored", path=str(path), cause=str(exc))
        return nothing
    except UNDECODABLE as exc:
        _log.warning("spool state is damaged and ignored", path=str(path), cause=str(exc))
        return nothing
    return found if found.claim == claim else nothing


def remember(folder: Path, mark: Watermark, *, durably: bool = True) -> SpoolStateError | None:
    """Why it could not be written, which hinders nothing but later checks."""
    try:
        durable.replace_file(folder / _NAME, msgspec.json.encode(mark), durable=durably)
    except OSError as exc:
        return SpoolStateError(f"{folder / _NAME} could not be written", cause=cause_of(exc))
    return None


def any_in(folder: Path) -> Watermark | None:
    """What lies there, of whichever epoch; None where it does not tell, or the disk does not give it."""
    try:
        return decoding.decode(path_in(folder).read_bytes(), type=Watermark)
    except (OSError, *UNDECODABLE):
        return None
