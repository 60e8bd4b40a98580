"""The process server's configuration file (TOML). What stands below a field is for whoever sets it (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from process_server.reception.credit import CreditPolicy
from process_server.spool.ownership import LONGEST_SEGMENT_S
from shared.blob import BlobConfig
from shared.daemon import logging
from shared.keys.vault import check_choice
from shared.naming import check_apart, check_server_url
from shared.trust.tls import TlsFiles

PORT: Final = 9443


class ProcessServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    name: str
    """Its name in the installation, for which its certificate was made."""
    tls: TlsFiles
    """The files that prove who this server is. Enrolment makes them."""
    spool_dir: Path
    """The folder of the cache: what machines have sent and is not in storage yet. Best on a disk of its own; never on a disk that this host
    protects."""
    blob: BlobConfig
    """The storage account."""
    control_url: str = ""
    """The config server, as `https://HOST[:PORT]`. It hands out the machines' data keys, and is told how this server is."""
    vault_file: Path | None = None
    """The keys that wrap the machines' data keys: only in an installation without a config server. One of `control_url` and `vault_file`
    must be set, and not both."""
    listen: str = "0.0.0.0"
    """The address on which agents are heard: `0.0.0.0` for every IPv4 address of the host, `::` for every address of IPv4 and IPv6 (of IPv4
    alone where the kernel has no IPv6), else one address, or a name, of which the first address is taken."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = PORT
    """The port on which agents are heard."""
    cache_b: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """How much the cache may hold. Unless it is set, the whole file system that holds `spool_dir` is the cache."""
    credit: CreditPolicy = CreditPolicy()
    """How much machines may send ahead of storage."""
    segment_bytes: Annotated[int, msgspec.Meta(ge=4096, le=4 << 30)] = 32 << 20
    """At this size a segment of the log is closed and uploaded."""
    segment_seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_SEGMENT_S)] = 5.0
    """At this age a segment is closed and uploaded even if it is small: no RPO is shorter. Shorter ones cost more requests."""
    # Other process servers reckon with the longest (LONGEST_SEGMENT_S).
    log_level: logging.Level = logging.Level.INFO
    """From which level on lines are written to the log."""

    def __post_init__(self) -> None:
        check_choice("process server", self.vault_file, self.control_url)
        files = (self.tls.cert, self.tls.key, self.tls.ca, self.vault_file)
        check_apart(self.spool_dir, (*files, self.blob.account_key_file, self.blob.ca_file))
        if self.control_url:
            check_server_url(self.control_url)
