"""The recovery key, put where the operator says.

It is a copy of the vault file: with it, and access to the storage account, `understudy restore --vault-file` rebuilds every machine when
every server is gone; whoever finds both can do so, too. That it was put somewhere is noted beside the vault (`recovery.json`), so that a
second run knows that it has been, though the file is by then where it belongs: not on this host.

    none                        it was never put anywhere
    file, and no note           killed in between: the file is compared with the vault, and noted
    note                        it has been; kept, unless the vault has got keys since that it lacks
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding, durable
from shared.crashpoints import reach
from shared.errors import UNDECODABLE, ConfigError, RecoveryFileThereError, UsageError, cause_of
from shared.owner import as_owner
from shared.setup.steps import Done, Outcome
from shared.vault import FileVault

NOTE: Final = "recovery.json"
_AWAY: Final = (
    "Take it off this host now (a safe, another site; never this storage account), and delete it here."
)
_MORE: Final = "Give another file: --recovery-key FILE, and keep that one."


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """The note."""

    v: int = 1
    file: str
    """Where it was put."""
    keys: tuple[str, ...]
    """The ids of the vault keys in it."""


class RecoveryKey:
    """`wanted`: where it shall be; None: nobody said."""

    def __init__(self, vault_file: Path, wanted: Path | None) -> None:
        self._vault: Final = vault_file
        self._wanted: Final = wanted
        self._note: Final = vault_file.parent / NOTE

    async def look(self, dry_run: bool) -> Done:
        ids = tuple(FileVault(self._vault).fingerprints) if self._vault.exists() else ()
        handed = noted(self._note)
        if handed is not None and (not ids or set(ids) <= set(handed.keys)):
            is_here = _is_there(handed.file)
            return Done(
                step="recovery-key",
                outcome=Outcome.WARNING if is_here else Outcome.KEPT,
                what=handed.file,
                detail="the recovery key is still on this host"
                if is_here
                else "it was put there, and taken away",
                action=_AWAY if is_here else "",
            )
        if self._wanted is None:
            raise UsageError(
                "Nobody said where the recovery key shall be put",
                cause="" if handed is None else f"the vault has got keys that {handed.file} lacks",
                action=_MORE
                if handed is not None
                else "Give a file: --recovery-key FILE. It is made, and must then leave this host.",
            )
        self._check_place(self._wanted)
        if self._wanted.exists() and not self._is_it(self._wanted):
            raise RecoveryFileThereError(
                "The recovery key was not written",
                cause=f"{self._wanted} is there already, and is another file",
            )
        return self._done(Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        assert self._wanted is not None
        with durable.named(f"The recovery key {self._wanted} could not be written", action=_MORE):
            if not self._wanted.exists():
                durable.create_file(self._wanted, self._vault.read_bytes(), mode=0o600)
            reach("setup.step")
        note = Handed(file=str(self._wanted), keys=tuple(FileVault(self._vault).fingerprints))
        with durable.named(f"The note {self._note} could not be written"), as_owner(self._note.parent):
            durable.replace_file(self._note, msgspec.json.encode(note), mode=0o600)
        return self._done(Outcome.CREATED)

    def _check_place(self, place: Path) -> None:
        if not place.parent.is_dir():
            raise UsageError(
                f"The recovery key cannot be put into {place.parent}",
                cause="there is no such folder",
                action="Make it, or mount what shall hold it; or give another file as --recovery-key.",
            )

    def _is_it(self, place: Path) -> bool:
        try:
            return self._vault.exists() and place.read_bytes() == self._vault.read_bytes()
        except OSError as exc:
            raise RecoveryFileThereError(
                "The recovery key was not written", cause=f"{place} cannot be read: {cause_of(exc)}"
            ) from exc

    def _done(self, outcome: Outcome) -> Done:
        return Done(
            step="recovery-key",
            outcome=outcome,
            what=str(self._wanted),
            detail="with it and the storage account everything can be restored when every server is gone, by whoever has it",
            action=_AWAY if outcome is Outcome.CREATED else "",
        )


def _is_there(file: str) -> bool:
    return os.path.lexists(file)


def noted(note: Path) -> Handed | None:
    """None: the recovery key was never put anywhere. Raises ConfigError."""
    try:
        return decoding.decode(note.read_bytes(), type=Handed)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as exc:
        raise ConfigError(
            f"The note {note} cannot be read",
            cause=str(exc),
            action="Delete it: the recovery key is then put once more where you say.",
        ) from exc
