"""Configuration of the agent: agent.toml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent.capture.binding import Identity
from shared import logging
from shared.desired import Interval, WantedDisk
from shared.errors import ConfigError
from shared.naming import check_server_url
from shared.tls import TlsFiles


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    machine: str
    """The machine's name in the installation; its certificate is `agent:<machine>`."""
    disks: list[str] = []
    """Device paths of the protected disks. What stands there at the first start is what is protected, wherever it stands later
    (agent/capture/binding.py); a link of /dev/disk/by-id says the same in the configuration itself."""
    disk: list[WantedDisk] = []
    """The same with ids: tables `[[disk]]` of device, id, identity. Without any disk nothing is protected until a wish names some."""
    process_server: str = ""
    """host:port"""
    process_servers: list[str] = []
    """Others to turn to while that one cannot be reached; or all of them, the one to be preferred first."""
    control_url: str
    tls: TlsFiles
    state_dir: Path
    """Holds a lock file; disks.json, which says which disk is which; desired.json, which says what the config server wants. All else that
    must survive is in pinned BPF maps."""
    pin_dir: Path
    """Folder in bpffs for the pinned maps and links of this installation."""
    identity: str = ""
    """What tells this machine from copies of it; empty: its SMBIOS data. To be set in containers, which have none of their own."""
    ring_mib: int = 64
    """Size of the kernel ring, a power of two: the writes that fit into it may wait for the process server in order."""
    point_interval_s: Interval = 300.0
    log_level: logging.Level = logging.Level.INFO

    def __post_init__(self) -> None:
        if self.ring_mib < 1 or self.ring_mib & (self.ring_mib - 1) or self.ring_mib > 1024:
            raise ConfigError(
                f"ring_mib = {self.ring_mib} is not possible",
                cause="the kernel wants a power of two",
                action="Choose 1, 2, 4, … 1024 MiB.",
            )
        check_server_url(self.control_url)
        check_servers(self.servers)  # or one would be found wrong only when it is wanted
        check_disks(self.protected)

    @property
    def protected(self) -> tuple[WantedDisk, ...]:
        """All disks, in the order of the configuration."""
        return (*(WantedDisk(path) for path in self.disks), *self.disk)

    @property
    def control_address(self) -> tuple[str, int]:
        url = urlsplit(self.control_url)
        return url.hostname or "", url.port or 443

    @property
    def servers(self) -> tuple[str, ...]:
        """All process servers, `host:port`, the one to be preferred first."""
        return (*([self.process_server] if self.process_server else []), *self.process_servers)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Of these."""
        return tuple(address_of(server) for server in self.servers)


def address_of(server: str) -> tuple[str, int]:
    """Raises ConfigError."""
    host, _, port = server.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port[:9]) < 1 << 16:
        raise ConfigError(
            f"process_server = {server!r} is not an address",
            action='Write it as "host:port", for example "ps1.example.com:9443".',
        )
    return host.strip("[]"), int(port)


def check_servers(servers: Sequence[str]) -> None:
    """Raises ConfigError when one is no address, or is named twice."""
    found = [address_of(server) for server in servers]
    if len({*found}) < len(found):
        raise ConfigError("A process server is named twice", action="Name each process server once.")


def check_disks(disks: Sequence[WantedDisk]) -> None:
    """Raises ConfigError when these cannot be asked for together, or an identity is none. Nothing is looked at."""
    for name, values in (
        ("device", [disk.device for disk in disks]),
        ("id", [disk.id for disk in disks if disk.id is not None]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f"Two disks have the {name} {twice[0]}", action="Name each disk once.")
    for disk in disks:
        try:
            if disk.identity is not None:
                Identity.parse(disk.identity)
        except ValueError as exc:
            raise ConfigError(
                f"The identity of disk {disk.id or disk.device} is none",
                cause=str(exc),
                action="Write it as `python -m agent preflight DEVICE` prints it.",
            ) from exc
