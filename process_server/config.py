"""The process server's configuration file (TOML).

```toml
name = "ps1"
control_url = "https://config.example.com"
spool_dir = "/var/lib/understudy/spool"
tls = {cert = "…/ps1.pem", key = "…/ps1.key", ca = "…/ca.pem"}
blob = {url = "https://account.blob.core.windows.net", container = "understudy"}
credit = {quota_per_disk_b = 8589934592}
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from process_server.reception.credit import CreditPolicy
from process_server.spool.ownership import LONGEST_SEGMENT_S
from shared import logging
from shared.blob import BlobConfig
from shared.naming import check_apart, check_server_url
from shared.tls import TlsFiles
from shared.vault import check_choice

PORT: Final = 9443


class ProcessServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    name: str
    """Its certificate is `process-server:<name>`."""
    tls: TlsFiles
    spool_dir: Path
    """The cache: on a disk of its own if possible. It also holds the data keys that were handed out, sealed."""
    blob: BlobConfig
    control_url: str = ""
    """The config server, e.g. https://config.example.com, which hands out the machines' data keys; without it nothing is reported."""
    vault_file: Path | None = None
    """Only without a config server: the keys that wrap the machines' data keys."""
    listen: str = "0.0.0.0"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = PORT
    cache_b: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Size of the cache; None: the whole file system that holds `spool_dir`."""
    credit: CreditPolicy = CreditPolicy()
    segment_bytes: Annotated[int, msgspec.Meta(ge=4096, le=4 << 30)] = 32 << 20
    """A segment is closed and uploaded at this size …"""
    segment_seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_SEGMENT_S)] = 5.0
    """… or at this age, which is the floor of the RPO. Other process servers reckon with the longest."""
    log_level: logging.Level = logging.Level.INFO

    def __post_init__(self) -> None:
        check_choice("process server", self.vault_file, self.control_url)
        files = (self.tls.cert, self.tls.key, self.tls.ca, self.vault_file)
        check_apart(self.spool_dir, (*files, self.blob.account_key_file, self.blob.ca_file))
        if self.control_url:
            check_server_url(self.control_url)
