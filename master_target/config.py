"""The master target's configuration file (TOML).

```toml
name = "mt1"
control_url = "https://config.example.com"
tls = {cert = "…/mt1.pem", key = "…/mt1.key", ca = "…/ca.pem"}
blob = {url = "https://account.blob.core.windows.net", container = "understudy"}
bridge = {request_b = 98304, amplification = 8.0, behind_s = 15.0}
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from master_target.bridge import BridgeSettings
from master_target.retention import RetentionPolicy
from shared import logging
from shared.blob import BlobConfig
from shared.errors import ConfigError
from shared.naming import check_apart, check_server_url
from shared.tls import TlsFiles
from shared.vault import check_choice


class MasterTargetConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    name: str
    """Its certificate is `master-target:<name>`. No two that run may share a name."""
    blob: BlobConfig
    tls: TlsFiles | None = None
    control_url: str = ""
    """The config server, which hands out the machines' data keys; without it nothing is reported."""
    vault_file: Path | None = None
    """Only without a config server: the keys that wrap the machines' data keys."""
    state_dir: Path = Path("/var/lib/understudy/master-target")
    """Holds the data keys that were handed out, sealed; nothing else that must survive."""
    machines: tuple[str, ...] = ()
    """The machines to claim; empty: every machine in storage that nobody else has."""
    target: Literal["page-blob", "image"] = "page-blob"
    image_dir: Path | None = None
    """For target `image`: the folder of the images."""
    interval_b: Annotated[int, msgspec.Meta(ge=1 << 20)] = 64 << 20
    """An interval's payload, which is in memory at once; twice as much is used while it is coalesced …"""
    behind_interval_b: Annotated[int, msgspec.Meta(ge=1 << 20)] = 256 << 20
    """… and while apply is behind (`bridge.behind_s`): the more writes in an interval, the fewer requests each costs."""
    poll_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 1.0
    bridge: BridgeSettings = BridgeSettings()
    retention: RetentionPolicy = RetentionPolicy()
    log_level: logging.Level = logging.Level.INFO

    def __post_init__(self) -> None:
        if (self.target == "image") != (self.image_dir is not None):
            raise ConfigError(
                "The master target's configuration is not valid",
                cause='`image_dir` must be given with target = "image", and only then',
            )
        if self.control_url and self.tls is None:
            raise ConfigError(
                "The master target's configuration is not valid", cause="`control_url` needs `tls` as well"
            )
        check_choice("master target", self.vault_file, self.control_url)
        if self.image_dir is not None:
            files = () if self.tls is None else (self.tls.cert, self.tls.key, self.tls.ca)
            check_apart(
                self.image_dir, (*files, self.vault_file, self.blob.account_key_file, self.blob.ca_file)
            )
        if self.control_url:
            check_server_url(self.control_url)
