"""Files that hold, or may hold, acknowledged batches that can not be listed: kept aside, and said aloud. Blocking.

    <machine>/damaged/<epoch>-<file>     what cannot be read, whole or in part
    <machine>/unlisted/<epoch>-<file>    whole batches that the log went on without (ownership.py), or of another epoch than storage has
                                         under this number
    <same name>.note                     what it is and why, for the event; made anew from the name if it is gone

Nothing here is ever read again by this program. `unlisted` files go after KEEP_S, which this server must have lived through with
them: it goes by the monotonic clock and is kept in the note, so no wall clock that is years ahead deletes them at once. Damaged ones, of
which nobody knows what they held, stay until an operator deletes them. Whoever deletes either by hand closes the event.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import UNDECODABLE, SetAsideError, SpoolLostError, UnderstudyError
from shared.host import durable
from shared.log.epoch_id import UNKNOWN, EpochId

KEEP_S: Final = 14 * 86400.0
_NOTED_S: Final = 3600.0
"""At most so much of it is forgotten by a restart."""
_NOTE: Final = ".note"

_log = logging.get()


class Kind(enum.StrEnum):
    DAMAGED = "damaged"
    UNLISTED = "unlisted"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    epoch: int
    first: int
    last: int
    """0: not known."""
    cause: str
    claim: str = UNKNOWN
    """Of the epoch."""
    container: str = ""
    """Of the machine; empty where that is not known."""
    kept_s: float = 0.0
    """How long it has been here, as far as that was noted."""

    @property
    def batches(self) -> str:
        return f"{self.first} to {self.last or '?'} of epoch {self.epoch}"


class Aside:
    """What one machine has aside. `look` before the first use, and when somebody may have deleted something."""

    def __init__(self, machine: str, folder: Path) -> None:
        self._machine = machine
        self._folder = folder
        self._found: dict[Kind, list[tuple[int, Note]]] = {kind: [] for kind in Kind}
        """Size and note of each file."""
        self._left: set[str] = set()
        """Containers, from notes whose files are gone."""
        self._looking: Final = threading.Lock()
        self._looked_at = time.monotonic()
        self._unnoted_s: dict[Path, float] = {}
        """How long each unlisted file has been seen here since its note was written."""

    @property
    def is_empty(self) -> bool:
        return not any(self._found.values())

    @property
    def size_b(self) -> int:
        return sum(size_b for files in self._found.values() for size_b, _ in files)

    @property
    def containers(self) -> set[str]:
        """Of which there is something, and be it a note whose file is gone; "" where that is not known."""
        return {note.container for files in self._found.values() for _, note in files} | self._left

    def holds(self, epoch: EpochId) -> bool:
        """Whether there is something that is, or may be, of this epoch."""
        notes = [note for files in self._found.values() for _, note in files if note.epoch == epoch.number]
        return any(note.claim in (epoch.claim, UNKNOWN) for note in notes)

    def problems(self) -> list[UnderstudyError]:
        """One of each kind."""
        return [
            error(
                f"{_TOLD[kind]} of machine {self._machine}: {_size(sum(size_b for size_b, _ in files))} in "
                f"{len(files)} files are kept in {self._folder / kind}",
                cause="; ".join(f"batches {note.batches}: {note.cause}" for _, note in files[:4]),
                action=action,
            )
            for kind, error, action in (
                (Kind.DAMAGED, SpoolLostError, _DAMAGED_ACTION),
                (Kind.UNLISTED, SetAsideError, ""),
            )
            if (files := self._found[kind])
        ]

    def put(self, kind: Kind, path: Path, note: Note, *, keep: bool = False) -> None:
        """Moves the file aside; with `keep` it stays under its old name as well. Raises OSError: then it is where it was."""
        folder = self._folder / kind
        durable.make_folder(folder)
        target = folder / f"{note.epoch:08d}-{path.name}"
        copy = 1
        while target.exists():
            if target.samefile(path):  # an earlier run came so far
                if not keep:
                    durable.remove_file(path)
                    durable.sync_folder(path.parent)
                break
            copy += 1
            target = folder / f"{note.epoch:08d}-{path.name}.{copy}"
        else:
            with contextlib.suppress(OSError):  # a full disk, say: the name tells enough
                durable.replace_file(_note_of(target), msgspec.json.encode(note), durable=False)
            (durable.link_file if keep else durable.move_file)(path, target)
            _log.error(
                "batches set aside",
                machine=self._machine,
                path=str(target),
                size_b=target.stat().st_size,
                **msgspec.structs.asdict(note),
            )
        self.look()

    def drop(self, deleted: Collection[str]) -> list[OSError]:
        """Removes what is of these containers, and the folders where nothing else is in them. Why some of it stays. Nobody may be at it."""
        failures: list[OSError] = []
        for folder in (self._folder / kind for kind in Kind):
            with durable.collected(failures):
                for path in [*_files(folder), *_gone(folder)]:
                    if _read_note(path).container in deleted:
                        _log.warning("batches of a deleted machine dropped", path=str(path))
                        with durable.collected(failures):
                            durable.remove_file(path)
                            reach("forget.aside-file-gone")
                            durable.remove_file(_note_of(path))
            with contextlib.suppress(OSError):  # it is not there, or not empty
                folder.rmdir()
        with durable.collected(failures):
            self.look()
        return failures

    def look(self) -> None:
        """What is there now; drops what was kept long enough. Several threads may look at once. Raises OSError."""
        with self._looking:
            self._found = self._look()
            gone = [_read_note(path) for kind in Kind for path in _gone(self._folder / kind)]
            self._left = {note.container for note in gone} - {""}

    def _look(self) -> dict[Kind, list[tuple[int, Note]]]:
        found: dict[Kind, list[tuple[int, Note]]] = {kind: [] for kind in Kind}
        now = time.monotonic()
        since_s, self._looked_at = now - self._looked_at, now
        for kind in Kind:
            for path in _files(self._folder / kind):
                with contextlib.suppress(FileNotFoundError):  # an operator deleted it, or another look did
                    status, note = path.stat(), _read_note(path)
                    if kind is Kind.UNLISTED and self._age_s(path, note, since_s) > KEEP_S:
                        _log.warning("batches deleted that were kept aside", path=str(path), kept_s=KEEP_S)
                        durable.remove_file(path)
                        durable.remove_file(_note_of(path))
                        continue
                    found[kind].append((status.st_size, note))
        return found

    def _age_s(self, path: Path, note: Note, since_s: float) -> float:
        """How long it has been here. `since_s`: since the last look."""
        unnoted_s = self._unnoted_s[path] + since_s if path in self._unnoted_s else 0.0
        age_s = note.kept_s + unnoted_s
        if unnoted_s > _NOTED_S:
            with contextlib.suppress(OSError):  # a full disk, say: it is noted later
                noted = msgspec.structs.replace(note, kept_s=age_s)
                durable.replace_file(_note_of(path), msgspec.json.encode(noted), durable=False)
                unnoted_s = 0.0
        self._unnoted_s[path] = unnoted_s
        return age_s


_TOLD: Final = {
    Kind.DAMAGED: "Damaged spool files",
    Kind.UNLISTED: "Batches that were acknowledged and cannot be listed",
}
_DAMAGED_ACTION: Final = "Replace the cache disk. If batches were lost, a new epoch begins by itself with a resync. Delete the folder then."


def _files(folder: Path) -> list[Path]:
    """Without their notes."""
    if not folder.is_dir():
        return []
    found = sorted(folder.iterdir())
    return [path for path in found if not path.name.endswith(_NOTE) and not path.name.startswith(".")]


def _gone(folder: Path) -> list[Path]:
    """Files that are not there any more, and left their note: somebody deleted them by hand, or was killed in between."""
    left = (note.with_name(note.name.removesuffix(_NOTE)) for note in sorted(folder.glob(f"*{_NOTE}")))
    return [path for path in left if not path.exists()]


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)


def _read_note(path: Path) -> Note:
    try:
        return decoding.decode(_note_of(path).read_bytes(), type=Note)
    except (OSError, *UNDECODABLE):
        epoch, _, rest = path.name.partition("-")
        first = rest.partition(".")[0]
        return Note(
            epoch=int(epoch) if epoch.isdecimal() else 0,
            first=int(first) if first.isdecimal() else 0,
            last=0,
            cause="its note is gone",
        )


def _size(size_b: int) -> str:
    return f"{size_b / (1 << 20):.1f} MiB" if size_b >= 1 << 20 else f"{size_b / 1024:.1f} KiB"
