"""Who calls, and for what: all that an operation is told beside its request. It knows nothing of HTTP. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from shared.api.permissions import Permission


class Operator(NamedTuple):
    name: str
    allowed: frozenset[Permission]


@dataclass(frozen=True)
class Call:
    """Who calls, and what stands in the path."""

    who: str
    """`operator:NAME`, ROLE:NAME of a daemon, or "" on a public route."""
    path: dict[str, str]
    body: bytes
    wait_s: float
    """How long the caller lets the answer be held (Prefer: wait=N)."""
    serial: int = 0
    """Of the caller's certificate; 0 when it showed none."""
    begins_s: int = 0
    """When that begins (Unix)."""
    der: bytes = b""
    """That certificate; empty when it showed none."""
    hosts: tuple[str, ...] = ()
    """DNS names and addresses in the caller's certificate."""
    remote: str = ""
    """The address that the connection came from."""
    is_there: Callable[[], bool] = lambda: True
    """Whether the caller's connection is open still, as far as can be known here: nobody else will read the answer."""

    @property
    def role(self) -> str:
        return self.who.partition(":")[0]

    @property
    def name(self) -> str:
        return self.who.partition(":")[2]
