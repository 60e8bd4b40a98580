"""The data keys that a daemon was given, in a file of its own: a restart must not need the config server.

The file is sealed under a key that comes from the daemon's TLS private key (layout: FORMAT.md), so that the state folder alone, a spool
disk that was pulled or backed up, opens nothing. Which private key, the key file says at each writing and reading: a certificate that is
renewed keeps it; a host that is enrolled anew has another, and then the file is sealed anew (`RemoteVault.renewed`), or found not to
open by the next start. Nothing here is the only copy of a key: what cannot be read is asked for again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from shared import durable, identity, sealing
from shared.errors import UNDECODABLE, ConfigError, KeyCacheError
from shared.sealing import OVERHEAD_B, SALT_B, FileKey, SealError
from shared.tls import TlsFiles

FILE: Final = "keys.sealed"
"""In the daemon's state folder."""
_MAGIC: Final = b"UNDKEYS1"


class CachedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A data key, and what it was asked for with."""

    machine: str
    key_id: str
    wrapped: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"CachedKey(machine={self.machine!r}, key_id={self.key_id!r})"


class _Content(msgspec.Struct, frozen=True):
    v: int
    keys: list[CachedKey]


class KeyCache:
    """Both methods block, and raise KeyCacheError."""

    def __init__(self, path: Path, files: TlsFiles) -> None:
        self.path: Final = path
        self._files: Final = files

    def load(self) -> list[CachedKey]:
        """What was stored last; nothing when nothing was."""
        what = f"The key cache {self.path} cannot be used"
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise KeyCacheError(what, cause=exc.strerror or str(exc)) from exc
        start = len(_MAGIC) + SALT_B
        if data[: len(_MAGIC)] != _MAGIC:
            raise KeyCacheError(what, cause="it is damaged, or of another version")
        file_key = self._file_key(data[len(_MAGIC) : start], what)
        try:
            plain = file_key.open(memoryview(data)[start:], data[:start])
            content = msgspec.json.decode(plain, type=_Content)
        except SealError as exc:
            raise KeyCacheError(
                what, cause="it is damaged, or was sealed with another private key than this daemon's"
            ) from exc
        except UNDECODABLE as exc:
            raise KeyCacheError(what, cause="it is of another version") from exc
        if content.v != 1 or any(len(key.key) != sealing.KEY_B for key in content.keys):
            raise KeyCacheError(what, cause="it is of another version")
        return content.keys

    def store(self, keys: list[CachedKey]) -> None:
        """These instead of what is there, durably."""
        what = f"The key cache {self.path} cannot be written"
        head = _MAGIC + sealing.new_salt()
        plain = msgspec.json.encode(_Content(1, keys))
        data = bytearray(head) + bytearray(len(plain) + OVERHEAD_B)
        self._file_key(head[len(_MAGIC) :], what).seal_into(plain, head, data, len(head))
        with durable.named(what, KeyCacheError):
            durable.make_folder(self.path.parent)
            durable.replace_file(self.path, data)

    def _file_key(self, salt: bytes, what: str) -> FileKey:
        try:
            private = identity.key_of(self._files)
        except ConfigError as exc:
            raise KeyCacheError(what, cause=f"{exc.what}: {exc.cause}") from exc
        number = private.private_numbers().private_value
        return sealing.cache_key(number.to_bytes((private.key_size + 7) // 8), salt)
