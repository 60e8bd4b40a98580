"""What only the config server has: vault, CA, first operator. Each is made once; where one is gone that others lean on, nothing is made
in its place, since that would lock out every daemon, or wrap new keys under a key that nobody expects."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config_server.data_folder import belonging, first_operator, lock
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.store.database import Database
from config_server.store.files import DATABASE_FILE, RESTORE
from shared.control.enrol import fingerprint
from shared.crashpoints import reach
from shared.errors import ConfigError
from shared.host import durable
from shared.host.owner import as_owner
from shared.keys.vault import FileVault, leftovers
from shared.setup.access import Access, admits
from shared.setup.steps import Done, Outcome


@dataclass(frozen=True)
class Vault:
    """The keys that wrap all machines' data keys."""

    file: Path
    data_dir: Path
    reader: str = ""
    """The daemon's user; "": whoever runs this."""

    async def look(self, dry_run: bool) -> Done:
        if self.file.exists():
            key = f"its key is {FileVault(self.file).current}"  # refuses a file that others can read
            found = (_left(self._copies()), self._unread(), self._access().wrong())
            wrong = "; ".join(each for each in found if each)
            return self._done(Outcome.WOULD_MEND, wrong) if wrong else self._done(Outcome.KEPT, key)
        if (self.data_dir / DATABASE_FILE).exists():
            raise ConfigError(
                f"The vault file {self.file} is gone",
                cause=f"the installation is not new ({self.data_dir / DATABASE_FILE} is there): what its machines wrote is under the keys"
                " that were in it",
                action=f"Put a copy there (the recovery key is one), of the owner and the mode that it had, and run the command again."
                f" {RESTORE} brings the data folder back, not the vault.",
            )
        return self._done(Outcome.WOULD_CREATE, "a new key")

    async def do(self) -> Done:
        if self.file.exists():
            done = [self._without_copies(), self._given()]
            advice = ""
            if self._access().wrong():
                done.append(self._access().close())
                advice = "Consider its keys known to others."
            return self._done(Outcome.MENDED, "; ".join(each for each in done if each), advice)
        with as_owner(self.file.parent):
            vault = FileVault.create(self.file)
        self._without_copies()
        return self._done(Outcome.CREATED, f"its key is {vault.current}")

    def _copies(self) -> list[Path]:
        with durable.named(f"The folder {self.file.parent} could not be looked at"):
            return leftovers(self.file)

    def _without_copies(self) -> str:
        """What was removed, in words."""
        copies = self._copies()
        with durable.named(f"Copies of the vault file {self.file} could not be removed"):
            for copy in copies:
                durable.remove_file(copy)
        return _left(copies) and f"{_left(copies)}; now it is removed"

    def _unread(self) -> str:
        """Root has put it there, who has it from a recovery key, say."""
        with durable.named(f"The vault file {self.file} could not be looked at"):
            is_read = not self.reader or admits(self.file.stat(), self.reader)
        return "" if is_read else f"{self.reader} cannot read it"

    def _given(self) -> str:
        """What was wrong, in words."""
        if wrong := self._unread():
            owner = pwd.getpwnam(self.reader)
            with durable.named(f"The vault file {self.file} could not be given to {self.reader}"):
                os.chown(self.file, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        return wrong and f"{wrong}; now it is its own"

    def _access(self) -> Access:
        with durable.named(f"The vault file {self.file} could not be looked at"):
            return Access.in_folder(self.file)

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(
            step="vault",
            outcome=outcome,
            what=str(self.file),
            detail=f"{detail}; without it nothing can be read",
            action=action,
        )


_LEFT: Final = "the one that was left there is of the database that is lost"


def _left(copies: Sequence[Path]) -> str:
    return f"a run that was killed left {', '.join(map(str, copies))} beside it" if copies else ""


@dataclass(frozen=True)
class Authority:
    """The CA, which every other daemon pins when it enrols. `begins_anew`: one that lies there without a database is of an installation
    whose database is lost: an empty one beside it would admit whom that CA has certified, also who was revoked. So another is made."""

    data_dir: Path
    begins_anew: bool = False

    async def look(self, dry_run: bool) -> Done:
        if not (self.data_dir / DATABASE_FILE).exists():
            if not self._is_there():
                return self._done(Outcome.WOULD_CREATE, "a new key")
            if self.begins_anew:
                return self._done(Outcome.WOULD_CREATE, f"a new key, as was asked for: {_LEFT}")
        said = self._said(CertificateAuthority.open(self.data_dir))
        wrong = self._key().wrong()
        return self._done(Outcome.WOULD_MEND, f"ca.key: {wrong}") if wrong else self._done(Outcome.KEPT, said)

    async def do(self) -> Done:
        is_left = self.begins_anew and self._is_there() and not (self.data_dir / DATABASE_FILE).exists()
        if self._is_there() and not is_left:
            return self._done(
                Outcome.MENDED,
                f"ca.key: {self._key().close()}",
                "Whoever has read it can pass for every daemon. If somebody may have: stop the config server, move the data folder away,"
                " run the command with --new-ca, and enrol every daemon anew.",
            )
        with as_owner(self.data_dir), lock.held(self.data_dir):
            if is_left:
                with durable.named(f"{self.data_dir / 'ca.pem'} could not be removed"):
                    durable.remove_file(self.data_dir / "ca.pem")  # a key without a certificate is none
                reach("setup.step")
            made = CertificateAuthority.open(self.data_dir)
        said = self._said(made)
        return self._done(Outcome.CREATED, f"{said}; {_LEFT}, and is gone" if is_left else said)

    def _is_there(self) -> bool:
        return (self.data_dir / "ca.pem").exists()

    def _key(self) -> Access:
        with durable.named(f"The data folder {self.data_dir} could not be used"):
            return Access.in_folder(self.data_dir / "ca.key")

    def _said(self, ca: CertificateAuthority) -> str:
        return f"its fingerprint is {fingerprint(ca.der).hex()}"

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(
            step="ca", outcome=outcome, what=str(self.data_dir / "ca.pem"), detail=detail, action=action
        )


@dataclass(frozen=True)
class Operator:
    """Database, and the token of the first operator."""

    data_dir: Path

    async def look(self, dry_run: bool) -> Done:
        if not self.data_dir.is_dir():
            return self._done(Outcome.WOULD_CREATE)
        belonging.check_folder(self.data_dir)
        if not (self.data_dir / belonging.TOKEN_FILE).exists():
            return self._done(Outcome.WOULD_CREATE)
        wrong = [f"{each.path.name}: {each.wrong()}" for each in self._open()]
        return self._done(Outcome.WOULD_MEND, "; ".join(wrong)) if wrong else self._done(Outcome.KEPT)

    async def do(self) -> Done:
        folder = self.data_dir
        token = folder / belonging.TOKEN_FILE
        if token.exists():
            found = self._open()
            was = "; ".join(f"{each.path.name}: {each.close()}" for each in found)
            if token not in (each.path for each in found):
                return self._done(Outcome.MENDED, was)
            action = f"Consider the token known to others: delete {token}, and restart the config server, which makes another one."
            return self._done(Outcome.MENDED, was, action)
        with (
            durable.named(f"The data folder {folder} could not be used"),
            as_owner(folder),
            lock.held(folder),
        ):
            ca = CertificateAuthority.open(folder)
            db = await Database.open(folder / DATABASE_FILE)
            try:
                reach("setup.step")
                await db.run(lambda opened: belonging.check_parts(opened, ca, None))
                await first_operator.ensure(db, folder, time.time_ns())
            finally:
                await db.close()
        return self._done(Outcome.CREATED)

    def _open(self) -> list[Access]:
        """What others can use. In its folder the database is out of their sight, and holds no token: only who could write it is told."""
        with durable.named(f"The data folder {self.data_dir} could not be used"):
            modes = {belonging.TOKEN_FILE: 0o600, DATABASE_FILE: 0o644}
            accesses = [Access.in_folder(self.data_dir / name, mode) for name, mode in modes.items()]
            return [each for each in accesses if each.wrong()]

    def _done(self, outcome: Outcome, detail: str = "", action: str = "") -> Done:
        return Done(
            step="operator",
            outcome=outcome,
            what=str(self.data_dir / belonging.TOKEN_FILE),
            detail=detail
            or f"the token of the first operator, {belonging.OPERATOR}; whoever can read it may do everything",
            action=action,
        )


@dataclass(frozen=True)
class AuthorityNote:
    """The note of which CA this installation has. `begins_anew`: somebody wants the CA that is there now, whatever was noted."""

    data_dir: Path
    vault_file: Path
    begins_anew: bool = False
    reader: str = ""
    """The daemon's user; "": whoever runs this."""

    async def look(self, dry_run: bool) -> Done:
        if not (self.data_dir / "ca.pem").exists():
            return self._done(Outcome.WOULD_CREATE)  # dry run: it is not made
        ca = CertificateAuthority.open(self.data_dir)
        if not self.begins_anew:
            ca_note.check_same(self.data_dir, ca, self.vault_file)
        is_noted = ca_note.noted(self.vault_file) == fingerprint(ca.der).hex()
        if is_noted and self.reader:  # a restore writes it before there is such a user
            is_noted = admits(ca_note.note_of(self.vault_file).stat(), self.reader)
        return self._done(Outcome.KEPT if is_noted else Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        with durable.named(f"The note {ca_note.note_of(self.vault_file)} could not be written"):
            ca_note.note(CertificateAuthority.open(self.data_dir), self.vault_file)
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        return Done(
            step="ca-note",
            outcome=outcome,
            what=str(ca_note.note_of(self.vault_file)),
            detail="by it a server whose data folder is gone knows that it is, and makes no other CA",
        )
