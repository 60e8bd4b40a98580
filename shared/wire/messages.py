"""What the two ends of a session say to each other, as typed values. Byte layout: FORMAT.md.

The small messages are msgpack maps; fields that a receiver does not know are ignored, fields that are absent
take their default, so that a field can be added without a new protocol version.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec

from shared import decoding
from shared.batch import Buffer
from shared.errors import UnderstudyError
from shared.log.epoch_id import UNKNOWN, Claim, EpochId
from shared.log.names import DiskName
from shared.naming import NAME

_M = TypeVar("_M", bound=msgspec.Struct)

PROTOCOL: Final = 1
"""The protocol version that this code speaks; Hello offers a range."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
MachineName = Annotated[str, msgspec.Meta(pattern=f"^{NAME}")]
"""A machine's name is used in blob names, file names and certificates."""


class DiskInfo(msgspec.Struct, frozen=True):
    """One protected disk of the machine, as the epoch's batches refer to it."""

    number: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    name: DiskName
    """The disk's stable id, e.g. sda; recovered disks bear it."""
    serial: Annotated[str, msgspec.Meta(max_length=255)]
    """WWN or serial number; "" when it has none."""
    sectors: _Count
    """Size in 512-byte sectors."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Agent → process server, first frame."""

    protocol_min: _Count = PROTOCOL
    protocol_max: _Count = PROTOCOL
    machine: MachineName
    epoch: _Count
    """The epoch to continue; 0 asks for a new one."""
    claim: Annotated[str, msgspec.Meta(max_length=16)] = UNKNOWN
    """Of that epoch. Without one it cannot be continued."""
    seen: _Count = 0
    """The highest epoch number that this agent ever heard of: a new one is higher."""
    reason: str = ""
    """Why a new epoch is wanted, for people."""
    suspect_since_ns: _Count = 0
    """Since when (Unix ns, for people) capture may have missed writes that points of earlier epochs then lack; 0: none does."""
    suspect_after: tuple[_Count, _Count] | None = None
    """(epoch, batch): these are the points behind it. None, and a time: all of them."""
    agent_id: str = ""
    """Tells apart two agents under one name: random, made when the agent first starts on a machine."""
    identity: str = ""
    """Tells the machine from its copies: the hardware's, or configured; empty where there is none (agent/machine_identity.py)."""
    boot: str = ""
    """Names the attachment of capture that this agent continues; a copy has another."""
    disks: tuple[DiskInfo, ...] = ()
    held_from: _Count = 1
    """Lowest batch number that the agent can still send."""
    last_sent: _Count = 0
    """Highest batch number that it ever sent in this epoch."""

    @property
    def epoch_id(self) -> EpochId:
        return EpochId(self.epoch, self.claim)


def kernel_of(boot: str) -> str:
    """What names the boot of the kernel in Hello's `boot`; the rest names the attachment of capture, which a machine may make anew."""
    return boot.partition("/")[0]


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """Process server → agent: where to go on. The agent's next batch is `spooled` + 1."""

    protocol: _Count = PROTOCOL
    epoch: _Count
    claim: Claim
    """Of the epoch: the agent takes up no other than it asked for."""
    spooled: _Count
    """Last batch that is durable on the process server."""
    spooled_seq: _Count
    """`end_seq` of that batch."""
    spooled_digest: _Digest
    uploaded: _Count
    """Last batch that the log index in storage lists."""
    uploaded_seq: _Count
    credit_b: _Count
    """How many bytes of batches may be on their way (sent, not yet `spooled`) at a time."""
    session: str = ""
    """Names this session in the logs of both ends."""
    control: Annotated[bytes, msgspec.Meta(max_length=2048)] = b""
    """Where the config server is now, signed by the CA (shared/trust/pointer.py), for an agent that cannot ask storage; empty: not known to
    be elsewhere than it was."""

    @property
    def epoch_id(self) -> EpochId:
        return EpochId(self.epoch, self.claim)


class Ack(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Process server → agent: cumulative; the meaning of the fields is Welcome's."""

    spooled: _Count
    spooled_seq: _Count
    uploaded: _Count
    uploaded_seq: _Count
    credit_b: _Count


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Either end → the other, last frame: why it closes the session."""

    code: str
    what: str
    cause: str = ""
    action: str = ""
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """The peer should not connect again earlier."""
    new_epoch: bool = False
    """Continuity is lost: connecting again with this epoch is pointless."""

    @classmethod
    def of(cls, error: UnderstudyError, *, retry_after_s: float = 1.0) -> Fault:
        return cls(**error.as_dict(), retry_after_s=retry_after_s, new_epoch=error.ends_epoch)


class Flush(msgspec.Struct, frozen=True):
    """Agent → process server: upload everything sent so far now; do not wait for a full segment.

    The answer is an Ack whose `uploaded` has reached the last batch sent before it.
    """


class Ping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Either end: "I am alive"; sent when there was nothing else to send for a while."""

    ask: _Count = 0
    """Not 0: the peer answers at once with a Ping whose `answer` is this number."""
    answer: _Count = 0


Message = Hello | Welcome | Ack | Fault | Flush | Ping


def pack(message: Message) -> bytes:
    return _encoder.encode(message)


def unpack(body: Buffer, type_: type[_M]) -> _M:
    """Raises ValueError when `body` is not one `type_`."""
    try:
        message: _M = _decoders[type_].decode(body)
    except (msgspec.MsgspecError, RecursionError) as exc:  # others, as UnicodeDecodeError, are ValueErrors
        raise ValueError(str(exc)) from exc
    return message


_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[dict[type[Any], Any]] = {
    type_: decoding.msgpack_decoder(type_) for type_ in (Hello, Welcome, Ack, Fault, Flush, Ping)
}
