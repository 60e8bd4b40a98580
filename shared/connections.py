"""Which connections a public port gives up when somebody opens more than he needs. Pure: it is told what happens, and names
those to close.

A connection is *unproved* from the moment that it is accepted until its first request has come whole: during the
handshake, while nothing is sent, while a header or a body trickles in. Nobody honest stays so for long, so of too many
the oldest is closed, first of the address that has the most: whoever opens a thousand closes his own, and a client that
speaks is served at once, even from the same address. Nobody waits for anybody.

An address from which somebody has proved who he is, is *known*. Strangers of many other addresses do not starve it: where
all together are too many, one of theirs is closed first. And it may have more at a time: behind a NAT all machines come back at once.

Later a connection counts for its address. Many daemons may share one (NAT), so the limit is wide; above it the one that
asked least recently goes, and its daemon connects again.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

UNPROVED_PER_ADDRESS: Final = 64
UNPROVED_PER_KNOWN: Final = 256
UNPROVED: Final = 512
KNOWN: Final = 4096
"""So many known addresses are remembered."""
_SITE_BITS: Final = 64
"""Of IPv6 anybody has so many addresses."""
OPEN_PER_ADDRESS: Final = 1024

K = TypeVar("K", bound=Hashable)


def origin(host: str) -> str:
    """What counts as one address: of IPv6 the network, since each of its hosts has as many addresses as it likes."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, _SITE_BITS), strict=False))
    return str(address)


class Connections(Generic[K]):
    """`K` names a connection."""

    def __init__(
        self,
        unproved_per_address: int = UNPROVED_PER_ADDRESS,
        unproved: int = UNPROVED,
        open_per_address: int = OPEN_PER_ADDRESS,
        unproved_per_known: int = UNPROVED_PER_KNOWN,
    ) -> None:
        self._limits = (unproved_per_address, unproved, open_per_address, unproved_per_known)
        self._address: dict[K, str] = {}
        self._unproved: dict[str, OrderedDict[K, None]] = {}
        """By address, oldest first."""
        self._proved: dict[str, OrderedDict[K, None]] = {}
        """By address, the one that asked least recently first."""
        self._unproved_count = 0
        self._known: OrderedDict[str, None] = OrderedDict()
        """Addresses, the one that proved least recently first."""

    def __len__(self) -> int:
        return len(self._address)

    def opened(self, key: K, address: str) -> Iterator[K]:
        """A connection was accepted. Those to close for it; the caller says `closed` for each, like for every other."""
        per_address, in_all, _, per_known = self._limits
        self._address[key] = address
        self._unproved.setdefault(address, OrderedDict())[key] = None
        self._unproved_count += 1
        if len(self._unproved[address]) > (per_known if address in self._known else per_address):
            yield next(iter(self._unproved[address]))
        elif self._unproved_count > in_all:
            strangers = [of for other, of in self._unproved.items() if other not in self._known]
            most = max(strangers or self._unproved.values(), key=len)
            yield next(iter(most))

    def asked(self, key: K, *, proved: bool) -> Iterator[K]:
        """A request has come whole; `proved`: of somebody who is known to us. Those to close."""
        address = self._address.get(key)
        if address is None:  # closed meanwhile
            return
        self._forget_unproved(key, address)
        if proved:
            self._known[address] = None
            self._known.move_to_end(address)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        of_address = self._proved.setdefault(address, OrderedDict())
        of_address[key] = None
        of_address.move_to_end(key)
        if len(of_address) > self._limits[2]:
            yield next(iter(of_address))

    def is_unproved(self, key: K) -> bool:
        return key in self._unproved.get(self._address.get(key, ""), ())

    def closed(self, key: K) -> None:
        """Whoever closed it. Again is harmless."""
        address = self._address.pop(key, None)
        if address is None:
            return
        self._forget_unproved(key, address)
        proved = self._proved.get(address)
        if proved is not None:
            proved.pop(key, None)
            if not proved:
                del self._proved[address]

    def _forget_unproved(self, key: K, address: str) -> None:
        unproved = self._unproved.get(address)
        if unproved is None or key not in unproved:
            return
        del unproved[key]
        self._unproved_count -= 1
        if not unproved:
            del self._unproved[address]
