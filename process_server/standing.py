"""Where a machine's log stands: what spool and reception tell each other, although neither knows the other."""

from __future__ import annotations

import msgspec


class Standing(msgspec.Struct, frozen=True):
    """See Welcome in shared/wire/messages.py for the fields."""

    epoch: int
    claim: str
    spooled: int
    spooled_seq: int
    spooled_digest: bytes
    uploaded: int
    uploaded_seq: int
