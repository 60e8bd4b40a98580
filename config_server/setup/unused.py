"""Whether the storage account has an installation already: a new vault beside it would be one that opens nothing of what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared import vault_record
from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import ContainerMissingError, InstallationThereError
from shared.machine_storage import REGISTRY
from shared.setup.checks import Check
from shared.setup.steps import Done, Outcome

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Unused(Check):
    """`vault_file`: where it is, the installation is this one."""

    config: BlobConfig
    vault_file: Path

    async def look(self, dry_run: bool) -> Done:
        what = f"container {self.config.container}"
        if self.vault_file.exists():
            return Done(step="container", outcome=Outcome.KEPT, what=what, detail="it is this installation's")
        async with BlobStore.connect(self.config) as store:
            patient = store.with_retry(Retry(deadline_s=_PATIENCE_S))
            for prefix in (vault_record.FOLDER, REGISTRY):
                try:
                    async for found in patient.list(prefix):
                        raise InstallationThereError(
                            "Nothing was set up",
                            cause=f"{found.name} in container {self.config.container} of {self.config.account} is another installation's,"
                            " or this one's of before, whose vault file is not on this host",
                        )
                except ContainerMissingError:
                    break
        return Done(
            step="container", outcome=Outcome.CHECKED, what=what, detail="no installation uses it yet"
        )
