"""Which connections a public port gives up when somebody opens more than he needs. Pure: it is told what happens, and names
those to close.

A connection is *unproved* from the moment that it is accepted until its first request has come whole: during the
handshake, while nothing is sent, while a header or a body trickles in. Nobody honest stays so for long, so of too many
the oldest is closed, first of the address that has the most: whoever opens a thousand closes his own, and a client that
speaks is served at once, even from the same address. Nobody waits for anybody.

Later a connection counts for its address. Many daemons may share one (NAT), so the limit is wide; above it the one that
asked least recently goes, and its daemon connects again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

UNPROVED_PER_ADDRESS: Final = 64
UNPROVED: Final = 512
OPEN_PER_ADDRESS: Final = 1024

K = TypeVar("K", bound=Hashable)


class Connections(Generic[K]):
    """`K` names a connection."""

    def __init__(
        self,
        unproved_per_address: int = UNPROVED_PER_ADDRESS,
        unproved: int = UNPROVED,
        open_per_address: int = OPEN_PER_ADDRESS,
    ) -> None:
        self._limits = (unproved_per_address, unproved, open_per_address)
        self._address: dict[K, str] = {}
        self._unproved: dict[str, OrderedDict[K, None]] = {}
        """By address, oldest first."""
        self._proved: dict[str, OrderedDict[K, None]] = {}
        """By address, the one that asked least recently first."""
        self._unproved_count = 0

    def __len__(self) -> int:
        return len(self._address)

    def opened(self, key: K, address: str) -> Iterator[K]:
        """A connection was accepted. Those to close for it; the caller says `closed` for each, like for every other."""
        per_address, in_all, _ = self._limits
        self._address[key] = address
        self._unproved.setdefault(address, OrderedDict())[key] = None
        self._unproved_count += 1
        if len(self._unproved[address]) > per_address:
            yield next(iter(self._unproved[address]))
        elif self._unproved_count > in_all:
            most = max(self._unproved.values(), key=len)
            yield next(iter(most))

    def asked(self, key: K) -> Iterator[K]:
        """A request has come whole. Those to close."""
        address = self._address.get(key)
        if address is None:  # closed meanwhile
            return
        self._forget_unproved(key, address)
        proved = self._proved.setdefault(address, OrderedDict())
        proved[key] = None
        proved.move_to_end(key)
        if len(proved) > self._limits[2]:
            yield next(iter(proved))

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
