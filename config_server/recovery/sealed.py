"""The envelope of the control state (FORMAT.md). Pure.

It is sealed under a key of its own, drawn each time, which is wrapped under every key of the vault. So whoever has the recovery key (a copy
of the vault file, made whenever) opens it, and finds the vault as it is now in it: a recovery key does not grow old. That a config server
can open what it has sealed gives nobody anything: all that is in it lies on that host in plain.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared import decoding
from shared.errors import UNDECODABLE, IntegrityError
from shared.keys import sealing
from shared.keys.vault import FileVault

MAGIC: Final = b"understudy control state\n"
_PARTS: Final = decoding.msgpack_decoder(dict[str, bytes])
_LENGTH: Final = struct.Struct(">I")
_PURPOSE: Final = "control state"
_NONCE: Final = bytes(sealing.NONCE_B)
"""Each key seals once."""
_MOST_HEAD_B: Final = 1 << 16
MOST_B: Final = 1 << 31
"""Of what is in it; AES-GCM takes no more at once."""
_ACTION: Final = (
    "Take an older version of the blob, if the account keeps any; or a backup of the config server."
)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is told to everybody who may read it."""

    v: int = 1
    generation: int
    """Of the config server that wrote it (generation.py)."""
    made_ns: int
    """By its clock."""
    keys: dict[str, bytes]
    """Vault key id → the key of this envelope, wrapped under it."""


class State(NamedTuple):
    head: Head
    parts: dict[str, bytes]
    """By their names: files of the data folder, the vault file, and what else a server needs to begin."""


def seal(parts: Mapping[str, bytes], vault: FileVault, *, generation: int, made_ns: int) -> bytes:
    key = AESGCM.generate_key(8 * sealing.KEY_B)
    head = Head(generation=generation, made_ns=made_ns, keys=vault.wrapped_under_all(key, _PURPOSE))
    plain = zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(dict(parts)))
    told = msgspec.json.encode(head)
    before = MAGIC + _LENGTH.pack(len(told)) + told
    return before + AESGCM(key).encrypt(_NONCE, plain, before)


def opened(data: bytes, vault: FileVault, what: str) -> State:
    """`what`: the blob, for errors. Raises IntegrityError where it is none, or was altered; WrongKeyError."""
    head, before = _head(data, what)
    key = vault.unwrapped_under_any(head.keys, _PURPOSE)
    try:
        plain = AESGCM(key).decrypt(_NONCE, data[len(before) :], before)
        unpacked = zstandard.ZstdDecompressor().decompress(plain, max_output_size=MOST_B)
        return State(head, _PARTS.decode(unpacked))
    except (InvalidTag, zstandard.ZstdError, *UNDECODABLE) as exc:
        raise IntegrityError(
            f"The control state {what} cannot be opened",
            cause=str(exc) or "it was altered, or cut",
            action=_ACTION,
        ) from exc


def head_of(data: bytes, what: str) -> Head:
    """Of its beginning, which everybody can read. Raises IntegrityError."""
    return _head(data, what)[0]


def _head(data: bytes, what: str) -> tuple[Head, bytes]:
    try:
        if not data.startswith(MAGIC):
            raise ValueError("it begins otherwise")
        at = len(MAGIC) + _LENGTH.size
        (length,) = _LENGTH.unpack(data[len(MAGIC) : at])
        if length > _MOST_HEAD_B or len(data) < at + length:
            raise ValueError("it is cut")
        head = decoding.decode(data[at : at + length], type=Head)
        if head.v != 1:
            raise ValueError(f"it is of version {head.v}, which a newer config server wrote")
    except (struct.error, *UNDECODABLE) as exc:
        raise IntegrityError(f"{what} is no control state", cause=str(exc), action=_ACTION) from exc
    return head, data[: at + length]
