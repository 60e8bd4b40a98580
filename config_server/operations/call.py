"""Who calls, and for what: all that an operation is told beside its request. It knows nothing of HTTP. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from shared.api.permissions import Permission
from shared.errors import ChangedSinceError, VersionNeededError

ANY: Final = "*"


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
    over: frozenset[str] | None = None
    """The versions over which the caller wants to change something (If-Match); "*": any. None: he does not say."""
    only_new: bool = False
    """Only if there is none yet (If-None-Match: *)."""
    key: str = ""
    """The id of what the request begins, from its Idempotency-Key: of this caller and operation alone. Empty: he gave none."""
    is_there: Callable[[], bool] = lambda: True
    """Whether the caller's connection is open still, as far as can be known here: nobody else will read the answer."""

    def check_version(self, what: str, current: str | None, *, is_needed: bool = True) -> None:
        """`current`: None where there is none. In the transaction of the change. Raises ChangedSinceError, VersionNeededError."""
        if current is None:
            if self.over is not None:
                raise ChangedSinceError(what, cause="it is not there any more")
        elif self.only_new:
            raise ChangedSinceError(what, cause="it is there by now")
        elif self.over is None:
            if is_needed:
                raise VersionNeededError(what)
        elif not self.over & {current, ANY}:
            raise ChangedSinceError(what, cause="it was changed since it was read")

    @property
    def role(self) -> str:
        return self.who.partition(":")[0]

    @property
    def name(self) -> str:
        return self.who.partition(":")[2]
