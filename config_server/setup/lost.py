"""Whether the data folder that this installation had is gone: its file system is not mounted, its disk was lost. A new CA in its place
would lock out every daemon, and an empty database would admit who was revoked.

A first run that was killed has none either, or no database in it. What tells the two apart was made after the database:

    the note of its CA, beside the vault file (ca_note.py)               a run, or a server, writes it once CA, database and token are there
    the profile, in which stands the token file of this data folder    the last file that a run writes, before it starts the server
    the record of a vault key, or a machine, in storage                 a server writes them, which has a database before

So where none is, no daemon has ever enrolled, and nobody leans on what is not there. The same tells whether an operator's token that is not
there was taken away, or never made; and the note, whether the CA that is there is the installation's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config_server.cli.profile import Profile
from config_server.config import ConfigServerConfig
from config_server.data_folder import belonging
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.setup.unused import installation_in
from config_server.store.files import DATABASE_FILE
from shared.blob import BlobConfig
from shared.errors import ConfigError
from shared.host import durable
from shared.setup.checks import Check
from shared.setup.files import known
from shared.setup.steps import Done, Outcome


@dataclass(frozen=True)
class DataThere(Check):
    """`begins_anew`: somebody knows that it is lost, and wants a new CA."""

    data_dir: Path
    vault_file: Path
    profile: Path
    config: Path
    storage: BlobConfig
    begins_anew: bool = False

    async def look(self, dry_run: bool) -> Done:
        if known(self.config, ConfigServerConfig).get("database", {}).get("url"):
            raise ConfigError(
                "This installation's database is not in its data folder",
                cause=f"{self.config} names one of PostgreSQL ([database]), and this command knows files alone",
                action="Nothing is to be set up here any more: what it would mend is named in docs/operations.md.",
            )
        with durable.named(f"The data folder {self.data_dir} cannot be used"):
            belonging.check_folder(self.data_dir)
            if (self.data_dir / DATABASE_FILE).exists():
                return self._kept()
        if not (why := await self._was_there()):
            return self._done(Outcome.CHECKED, "the installation is new")
        if self.begins_anew:
            return self._done(
                Outcome.WARNING,
                f"it is gone ({why}), and a new one is begun, as was asked for",
                "Enrol every daemon anew (python -m shared.control.enrol --replace): this server will know none of them.",
            )
        of = (
            f"--config {self.config}"
            if self.config.exists()
            else f"--data-dir {self.data_dir} --vault-file {self.vault_file}"
        )
        named = known(self.config, ConfigServerConfig).get("data_dir", str(self.data_dir))
        elsewhere = "" if named == str(self.data_dir) else f", and {self.config} names {named}"
        raise ConfigError(
            f"The data folder {self.data_dir} is gone, or is empty",
            cause=f"the installation is not new ({why}{elsewhere}): a new CA would lock out every daemon, and an empty database would admit"
            " who was revoked",
            action=f"If it lies on a file system of its own: mount that, and run the command again. If it is lost: restore a backup"
            f" (python -m config_server restore {of} --from FILE), and run the command again. Without a backup: the same"
            " command with --new-ca; then every daemon has to be enrolled anew, and what is replicated stays in storage.",
        )

    def _kept(self) -> Done:
        if (self.data_dir / "ca.pem").exists():
            ca = CertificateAuthority.open(self.data_dir)
            try:
                ca_note.check_same(self.data_dir, ca, self.vault_file)
            except ConfigError as exc:
                if not self.begins_anew:
                    raise
                # Nor was a token of this CA's database noted: one that is not there was not made yet, by a run that was killed.
                return self._done(Outcome.WARNING, f"{exc.cause}; it is taken, as was asked for")
        if not (self.data_dir / belonging.TOKEN_FILE).exists() and (why := self._was_complete()):
            raise ConfigError(
                f"The operator's token {self.data_dir / belonging.TOKEN_FILE} is gone",
                cause=f"it was there once ({why}): if somebody keeps it elsewhere, another one would end it",
                action="Put it back, and run the command again. Or, to have another one: restart the config server (systemctl restart"
                " understudy-config-server), which makes it and ends the old one, and run the command again.",
            )
        return self._done(Outcome.KEPT, "CA and database are there")

    def _was_complete(self) -> str:
        """What says so on this host; "": nothing."""
        if ca_note.noted(self.vault_file):
            return f"{ca_note.note_of(self.vault_file)} names the CA that was in it"
        if known(self.profile, Profile).get("token_file") == str(self.data_dir / belonging.TOKEN_FILE):
            return f"{self.profile} names the operator's token that was in it"
        return ""

    async def _was_there(self) -> str:
        """What says so; "": nothing."""
        if why := self._was_complete():
            return why
        if self.vault_file.exists() and (found := await installation_in(self.storage)):
            return f"a server has written {found} into container {self.storage.container}"
        return ""

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(
            step="data-folder", outcome=outcome, what=str(self.data_dir), detail=detail, action=action
        )
