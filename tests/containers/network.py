"""The network of a world: one bridge, and for each name a namespace with one link to it, an address and a name.

Nothing leads out, and nothing of the host's is touched. Names are resolved by each container's /etc/hosts (`Network.hosts`), so they
also are when everybody else is away.

A link is cut where it meets the bridge; its owner keeps interface, address and routes, as when somebody pulls a cable or a switch dies.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from tests.containers.world import World

SUBNET: Final = IPv4Network("10.77.0.0/24")
INTERFACE: Final = "eth0"
"""What a container sees of its link."""
_BRIDGE: Final = "bridge"


class Cut(enum.Enum):
    CABLE = "the container sees that nothing is at the other end"
    SILENT = "all is as before, and nothing arrives"


class Network:
    """Any number of names may join, each once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._links: dict[str, Link] = {}
        self._free: Iterator[IPv4Address] = SUBNET.hosts()
        for words in (f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up", "link set lo up"):
            world.run("ip", *words.split())

    def join(self, name: str) -> Link:
        """A namespace (/run/netns/NAME of the world) with its link, which is up."""
        link = Link(self._world, name, next(self._free), f"port{len(self._links)}")
        for words in (
            f"netns add {name}",
            f"link add {link.port} type veth peer name {INTERFACE} netns {name}",
            f"-netns {name} link set lo up",
            f"-netns {name} address add {link.address}/{SUBNET.prefixlen} dev {INTERFACE}",
            f"-netns {name} link set {INTERFACE} up",
        ):
            self._world.run("ip", *words.split())
        link.mend()
        self._links[name] = link
        return link

    @property
    def names(self) -> list[str]:
        return [*self._links]

    def link(self, name: str) -> Link:
        return self._links[name]

    def hosts(self) -> str:
        """/etc/hosts of all who have joined."""
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        return "\n".join([*lines, *(f"{link.address} {link.name}" for link in self._links.values()), ""])


class Link:
    """A container's only one. `port` is its end at the bridge."""

    def __init__(self, world: World, name: str, address: IPv4Address, port: str) -> None:
        self._world = world
        self.name: Final = name
        self.address: Final = address
        self.port: Final = port

    @property
    def namespace(self) -> str:
        """The path, in the world."""
        return f"/run/netns/{self.name}"

    def cut(self, how: Cut) -> None:
        """Until it is mended, nothing passes. What was on its way is lost."""
        self._world.run("ip", "link", "set", self.port, *(["down"] if how is Cut.CABLE else ["nomaster"]))

    def mend(self) -> None:
        """As it was, whatever was cut."""
        self._world.run("ip", "link", "set", self.port, "master", _BRIDGE, "up")
