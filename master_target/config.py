"""The master target's configuration file (TOML). What stands below a field is for whoever sets it (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from master_target.bridge import BridgeSettings
from master_target.retention import RetentionPolicy
from shared.blob import BlobConfig
from shared.daemon import logging
from shared.errors import ConfigError
from shared.keys.vault import check_choice
from shared.naming import check_apart, check_server_url
from shared.trust.tls import TlsFiles


class MasterTargetConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    name: str
    """Its name in the installation, for which its certificate was made. No two that run may share one."""
    blob: BlobConfig
    """The storage account."""
    tls: TlsFiles | None = None
    """The files that prove who this master target is. Enrolment makes them; needed with `control_url`."""
    control_url: str = ""
    """The config server, as `https://HOST[:PORT]`. It hands out the machines' data keys, and is told how this server is."""
    vault_file: Path | None = None
    """The keys that wrap the machines' data keys: only in an installation without a config server. One of `control_url` and `vault_file`
    must be set, and not both."""
    state_dir: Path = Path("/var/lib/understudy/master-target")
    """A folder for the data keys that were handed out, sealed. Nothing else in it must survive."""
    machines: tuple[str, ...] = ()
    """The names of the machines that it takes care of. Unless some are named: every machine in storage that no other master target has."""
    target: Literal["page-blob", "image"] = "page-blob"
    """What the seed disks are: page blobs in the storage account, or image files on this host."""
    image_dir: Path | None = None
    """The folder of the image files: needed with `target = "image"`, and only then."""
    interval_b: Annotated[int, msgspec.Meta(ge=1 << 20)] = 64 << 20
    """How much of the log is applied to the seed disks at once. Up to three times as much memory is used for it."""
    behind_interval_b: Annotated[int, msgspec.Meta(ge=1 << 20)] = 256 << 20
    """The same while it is behind (`bridge.behind_s`): the more at once, the fewer requests."""
    poll_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 1.0
    """How often storage is asked for what is new in a machine's log. Each time is a request that costs money."""
    bridge: BridgeSettings = BridgeSettings()
    """How small writes that lie near each other go out as one request, while it is behind."""
    retention: RetentionPolicy = RetentionPolicy()
    """Which recovery points are kept. The newest, and the newest with snapshots, always are."""
    log_level: logging.Level = logging.Level.INFO
    """From which level on lines are written to the log."""

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
