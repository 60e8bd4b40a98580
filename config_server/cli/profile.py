"""Profiles: a file that says where an installation is and how to get in, so that commands need one option.

```toml
server = "https://config.example.com"
token_file = "/root/operator.token"
ca_file = "/etc/understudy/ca.pem"

# For restores when the config server is gone; may be left out.
[rescue]
vault_file = "/root/vault.json"

[rescue.blob]
url = "https://account.blob.core.windows.net"
account_key_file = "/root/account.key"
```

It is given as `--profile FILE`, in UNDERSTUDY_PROFILE, or as the folder that holds it under the name `profile.toml` (`--lab DIR`,
UNDERSTUDY_LAB): whoever sets up an installation leaves one behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from shared.blob import BlobConfig
from shared.daemon.service import load_config
from shared.errors import LabNotFoundError
from shared.host import durable
from shared.host.toml import to_toml

FILE: Final = "profile.toml"


class Rescue(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Storage and vault: with them no server is needed at all."""

    vault_file: Path
    """A copy of the config server's vault file, readable by you only."""
    blob: BlobConfig
    """The storage account."""


class Profile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    server: str
    """The config server, as `https://HOST[:PORT]`."""
    token_file: Path
    """A file with your operator token and nothing else, readable by you only."""
    ca_file: Path | None = None
    """The certificate of the config server's CA, PEM. Unless it is set, a public CA must vouch for the server."""
    rescue: Rescue | None = None
    """Storage and vault, for restores while the config server is gone."""


def load(file: Path) -> Profile:
    """Raises ConfigError."""
    return load_config(file, Profile)


def load_from(folder: Path) -> Profile:
    """The profile that a folder holds. Raises LabNotFoundError when there is none, ConfigError."""
    file = folder / FILE
    try:
        found = file.is_file()
    except OSError:  # a name that is too long, say
        found = False
    if not found:
        raise LabNotFoundError(f"{folder} is no lab", cause=f"it has no {FILE}")
    return load(file)


def save(file: Path, profile: Profile) -> None:
    plain: dict[str, Any] = msgspec.to_builtins(profile, enc_hook=str)
    durable.replace_file(file, to_toml(plain).encode())
