"""What a `Connection` tells its user; `Event` is any of these."""

from __future__ import annotations

import msgspec

from shared.batch import Batch, BatchNumber, Buffer
from shared.errors import PeerError
from shared.wire.messages import Ack, Fault, Hello, Welcome


class HelloReceived(msgspec.Struct, frozen=True):
    """Server: answer with `send_welcome` or `send_fault`."""

    hello: Hello


class Welcomed(msgspec.Struct, frozen=True):
    """Agent: the session is open."""

    welcome: Welcome


class BatchReceived(msgspec.Struct, frozen=True):
    """Server: the next batch, whole and checked. `encoded` is the only copy; `batch` has views into it."""

    batch: Batch
    encoded: bytearray
    digest: bytes


class DuplicateReceived(msgspec.Struct, frozen=True):
    """Server: a batch that was taken before came again; to be acknowledged again."""

    number: BatchNumber


class Acked(msgspec.Struct, frozen=True):
    """Agent: the server's position and credit moved."""

    ack: Ack


class FlushReceived(msgspec.Struct, frozen=True):
    """Server: upload what came before now."""


class Pinged(msgspec.Struct, frozen=True):
    """The peer wants an answer, or answers; 0: it does not."""

    ask: int
    answer: int


class Faulted(msgspec.Struct, frozen=True):
    """The peer ended the session and says why."""

    fault: Fault


class Failed(msgspec.Struct, frozen=True):
    """The peer broke the protocol: send `reply` (may be empty), then close."""

    error: PeerError
    reply: list[Buffer]


class Ended(msgspec.Struct, frozen=True):
    """The stream ended between two frames."""


Event = (
    HelloReceived
    | Welcomed
    | BatchReceived
    | DuplicateReceived
    | Acked
    | FlushReceived
    | Pinged
    | Faulted
    | Failed
    | Ended
)
