"""An installation over four containers and a storage account, each daemon by its own unit, as deploy/systemd/README.md has it.

    cs   config server: CA, vault, command line        mt   master target
    ps   process server                                db1  the machine that is protected: an agent
    storage  Azurite, beside the containers

Who is installed where is this module's; how, the documentation's: what is said there is done here, by the same users.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from shared.host.toml import to_toml
from tests.azurite import Azurite
from tests.containers import program
from tests.containers.container import Container
from tests.containers.site import Site

CONFIG_SERVER: Final = "cs"
PROCESS_SERVER: Final = "ps"
MASTER_TARGET: Final = "mt"
MACHINE: Final = "db1"
STORAGE: Final = "storage"
ETC: Final = "/etc/understudy"
_PYTHON: Final = f"{program.PLACE}/bin/python"
_KEY: Final = "understudy.account-key"


@dataclass
class Host:
    """A container with one daemon."""

    container: Container
    role: str
    """As in pyproject.toml, in the names of units and folders, and of certificates."""
    user: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return f"understudy-{self.role}"

    @property
    def etc(self) -> str:
        """Its own folder."""
        return f"{ETC}/{self.role}"

    @property
    def tls(self) -> dict[str, str]:
        return {name: f"{self.etc}/{name}.pem" for name in ("cert", "key", "ca")}

    def configure(self, **config: object) -> None:
        self.config |= config
        self.container.put(to_toml(self.config), f"{ETC}/{self.role}.toml")

    def start(self) -> None:
        """Returns when the daemon says that it is ready."""
        self.container.run("systemctl", "enable", "--now", self.unit, within_s=150)


class Installation:
    def __init__(self, site: Site, azurite: Azurite) -> None:
        self.site: Final = site
        self.azurite: Final = azurite
        self.config_server: Final = self._host(CONFIG_SERVER, "config-server", "understudy-config")
        self.process_server: Final = self._host(PROCESS_SERVER, "process-server", "understudy-process")
        self.master_target: Final = self._host(MASTER_TARGET, "master-target", "understudy-master")
        self.machine: Final = self._host(MACHINE, "agent", "root")

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (self.config_server, self.process_server, self.master_target, self.machine)

    def _host(self, name: str, role: str, user: str) -> Host:
        return Host(self.site.containers[name], role, user)

    def install(self) -> None:
        """Programs and units; and storage's key and CA where servers are."""
        for host in self.hosts:
            program.install(host.container, [host.role])
            if host is not self.machine:
                host.container.put(self.azurite.key_file, f"/etc/credstore/{_KEY}", mode=0o600)
                host.container.put(self.azurite.ca_file, f"{ETC}/storage-ca.pem")

    def start_servers(self) -> None:
        vault = f"{self.config_server.etc}/vault.json"
        self.config_server.container.run(
            "sudo", "-u", self.config_server.user, _PYTHON, "-m", "shared.keys.vault", vault
        )
        self.config_server.configure(
            data_dir="/var/lib/understudy/config-server",
            hosts=[CONFIG_SERVER],
            vault_file=vault,
            blob=self._blob(self.config_server),
        )
        self.config_server.start()
        for host in (self.process_server, self.master_target):
            self.enrol(host)
            host.configure(
                name=host.container.name, control_url=self._url, tls=host.tls, blob=self._blob(host)
            )
        self.process_server.configure(spool_dir="/var/lib/understudy/process-server", segment_seconds=1.0)
        self.master_target.configure(state_dir="/var/lib/understudy/master-target")
        self.process_server.start()
        self.master_target.start()

    def protect(self, *disks: str) -> None:
        """The machine's agent, over these."""
        self.enrol(self.machine)
        self.machine.configure(
            machine=MACHINE,
            disks=list(disks),
            process_server=f"{PROCESS_SERVER}:9443",
            control_url=self._url,
            tls=self.machine.tls,
            state_dir="/var/lib/understudy/agent",
            pin_dir="/sys/fs/bpf/understudy",
            # A container has no SMBIOS of its own.
            identity=f"container:{MACHINE}",
        )
        self.machine.start()
        self.command("machine", "protect", MACHINE)

    def enrol(self, host: Host) -> None:
        name = host.container.name
        servers = [] if host is self.machine else ["--host", name]
        token = self.read("token", "create", host.role, name, *servers)["token"]
        host.container.put(token, "/run/token", mode=0o600, owner=host.user)
        host.container.run(
            *("sudo", "-u", host.user, _PYTHON, "-m", "shared.control.enrol", "--server", self._url),
            *("--token-file", "/run/token", "--dir", host.etc),
        )
        host.container.run("rm", "/run/token")

    def command(self, *words: str, within_s: float = 300.0) -> str:
        """`understudy …`, as root on the config server's host."""
        data = "/var/lib/understudy/config-server"
        way_in = [
            "--server",
            self._url,
            "--token-file",
            f"{data}/operator.token",
            "--ca-file",
            f"{data}/ca.pem",
        ]
        return self.config_server.container.read(
            f"{program.PLACE}/bin/understudy", *words, *way_in, within_s=within_s
        )

    def read(self, *words: str, within_s: float = 300.0) -> Any:
        return json.loads(self.command(*words, "--output", "json", within_s=within_s))

    @property
    def _url(self) -> str:
        return f"https://{CONFIG_SERVER}"

    def _blob(self, host: Host) -> dict[str, str]:
        return {
            "url": self.azurite.url,
            "container": "understudy",
            "account_key_file": f"/run/credentials/{host.unit}.service/{_KEY}",
            "ca_file": f"{ETC}/storage-ca.pem",
        }


@contextlib.contextmanager
def four(site: Site) -> Iterator[Installation]:
    """The containers are on; nothing is installed yet. Storage answers."""
    program.provide(
        site, *(site.container(name) for name in (CONFIG_SERVER, PROCESS_SERVER, MASTER_TARGET, MACHINE))
    )
    site.place(STORAGE)
    with Azurite(site.folder / "azurite", host=STORAGE, inside=site.beside(STORAGE)) as azurite:
        for container in site.containers.values():
            container.start()
        yield Installation(site, azurite)
