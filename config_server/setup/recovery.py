"""The recovery key, put where the operator says.

It is a copy of the vault file: with it, and access to the storage account, `understudy restore --vault-file` rebuilds every machine when
every server is gone; whoever finds both can do so, too. That it was put somewhere is noted beside the vault (`recovery.json`), so that a
second run knows that it has been, though the file is by then where it belongs: not on this host.

    none                        it was never put anywhere
    note that it was begun      killed in between: as below, and told where another file is named then
    file, and no note           killed in between: the file is compared with the vault, and noted
    its beginning, and no note  killed while it was written where files have one name (a stick): completed, and noted
    note                        it has been; kept, unless the vault has got keys since that it lacks

It is to be taken away, and deleted here: so it must be another file than the vault, and none that is lost with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.crashpoints import reach
from shared.errors import (
    UNDECODABLE,
    ConfigError,
    RecoveryFileThereError,
    StateFileError,
    UsageError,
    cause_of,
)
from shared.host import durable
from shared.host.owner import as_owner
from shared.keys.vault import FileVault, ids_in
from shared.setup.access import too_open
from shared.setup.steps import Done, Outcome

NOTE: Final = "recovery.json"
_AWAY: Final = (
    "Take it off this host now (a safe, another site; never this storage account), and delete it here."
)
_NEW: Final = "Give a file that is not there yet, best on what leaves this host: --recovery-key FILE."
_MORE: Final = "Give another file: --recovery-key FILE, and keep that one."


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """The note."""

    v: int = 1
    file: str
    """Where it was put."""
    keys: tuple[str, ...]
    """The ids of the vault keys in it."""
    begun: tuple[str, ...] = ()
    """Where else it was to be put by a run that was killed, and may lie."""


class RecoveryKey:
    """`wanted`: where it shall be; None: nobody said. `folders`: what is lost or saved together with the vault. `note`: where it is noted;
    None: beside the vault, which may have been moved from there since."""

    def __init__(
        self, vault_file: Path, wanted: Path | None, folders: Sequence[Path] = (), note: Path | None = None
    ) -> None:
        self._vault: Final = vault_file
        self._wanted: Final = wanted
        self._folders: Final = folders
        self._note: Final = note or vault_file.parent / NOTE

    def check(self) -> None:
        """Before anything is made. Raises UsageError, RecoveryFileThereError, ConfigError where it cannot be put."""
        if self._wanted is not None and self._handed() is None:
            self._check_wanted(self._wanted)

    async def look(self, dry_run: bool) -> Done:
        handed = self._handed()
        if handed is not None:
            return self._kept(handed)
        if self._wanted is None:
            before = noted(self._note)
            raise UsageError(
                "Nobody said where the recovery key shall be put",
                cause=self._why_again(before) if before is not None else "",
                action=_MORE
                if before is not None
                else "Give a file: --recovery-key FILE. It is made, and must then leave this host.",
            )
        self._check_wanted(self._wanted)
        return self._done(Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        if (handed := self._handed()) is not None:
            return self._without_leftovers(handed)
        assert self._wanted is not None
        place, data = self._wanted, self._vault.read_bytes()
        keys = tuple(ids_in(data, self._vault))  # of these bytes: the vault may get more meanwhile
        before = noted(self._note)
        begun = tuple(name for name in before.begun if name != str(place)) if before is not None else ()
        self._put_note(
            msgspec.structs.replace(before or Handed(file=str(place), keys=()), begun=(*begun, str(place)))
        )
        reach("setup.step")
        try:
            readable = _written(place, data)
        except StateFileError:
            if not _is_own(place):
                self._put_back(before)  # nothing was put there
            raise
        note = Handed(file=str(place), keys=keys, begun=begun)
        self._put_note(note)
        return self._done(Outcome.CREATED, readable + _left_by(note))

    def _put_back(self, before: Handed | None) -> None:
        if before is not None:
            self._put_note(before)
            return
        with durable.named(f"The note {self._note} could not be removed"):
            durable.remove_file(self._note)

    def _put_note(self, note: Handed) -> None:
        with durable.named(f"The note {self._note} could not be written"), as_owner(self._note.parent):
            durable.replace_file(self._note, msgspec.json.encode(note), mode=0o600)

    def _handed(self) -> Handed | None:
        """The note, where what it names holds all that the vault does, and is not the vault itself."""
        handed = noted(self._note)
        if handed is None or self._is_vault(Path(handed.file)):
            return None
        ids = FileVault(self._vault).fingerprints if self._vault.exists() else {}
        return handed if ids.keys() <= set(handed.keys) else None

    def _why_again(self, handed: Handed) -> str:
        if not handed.keys:
            return f"a run that was killed had begun to put it into {handed.file}"
        if self._is_vault(Path(handed.file)):
            return f"{handed.file}, which is noted as it, is the vault file itself"
        return f"the vault has got keys that {handed.file} lacks"

    def _kept(self, handed: Handed) -> Done:
        place = Path(handed.file)
        if copies := self._leftovers(place):
            detail = f"a run that was killed left {', '.join(map(str, copies))} beside it"
            return Done(step="recovery-key", outcome=Outcome.WOULD_MEND, what=handed.file, detail=detail)
        more = _left_by(handed)
        if self._wanted is not None and self._wanted != place:
            more += f"; {self._wanted} was not made, since there is one"
        if not os.path.lexists(place):
            return Done(
                step="recovery-key",
                outcome=Outcome.WARNING if _left_by(handed) else Outcome.KEPT,
                what=handed.file,
                detail=f"it was put there, and taken away{more}",
                action=_AWAY if _left_by(handed) else "",
            )
        return Done(
            step="recovery-key",
            outcome=Outcome.WARNING,
            what=handed.file,
            detail=f"the recovery key is still on this host{_also(place)}{more}",
            action=_AWAY,
        )

    def _without_leftovers(self, handed: Handed) -> Done:
        copies = self._leftovers(Path(handed.file))
        with durable.named("Copies of the vault could not be removed"):
            for copy in copies:
                durable.remove_file(copy)
        return Done(
            step="recovery-key",
            outcome=Outcome.MENDED,
            what=handed.file,
            detail=f"copies that a run left that was killed were removed: {', '.join(map(str, copies))}",
            action=_AWAY if os.path.lexists(handed.file) else "",
        )

    def _leftovers(self, place: Path) -> list[Path]:
        if not self._vault.exists() or not place.parent.is_dir():
            return []
        with durable.named(f"The folder {place.parent} could not be looked at"):
            return durable.leftovers(place, self._vault.read_bytes())

    def _check_wanted(self, place: Path) -> None:
        with durable.named(f"The recovery key cannot be put into {place}", UsageError, action=_NEW):
            self._check_place(place)

    def _check_place(self, place: Path) -> None:
        what = f"The recovery key cannot be put into {place}"
        if self._is_vault(place):
            raise UsageError(
                what,
                cause="that is the vault file itself: who takes the recovery key off this host would take the only vault",
                action=_NEW,
            )
        if place.is_symlink():
            raise UsageError(what, cause=f"it is a symbolic link, to {place.readlink()}", action=_NEW)
        where = place.resolve()
        for folder in self._folders:
            if where.is_relative_to(folder.resolve()):
                raise UsageError(
                    what,
                    cause=f"it lies in {folder}, and would be lost, or stolen, together with the vault",
                    action=_NEW,
                )
        if not place.parent.is_dir():
            raise UsageError(
                f"The recovery key cannot be put into {place.parent}",
                cause="there is no such folder",
                action="Make it, or mount what shall hold it; or give another file as --recovery-key.",
            )
        if os.path.lexists(place):
            self._check_it(place)

    def _is_vault(self, place: Path) -> bool:
        """By whatever name."""
        try:
            if place.samefile(self._vault):
                return True
        except OSError:  # one of them is not there
            pass
        return place.resolve() == self._vault.resolve()

    def _check_it(self, place: Path) -> None:
        """Raises RecoveryFileThereError where it is neither the recovery key, nor the beginning of it, which a run wrote that was killed.
        Somebody else's file is none: he would read what is written into it."""
        why = "is another file"
        try:
            fd = durable.open_own(place)
            try:
                data = self._vault.read_bytes() if self._vault.exists() else b""
                found = os.pread(fd, len(data) + 1, 0)
                if data and data.startswith(found):
                    is_alone = found == data or os.fstat(fd).st_nlink == 1
                    why = "" if is_alone else "has a second name"
            finally:
                os.close(fd)
        except OSError as exc:
            why = f"cannot be taken for it: {cause_of(exc)}"
        if why:
            back = (
                "Give the name of a file that is not there. Is this the recovery key of the config server that was, whose place this host"
                f" shall take: put a copy of it at {self._vault} (readable by root alone), and run the command again."
            )
            raise RecoveryFileThereError(
                "The recovery key was not written",
                cause=f"{place} is there already, and {why}",
                action="" if self._vault.exists() else back,
            )

    def _done(self, outcome: Outcome, more: str = "") -> Done:
        return Done(
            step="recovery-key",
            outcome=outcome,
            what=str(self._wanted),
            detail=f"with it and the storage account everything can be restored when every server is gone, by whoever has it{more}",
            action=_AWAY if outcome is Outcome.CREATED else "",
        )


