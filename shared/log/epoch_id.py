"""Which epoch: its number and its claim. Pure.

Numbers order the epochs of a machine. A number alone is no identity: storage that is restored from a copy, or loses an epoch's document,
may give it out again, and then segments, spool files, cursors and points of the one would be taken for the other's. The claim is random
and made with the epoch's document. Whatever outlives a process remembers both, and what has another claim, or none, is of another epoch.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Final, NamedTuple

import msgspec

_PATTERN: Final = r"^[0-9a-f]{16}\Z"
Claim = Annotated[str, msgspec.Meta(pattern=_PATTERN)]
"""64 random bits, hex."""
UNKNOWN: Final = ""
"""The claim of what does not name one; it is nobody's."""


class EpochId(NamedTuple):
    number: int
    claim: str

    @property
    def is_known(self) -> bool:
        """Whether it can be some epoch's: any other is equal to none that storage has."""
        return self.number > 0 and is_claim(self.claim)

    def __str__(self) -> str:
        return f"{self.number} ({self.claim or 'without a claim'})"


NO_EPOCH: Final = EpochId(0, UNKNOWN)


def new_claim() -> str:
    while not int(claim := secrets.token_hex(8), 16):  # 0 stands for none where it is kept as a number
        pass
    return claim


def is_claim(text: str) -> bool:
    return re.match(_PATTERN, text) is not None
