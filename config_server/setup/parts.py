"""What only the config server has: vault, CA, first operator. Each is made once; where one is gone that others lean on, nothing is made
in its place, since that would lock out every daemon, or wrap new keys under a key that nobody expects."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from config_server import belonging, first_operator, lock
from config_server.ca import CertificateAuthority
from config_server.database import DATABASE_FILE, RESTORE, Database
from shared import durable
from shared.crashpoints import reach
from shared.enrol import fingerprint
from shared.errors import ConfigError
from shared.owner import as_owner
from shared.setup.steps import Done, Outcome
from shared.vault import FileVault


@dataclass(frozen=True)
class Vault:
    """The keys that wrap all machines' data keys."""

    file: Path
    data_dir: Path

    async def look(self, dry_run: bool) -> Done:
        if self.file.exists():
            return self._done(Outcome.KEPT, f"its key is {FileVault(self.file).current}")
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
        with as_owner(self.file.parent):
            vault = FileVault.create(self.file)
        return self._done(Outcome.CREATED, f"its key is {vault.current}")

    def _done(self, outcome: Outcome, detail: str) -> Done:
        return Done(
            step="vault",
            outcome=outcome,
            what=str(self.file),
            detail=f"{detail}; without it nothing can be read",
        )


@dataclass(frozen=True)
class Authority:
    """The CA, which every other daemon pins when it enrols."""

    data_dir: Path

    async def look(self, dry_run: bool) -> Done:
        if not (self.data_dir / "ca.pem").exists() and not (self.data_dir / DATABASE_FILE).exists():
            return self._done(Outcome.WOULD_CREATE, "a new key")
        return self._done(Outcome.KEPT, self._said(CertificateAuthority.open(self.data_dir)))

    async def do(self) -> Done:
        with as_owner(self.data_dir), lock.held(self.data_dir):
            made = CertificateAuthority.open(self.data_dir)
        return self._done(Outcome.CREATED, self._said(made))

    def _said(self, ca: CertificateAuthority) -> str:
        return f"its fingerprint is {fingerprint(ca.der).hex()}"

    def _done(self, outcome: Outcome, detail: str) -> Done:
        return Done(step="ca", outcome=outcome, what=str(self.data_dir / "ca.pem"), detail=detail)


@dataclass(frozen=True)
class Operator:
    """Database, and the token of the first operator."""

    data_dir: Path

    async def look(self, dry_run: bool) -> Done:
        if not self.data_dir.is_dir():
            return self._done(Outcome.WOULD_CREATE)
        belonging.check_folder(self.data_dir)
        there = (self.data_dir / belonging.TOKEN_FILE).exists()
        return self._done(Outcome.KEPT if there else Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        folder = self.data_dir
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

    def _done(self, outcome: Outcome) -> Done:
        return Done(
            step="operator",
            outcome=outcome,
            what=str(self.data_dir / belonging.TOKEN_FILE),
            detail=f"the token of the first operator, {belonging.OPERATOR}; whoever can read it may do everything",
        )