def _written(place: Path, data: bytes) -> str:
    """In words, whether others can read it all the same. Raises StateFileError."""
    with durable.named(f"The recovery key {place} could not be written", action=_MORE):
        for copy in durable.leftovers(place, data):
            durable.remove_file(copy)
        try:
            durable.create_file(place, data, mode=0o600)
        except FileExistsError:
            durable.complete_file(place, data)  # it, or its beginning, is there, as the look has seen
        reach("setup.step")
        return _closed(place)


def _is_own(place: Path) -> bool:
    try:
        os.close(durable.open_own(place))
    except OSError:
        return False
    return True


def _closed(place: Path) -> str:
    """Others cannot read it from now on; else, in words, that its file system lets them. Raises OSError."""
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if too_open(os.fstat(fd), 0o600):
            with contextlib.suppress(OSError):
                os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
    return _also(place)


def _left_by(handed: Handed) -> str:
    there = [name for name in handed.begun if os.path.lexists(name)]
    return f"; a run that was killed put it into {', '.join(there)}, too" if there else ""


def _also(place: Path) -> str:
    try:
        wrong = too_open(place.stat(), 0o600)
    except OSError:
        return ""
    return f"; {wrong}" if wrong else ""


def noted(note: Path) -> Handed | None:
    """None: the recovery key was never put anywhere. Raises ConfigError."""
    try:
        return decoding.decode(note.read_bytes(), type=Handed)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, *UNDECODABLE) as exc:
        raise ConfigError(
            f"The note {note} cannot be read",
            cause=str(exc),
            action="Delete it: the recovery key is then put once more where you say.",
        ) from exc
