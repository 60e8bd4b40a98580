"""Which connections a public port gives up when somebody opens more than he needs. Pure: it is told what happens, and names
those to close.

A connection is *unproved* from the moment that it is accepted until its first request has come whole: during the
handshake, while nothing is sent, while a header or a body trickles in. Nobody honest stays so for long, so of too many
the oldest is closed, first of the address that has the most: whoever opens a thousand closes his own, and a client that
speaks is served at once, even from the same address. Nobody waits for anybody.

An address from which somebody has proved who he is, is *known*. Strangers of many other addresses do not starve it: where
all together are too many, one of theirs is closed first. And it may have more at a time: behind a NAT all machines come back at once.

Later a connection counts for its address. Many daemons may share one (NAT), so the limit is wide; above it the one that
asked least recently goes, and its daemon connects again. Who has asked for what anybody may have, and has not proved who he is, is a
*stranger*: of these there are so many in all, or whoever has addresses enough takes every descriptor, and keeps it as long as he likes.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Container, Hashable
from typing import Final, Generic, TypeVar

UNPROVED_PER_ADDRESS: Final = 64
UNPROVED_PER_KNOWN: Final = 256
UNPROVED: Final = 512
STRANGERS: Final = 512
KNOWN: Final = 4096
"""So many known addresses are remembered."""
_SITE_BITS: Final = 64
"""Of IPv6 anybody has so many addresses."""
OPEN_PER_ADDRESS: Final = 1024

K = TypeVar("K", bound=Hashable)


def unmapped(host: str) -> str:
    """The IPv4 address, where an IPv6 address stands for one: so comes whoever connects over IPv4 to a port of both."""
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


def origin(host: str) -> str:
    """What counts as one address: of IPv6 the network, since each of its hosts has as many addresses as it likes."""
    try:
        address = ipaddress.ip_address(unmapped(host.strip("[]").partition("%")[0]))
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _SITE_BITS), strict=False))
    return str(address)


class _Group(Generic[K]):
    """Connections by address, of each address the one that was put in least recently first."""

    def __init__(self) -> None:
        self._address: dict[K, str] = {}
        self.of: dict[str, OrderedDict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._address)

    def __contains__(self, key: K) -> bool:
        return key in self._address

    def put(self, key: K, address: str) -> None:
        self.discard(key)
        self._address[key] = address
        self.of.setdefault(address, OrderedDict())[key] = None

    def discard(self, key: K) -> None:
        address = self._address.pop(key, None)
        if address is not None:
            del self.of[address][key]
            if not self.of[address]:
                del self.of[address]

    def count(self, address: str) -> int:
        return len(self.of.get(address, ()))

    def first(self, address: str) -> K:
        return next(iter(self.of[address]))

    def first_of_most(self, spared: Container[str] = ()) -> K:
        """The first of the address that has the most, of those that are not spared, if there are such."""
        others = [address for address in self.of if address not in spared]
        return self.first(max(others or self.of, key=self.count))


class Connections(Generic[K]):
    """`K` names a connection: this one alone, and not the next one that comes from the same place."""

    def __init__(
        self,
        unproved_per_address: int = UNPROVED_PER_ADDRESS,
        unproved: int = UNPROVED,
        open_per_address: int = OPEN_PER_ADDRESS,
        unproved_per_known: int = UNPROVED_PER_KNOWN,
        strangers: int = STRANGERS,
    ) -> None:
        self._unproved_per_address = unproved_per_address
        self._unproved_in_all = unproved
        self._open_per_address = open_per_address
        self._unproved_per_known = unproved_per_known
        self._strangers_in_all = strangers
        self._address: dict[K, str] = {}
        self._unproved: _Group[K] = _Group()
        self._asked: _Group[K] = _Group()
        self._strangers: _Group[K] = _Group()
        """Of those that have asked, those that have not proved who they are."""
        self._known: OrderedDict[str, None] = OrderedDict()
        """Addresses, the one that proved least recently first."""

    def __len__(self) -> int:
        return len(self._address)

    def opened(self, key: K, address: str) -> list[K]:
        """A connection was accepted. Those to close for it; the caller says `closed` for each, like for every other."""
        self._address[key] = address
        self._unproved.put(key, address)
        limit = self._unproved_per_known if address in self._known else self._unproved_per_address
        if self._unproved.count(address) > limit:
            return [self._unproved.first(address)]
        if len(self._unproved) > self._unproved_in_all:
            return [self._unproved.first_of_most(spared=self._known)]
        return []

    def asked(self, key: K, *, proved: bool) -> list[K]:
        """A request has come whole; `proved`: of somebody who is known to us. Those to close."""
        address = self._address.get(key)
        if address is None:  # closed meanwhile
            return []
        is_stranger = not proved and (key not in self._asked or key in self._strangers)
        self._unproved.discard(key)
        self._asked.put(key, address)
        if is_stranger:
            self._strangers.put(key, address)
        else:
            self._strangers.discard(key)
        if proved:
            self._known[address] = None
            self._known.move_to_end(address)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        if self._asked.count(address) > self._open_per_address:
            return [self._asked.first(address)]
        if len(self._strangers) > self._strangers_in_all:
            return [self._strangers.first_of_most()]
        return []

    def is_unproved(self, key: K) -> bool:
        return key in self._unproved

    def closed(self, key: K) -> None:
        """Whoever closed it. Again is harmless."""
        self._address.pop(key, None)
        for group in (self._unproved, self._asked, self._strangers):
            group.discard(key)
