"""Configuration of the agent: agent.toml. What stands below a field is for whoever sets it (docs/configuration.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent.capture.binding import Identity
from agent.capture.bindings import NotedDisk
from shared import naming
from shared.daemon import logging
from shared.desired import Interval, WantedDisk
from shared.errors import ConfigError
from shared.naming import check_server_url
from shared.trust.tls import TlsFiles


class ProtectedDisk(WantedDisk, frozen=True, forbid_unknown_fields=True):
    """As a file says it: there a key that is not known is a mistake, and no newer version's."""


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    machine: str
    """The machine's name in the installation, for which its certificate was made: 1 to 63 ASCII letters, digits, dots, hyphens,
    underscores."""
    disks: list[str] = []
    """Device paths of the protected disks, for example `/dev/disk/by-id/…`. What stands there at the first start is what is protected,
    wherever the kernel puts it later. 64 are captured at most; without any, here or in `[[disk]]`, nothing is protected until the config
    server names some."""
    disk: list[ProtectedDisk] = []
    """Protected disks that need more than a path; they may stand beside those of `disks`."""
    process_server: str = ""
    """Where the machine's writes are sent, as `HOST:PORT`; the port of a process server is 9443 unless it says another."""
    process_servers: list[str] = []
    """Others to turn to while `process_server` cannot be reached; or all of them, the one to be preferred first."""
    control_url: str
    """The config server, as `https://HOST[:PORT]`. It is told how the machine is, and renews its certificate."""
    tls: TlsFiles
    """The files that prove who this machine is. Enrolment makes them."""
    state_dir: Path
    """A folder for a lock file, `disks.json`, which says which disk is which, and `desired.json`, which says what the config server wants.
    What must survive else is in kernel memory."""
    pin_dir: Path
    """A folder below `/sys/fs/bpf` for what stays in the kernel while the agent is stopped, for example `/sys/fs/bpf/understudy`. Each
    agent on a host needs one of its own."""
    identity: str = ""
    """What tells this machine from copies of it. Where nothing is set that is its SMBIOS UUID and serial number; set it in containers,
    which have none of their own."""
    ring_mib: int = 64
    """Kernel memory for writes that wait for the process server in order, a power of two up to 1024. When it is full the order is given up,
    and what was written is copied afterwards."""
    point_interval_s: Interval = 300.0
    """How often the agent marks a recovery point, while the stream is in order. A policy that an operator set goes before it."""
    log_level: logging.Level = logging.Level.INFO
    """From which level on lines are written to the log."""

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
        named = (
            disk if isinstance(disk, NotedDisk) else WantedDisk(disk.device, disk.id, disk.identity)
            for disk in self.disk
        )
        return (*(WantedDisk(path) for path in self.disks), *named)

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
    found = naming.address_of(server)
    if found is None:
        raise ConfigError(
            f"process_server = {server!r} is not an address",
            action='Write it as "host:port", for example "ps1.example.com:9443".',
        )
    return found


def check_servers(servers: Sequence[str]) -> None:
    """Raises ConfigError when one is no address, or is named twice."""
    found = [address_of(server) for server in servers]
    if len({*found}) < len(found):
        raise ConfigError("A process server is named twice", action="Name each process server once.")


def check_disks(disks: Sequence[WantedDisk]) -> None:
    """Raises ConfigError when these cannot be asked for together, or an identity is none. Nothing is looked at. A disk with an id may be
    called as another is: that was its path once, and the other stands there now."""
    for name, values in (
        ("device", [disk.device for disk in disks if disk.id is None]),
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
