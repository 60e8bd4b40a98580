"""Compression and encryption of what leaves memory: zstd, then AES-256-GCM. Pure; safe to call from several
threads at a time.

Keys are layered. A *vault key* (shared/keys/vault.py) wraps each machine's *data key*, one per machine. From the data key and a random
salt, which stands in each segment's header, comes the *file key* by HKDF-SHA256. A writer draws a new salt for each run and after a million
batches, so that random 96-bit nonces do not repeat under one key. Associated data binds a sealed piece to its place (shared/log/FORMAT.md).

`cryptography` and `zstandard` release the interpreter lock while they work, so threads make use of several
cores.
"""

from __future__ import annotations

import os
import threading
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.batch import Buffer

KEY_B: Final = 32
SALT_B: Final = 16
NONCE_B: Final = 12
TAG_B: Final = 16
OVERHEAD_B: Final = NONCE_B + TAG_B
"""How much longer sealed data is than what was sealed."""
_INFO: Final = b"understudy segment 1"
_CACHE_INFO: Final = b"understudy key cache 1"


_SCRATCH_B: Final = 5 << 20
"""At most so much is kept by each thread that opens: for a batch of 4 MiB that does not compress."""
_local = threading.local()  # zstd contexts must not be shared between threads


class SealError(Exception):
    """The data does not open: another key, other associated data, or altered bytes. Callers say which piece
    it was.
    """


class MachineKey:
    """A machine's data key, with what the vault needs to give it out again (`key_id`, `wrapped`). Never
    printed.
    """

    __slots__ = ("key", "key_id", "wrapped")

    def __init__(self, key_id: str, wrapped: bytes, key: bytes) -> None:
        if len(key) != KEY_B:
            raise ValueError(f"a data key has {KEY_B} bytes")
        self.key_id: Final = key_id
        self.wrapped: Final = wrapped
        self.key: Final = key

    def __repr__(self) -> str:
        return f"MachineKey(key_id={self.key_id!r})"

    def file_key(self, salt: bytes) -> FileKey:
        """The key of the files that have this salt."""
        return FileKey(HKDF(SHA256(), KEY_B, salt, _INFO).derive(self.key))


class FileKey:
    """Seals and opens the pieces of files of one salt."""

    __slots__ = ("_gcm",)

    def __init__(self, key: bytes) -> None:
        self._gcm = AESGCM(key)

    def seal_into(self, plaintext: Buffer, associated: bytes, out: bytearray, at: int) -> None:
        """Writes nonce, ciphertext and tag into `out` from `at` on: OVERHEAD_B more than the plaintext."""
        nonce = os.urandom(NONCE_B)
        view = memoryview(out)
        view[at : at + NONCE_B] = nonce
        start = at + NONCE_B
        self._gcm.encrypt_into(nonce, plaintext, associated, view[start : start + len(plaintext) + TAG_B])

    def open_into(self, sealed: Buffer, associated: bytes, out: memoryview) -> memoryview:
        """What was sealed, at the beginning of `out`, which has room for it. Raises SealError; then `out` holds nothing of use."""
        view = memoryview(sealed)
        opened = out[: len(view) - OVERHEAD_B]
        try:
            self._gcm.decrypt_into(bytes(view[:NONCE_B]), view[NONCE_B:], associated, opened)
        except InvalidTag as exc:
            raise SealError("it does not open with this key") from exc
        return opened

    def open(self, sealed: Buffer, associated: bytes) -> bytes:
        """What was sealed. Raises SealError."""
        if len(sealed) < OVERHEAD_B:
            raise SealError("too short to be sealed data")
        view = memoryview(sealed)
        try:
            return self._gcm.decrypt(bytes(view[:NONCE_B]), view[NONCE_B:], associated)
        except InvalidTag as exc:
            raise SealError("it does not open with this key") from exc


def unpack(key: FileKey, sealed: Buffer, associated: bytes, size_b: int) -> bytes:
    """The `size_b` bytes that were compressed and then sealed. Raises SealError.

    What is between the two goes into memory that the thread keeps: to be given new memory for each batch, and to give it back, costs more
    than the decryption itself.
    """
    packed_b = len(sealed) - OVERHEAD_B
    if not 0 <= packed_b <= _SCRATCH_B:
        return decompress(key.open(sealed, associated), size_b)
    scratch = getattr(_local, "scratch", None)
    if scratch is None or len(scratch) < packed_b:
        scratch = _local.scratch = memoryview(bytearray(-(-packed_b >> 20) << 20))
    return decompress(key.open_into(sealed, associated, scratch), size_b)


def cache_key(secret: bytes, salt: bytes) -> FileKey:
    """The key of a daemon's key cache (shared/keys/key_cache.py), from its private key."""
    return FileKey(HKDF(SHA256(), KEY_B, salt, _CACHE_INFO).derive(secret))


def new_key() -> bytes:
    return os.urandom(KEY_B)


def new_salt() -> bytes:
    return os.urandom(SALT_B)


def compress(data: Buffer, level: int = 1) -> bytes:
    if getattr(_local, "level", None) != level:  # one at a time: the higher ones take memory
        _local.level, _local.compressor = level, zstandard.ZstdCompressor(level=level, write_checksum=False)
    return bytes(_local.compressor.compress(data))


def decompress(data: Buffer, size_b: int) -> bytes:
    """The `size_b` bytes that were compressed. Raises SealError when it is not exactly so many; never
    allocates more.
    """
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(data) != size_b:
            raise SealError("its length is not the one that its header says")
        plain = bytes(decompressor.decompress(data))
    except zstandard.ZstdError as exc:
        raise SealError("it does not decompress") from exc
    if len(plain) != size_b:
        raise SealError("its length is not the one that its header says")
    return plain
