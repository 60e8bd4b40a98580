"""Whether the storage account has an installation already: a new vault beside it would be one that opens nothing of what is there. So would
a vault that is on this host already, and was made for another container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import ContainerMissingError, InstallationThereError
from shared.keys import vault_record
from shared.keys.vault import FileVault
from shared.machine.storage import REGISTRY, MachineStorage
from shared.setup.checks import Check
from shared.setup.steps import Done, Outcome

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Unused(Check):
    """`vault_file`: where it is, and has a key that storage knows, the installation is this one."""

    config: BlobConfig
    vault_file: Path

    async def look(self, dry_run: bool) -> Done:
        what = f"container {self.config.container}"
        if self.vault_file.exists():
            await self._check_ours()
            return Done(step="container", outcome=Outcome.KEPT, what=what, detail="it is this installation's")
        if found := await installation_in(self.config):
            raise InstallationThereError(
                "Nothing was set up",
                cause=f"{found} in container {self.config.container} of {self.config.account} is another installation's,"
                " or this one's of before, whose vault file is not on this host",
                action="Give another container (--blob-container). Shall this host take the place of the config server that was: put"
                f" its vault file, or the recovery key, at {self.vault_file} (readable by root alone), and run the command again, which"
                " says how its data folder comes back.",
            )
        return Done(
            step="container", outcome=Outcome.CHECKED, what=what, detail="no installation uses it yet"
        )

    async def _check_ours(self) -> None:
        """A vault that lacks a key, and has others, is an older one of this installation: the server tells (US560)."""
        ours = FileVault(self.vault_file).fingerprints
        async with MachineStorage.connect(self.config) as machines:
            known = await vault_record.known_keys(machines.with_retry(Retry(deadline_s=_PATIENCE_S)))
        if vault_record.is_another_s(ours, known):
            raise InstallationThereError(
                "Nothing was set up",
                cause=f"container {self.config.container} of {self.config.account} has an installation under vault key"
                f" {', '.join(sorted(known))}, which {self.vault_file} does not have: it is another one's",
                action="Give another container (--blob-container). Is this host that installation's config server: put its vault file, or"
                f" its recovery key, at {self.vault_file} in the place of what is there, and keep that elsewhere.",
            )


async def installation_in(config: BlobConfig) -> str:
    """The name of a blob that an installation leaves once its servers have run; "": there is none. Raises StorageError."""
    async with BlobStore.connect(config) as store:
        patient = store.with_retry(Retry(deadline_s=_PATIENCE_S))
        for prefix in (vault_record.FOLDER, REGISTRY):
            try:
                async for found in patient.list(prefix):
                    return found.name
            except ContainerMissingError:
                break
    return ""
