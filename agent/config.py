"""Configuration of the agent: agent.toml, written at enrolment."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shared import logging
from shared.errors import ConfigError
from shared.tls import TlsFiles


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    machine: str
    """The machine's name in the installation; its certificate is `agent:<machine>`."""
    disks: list[str]
    """Device paths of the protected disks. Their order is their number in the stream."""
    process_server: str
    """host:port"""
    control_url: str
    tls: TlsFiles
    state_dir: Path
    """Holds the lock file only; what must survive is in pinned BPF maps."""
    pin_dir: Path
    """Folder in bpffs for the pinned maps and links of this installation."""
    identity: str = ""
    """What tells this machine from copies of it; empty: its SMBIOS data. To be set in containers, which have none of their own."""
    ring_mib: int = 64
    """Size of the kernel ring, a power of two: the writes that fit into it may wait for the process server in order."""
    point_interval_s: float = 300.0
    log_level: logging.Level = logging.Level.INFO

    def __post_init__(self) -> None:
        if self.ring_mib < 1 or self.ring_mib & (self.ring_mib - 1) or self.ring_mib > 1024:
            raise ConfigError(
                f"ring_mib = {self.ring_mib} is not possible",
                cause="the kernel wants a power of two",
                action="Choose 1, 2, 4, … 1024 MiB.",
            )
        if not self.disks:
            raise ConfigError("No disks are configured", action="List at least one device in `disks`.")

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.process_server.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(
                f"process_server = {self.process_server!r} is not an address",
                action='Write it as "host:port", for example "ps1.example.com:9443".',
            )
        return host.strip("[]"), int(port)
