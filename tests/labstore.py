"""The storage of a lab, opened from the configuration of its process server."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from shared.blob import BlobConfig, BlobStore
from shared.vault import FileVault
from tests.lab import Lab


def storage(lab: Lab) -> BlobStore:
    return BlobStore.connect(
        msgspec.convert(_config(lab)["blob"], BlobConfig, dec_hook=lambda type_, value: type_(value))
    )


def vault(lab: Lab) -> FileVault:
    return FileVault(Path(_config(lab)["vault_file"]))


def _config(lab: Lab) -> dict[str, Any]:
    return tomllib.loads((lab.folder / "process-server.toml").read_text())
