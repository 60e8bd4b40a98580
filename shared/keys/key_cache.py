"""The data keys that a daemon was given, each in a file of its own: a restart must not need the config server.

A key's file (layout: FORMAT.md) is named by what the key was asked for with, and never holds another. So there is nothing that a write
could take the place of but the same key, whatever else lies there: a file that cannot be read now, one of an earlier identity of this
host, one that another process wrote. The folder's name begins with a dot, as no machine's does: the state folder may hold folders of
machines, too.

The files are sealed under a key that comes from the daemon's TLS private key, so that the state folder alone, a spool disk that was
pulled or backed up, opens nothing. Which private key, the key file says at each writing and reading: a certificate that is renewed keeps
it; a host that is enrolled anew has another, and then the files are sealed anew (`RemoteVault.renewed`), or found not to open by the
next start. Nothing here is the only copy of a key: what cannot be read is asked for again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from shared import decoding
from shared.errors import UNDECODABLE, ConfigError, KeyCacheError, cause_of
from shared.host import durable
from shared.keys import sealing
from shared.keys.sealing import OVERHEAD_B, SALT_B, FileKey, SealError
from shared.trust import identity
from shared.trust.tls import TlsFiles

FOLDER: Final = ".keys"
"""In the daemon's state folder."""
_SUFFIX: Final = ".sealed"
_MAGIC: Final = b"UNDKEYS2"
_FORMER: Final = "keys.sealed"
"""Beside the folder: what an earlier version kept all keys in. Taken over once (`load`), and removed."""
_FORMER_MAGIC: Final = b"UNDKEYS1"


class CachedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A data key, and what it was asked for with."""

    machine: str
    key_id: str
    wrapped: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"CachedKey(machine={self.machine!r}, key_id={self.key_id!r})"


class _Former(msgspec.Struct, frozen=True):
    v: int
    keys: list[CachedKey]


class KeyCache:
    """All methods block."""

    def __init__(self, folder: Path, files: TlsFiles) -> None:
        self.folder: Final = folder
        self._files: Final = files

    def path(self, machine: str, key_id: str, wrapped: bytes) -> Path:
        """Where that key is, or would be."""
        asked = hashlib.sha256(b"\0".join((machine.encode(), key_id.encode(), wrapped)))
        return self.folder / f"{asked.hexdigest()[:32]}{_SUFFIX}"

    def load(self) -> tuple[list[CachedKey], list[KeyCacheError]]:
        """The keys that can be read, and why others cannot be."""
        keys: list[CachedKey] = []
        errors: list[KeyCacheError] = []
        try:
            self._take_over(self.folder.parent / _FORMER)
        except KeyCacheError as exc:
            errors.append(exc)
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return [], errors
        except OSError as exc:
            return [], [*errors, _unusable(self.folder, cause_of(exc))]
        for path in paths:
            try:
                found = self._read(path)
            except KeyCacheError as exc:
                errors.append(exc)
            else:
                if found is not None:
                    keys.append(found)
        return keys, errors

    def find(self, machine: str, key_id: str, wrapped: bytes) -> CachedKey | None:
        """None when it is not here. Raises KeyCacheError."""
        return self._read(self.path(machine, key_id, wrapped))

    def store(self, key: CachedKey) -> None:
        """Durably. Raises KeyCacheError."""
        path = self.path(key.machine, key.key_id, key.wrapped)
        what = f"The key cache {path} cannot be written"
        head = _MAGIC + sealing.new_salt()
        plain = msgspec.json.encode(key)
        data = bytearray(head) + bytearray(len(plain) + OVERHEAD_B)
        self._file_key(head[len(_MAGIC) :], what).seal_into(plain, head, data, len(head))
        with durable.named(what, KeyCacheError):
            durable.make_folder(self.folder)
            durable.replace_file(path, data)

    def remove(self, machine: str, key_id: str, wrapped: bytes) -> None:
        """If it is here. Raises KeyCacheError."""
        path = self.path(machine, key_id, wrapped)
        with durable.named(f"The key cache {path} cannot be removed", KeyCacheError):
            durable.remove_file(path)

    def _take_over(self, former: Path) -> None:
        """Each key is stored before the file goes: killed in between, the next start does it again."""
        try:
            data = former.read_bytes()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise _unusable(former, cause_of(exc)) from exc
        start = len(_FORMER_MAGIC) + SALT_B
        try:
            if data[: len(_FORMER_MAGIC)] != _FORMER_MAGIC:
                raise SealError
            file_key = self._file_key(data[len(_FORMER_MAGIC) : start], _unusable(former, "").what)
            found = decoding.decode(file_key.open(memoryview(data)[start:], data[:start]), type=_Former)
        except (SealError, *UNDECODABLE) as exc:
            raise _unusable(former, "it is damaged, or was sealed with another private key") from exc
        for key in found.keys:
            self.store(key)
        with durable.named(f"The key cache {former} cannot be removed", KeyCacheError):
            durable.remove_file(former)

    def _read(self, path: Path) -> CachedKey | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _unusable(path, cause_of(exc)) from exc
        start = len(_MAGIC) + SALT_B
        if data[: len(_MAGIC)] != _MAGIC:
            raise _unusable(path, "it is damaged, or of another version")
        file_key = self._file_key(data[len(_MAGIC) : start], _unusable(path, "").what)
        try:
            found = decoding.decode(file_key.open(memoryview(data)[start:], data[:start]), type=CachedKey)
        except SealError as exc:
            raise _unusable(
                path, "it is damaged, or was sealed with another private key than this daemon's"
            ) from exc
        except UNDECODABLE as exc:
            raise _unusable(path, "it is of another version") from exc
        if len(found.key) != sealing.KEY_B:
            raise _unusable(path, "it is of another version")
        if self.path(found.machine, found.key_id, found.wrapped) != path:
            raise _unusable(path, f"it is another file's: it holds a key of machine {found.machine}")
        return found

    def _file_key(self, salt: bytes, what: str) -> FileKey:
        try:
            private = identity.key_of(self._files)
        except ConfigError as exc:
            raise KeyCacheError(what, cause=f"{exc.what}: {exc.cause}") from exc
        number = private.private_numbers().private_value
        return sealing.cache_key(number.to_bytes((private.key_size + 7) // 8), salt)


def _unusable(path: Path, cause: str) -> KeyCacheError:
    return KeyCacheError(f"The key cache {path} cannot be used", cause=cause)
