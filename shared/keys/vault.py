"""Who holds the keys that wrap the machines' data keys: a vault. A file, which the config server has (and who rescues without any
server), or the config server itself, asked over the network (shared/control/remote_vault.py); a key vault service has the same two
operations.

A data key lies in storage only wrapped: in `machine.json` in the machine's container, and again in
each segment's header, so that storage and the vault file alone are enough to read everything.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared import decoding
from shared.blob import BlobStore
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    ConfigError,
    IntegrityError,
    StateFileError,
    UnderstudyError,
    UsageError,
    WrongKeyError,
    cause_of,
)
from shared.host import durable
from shared.keys import sealing
from shared.keys.sealing import MachineKey
from shared.log import names

_NONCE_B: Final = 12


class WrappedKey(msgspec.Struct, frozen=True):
    key_id: str
    """Which vault key wrapped it."""
    wrapped: bytes


class Vault(Protocol):
    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        """The data key. Raises WrongKeyError when this vault did not wrap it, or not for this machine."""

    async def new_key(self, machine: str) -> MachineKey:
        """A new data key, wrapped under the vault's current key: it opens for this machine only."""


class _VaultKey(msgspec.Struct, frozen=True):
    id: str
    key: bytes


class _VaultFile(msgspec.Struct, frozen=True):
    v: int
    current: str
    keys: tuple[_VaultKey, ...]


def _read(path: Path) -> _VaultFile:
    """UsageError when it is missing, readable by others, or not a vault file."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(
            f"The vault file {path} could not be read",
            cause=cause_of(exc),
            action="Give the vault file of this installation, or a backup of it.",
        ) from exc
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"The vault file {path} is readable by others",
            cause=f"its mode is {stat.S_IMODE(mode):o}; everybody who can read it can read all disks",
            action=f"chmod 600 {path}, and consider its keys known to others. Where that changes nothing (the file system of a stick):"
            " copy it to a place that keeps modes (install -m 600), and give the copy.",
        )
    return _content(data, path)


def _content(data: bytes, path: Path) -> _VaultFile:
    """Of a vault file with these bytes. UsageError when they are none."""
    try:
        content = decoding.decode(data, type=_VaultFile)
        if any(len(key.key) != sealing.KEY_B for key in content.keys):
            raise ValueError("it holds a key that is none")
        if content.current not in {key.id for key in content.keys}:
            raise ValueError(f"it does not hold its current key {content.current}")
    except UNDECODABLE as exc:
        raise UsageError(
            f"{path} is not a vault file", cause=str(exc), action="Give the right file, or restore it."
        ) from exc
    return content


def add(path: Path, other: Path) -> list[str]:
    """Puts the keys of another vault file into this one, whose current key, owner and mode stay; the ids of those that it did not have.
    The other file stays as it is. Raises UsageError, StateFileError."""
    mine, theirs = _read(path), _read(other)
    have = {key.id: key for key in mine.keys}
    if any(have.get(key.id, key) != key for key in theirs.keys):
        raise UsageError(
            f"The keys of {other} were not put into {path}",
            cause="both have a key of the same id, and they differ: one of the files was altered",
            action="Find out which one opens the machines' logs, and use that.",
        )
    new = tuple(key for key in theirs.keys if key.id not in have)
    content = msgspec.json.encode(_VaultFile(1, mine.current, (*mine.keys, *new)))
    with durable.named(f"The vault file {path} could not be written", action="Nothing was changed."):
        for left in leftovers(path):
            durable.remove_file(left)
        mode = stat.S_IMODE(path.stat().st_mode)
        durable.replace_file(path, content, mode=mode, keep_owner=True)
    return [key.id for key in new]


def ids_in(data: bytes, path: Path) -> list[str]:
    """Of the keys in a vault file with these bytes; `path` is where they are from. UsageError when they are none."""
    return [key.id for key in _content(data, path).keys]


def leftovers(path: Path) -> list[Path]:
    """Copies beside a vault file, by whoever was killed while he made it, or added keys to it. Raises OSError."""
    return durable.leftovers(path, None)


class FileVault:
    """Vault keys in a file that only its owner can read. Lose the file, and no log can be read any more:
    back it up.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file. UsageError when it is missing, readable by others, or not a vault file."""
        self.path: Final = path
        content = _read(path)
        self._keys: Final = {key.id: AESGCM(key.key) for key in content.keys}
        self.current: Final = content.current
        """The id of the key under which new keys are wrapped."""
        self.fingerprints: Final[Mapping[str, str]] = {k.id: _fingerprint(k) for k in content.keys}
        """Key id → what only the same key gives, and what tells nothing of it."""

    @classmethod
    def create(cls, path: Path) -> FileVault:
        """A new vault file with one new key. UsageError if there is a file already: a vault is never
        overwritten.
        """
        key = _VaultKey(id=secrets.token_hex(8), key=sealing.new_key())
        content = _VaultFile(v=1, current=key.id, keys=(key,))
        try:
            durable.create_file(path, msgspec.json.encode(content), mode=0o600)
        except FileExistsError as exc:
            raise UsageError(
                f"The vault file {path} exists already",
                cause="overwriting it would make all logs under its keys unreadable",
                action="Use it, or choose another path.",
            ) from exc
        except OSError as exc:
            raise StateFileError(
                f"The vault file {path} could not be made",
                cause=cause_of(exc),
                action="Make its folder, writable by this user.",
            ) from exc
        return cls(path)

    async def new_key(self, machine: str) -> MachineKey:
        key, nonce = sealing.new_key(), os.urandom(_NONCE_B)
        sealed = self._keys[self.current].encrypt(nonce, key, _associated(self.current, machine))
        return MachineKey(self.current, nonce + sealed, key)

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        vault_key = self._keys.get(wrapped.key_id)
        if vault_key is None:
            raise WrongKeyError(
                f"The key of machine {machine} cannot be unwrapped",
                cause=f"it was wrapped by vault key {wrapped.key_id}, which {self.path} does not hold (it holds"
                f" {', '.join(self._keys)})",
            )
        data = wrapped.wrapped
        try:
            return vault_key.decrypt(data[:_NONCE_B], data[_NONCE_B:], _associated(wrapped.key_id, machine))
        except (InvalidTag, ValueError) as exc:
            raise WrongKeyError(
                f"The key of machine {machine} cannot be unwrapped",
                cause=f"vault key {wrapped.key_id} of {self.path} does not open it, or it was altered",
            ) from exc

    def wrapped_under_all(self, key: bytes, purpose: str) -> dict[str, bytes]:
        """Vault key id → `key`, which is for `purpose` alone, wrapped under that: any copy of this file opens it, also one from before
        the newest of its keys."""
        found = {}
        for id_, vault_key in self._keys.items():
            nonce = os.urandom(_NONCE_B)
            found[id_] = nonce + vault_key.encrypt(nonce, key, _associated_with(purpose, id_))
        return found

    def unwrapped_under_any(self, wrapped: Mapping[str, bytes], purpose: str) -> bytes:
        """Raises WrongKeyError."""
        what = f"What is sealed as {purpose} cannot be opened"
        known = [id_ for id_ in wrapped if id_ in self._keys]
        if not known:
            raise WrongKeyError(
                what,
                cause=f"it was sealed under vault keys {', '.join(wrapped)}, and {self.path} holds {', '.join(self._keys)}",
            )
        for id_ in known:
            data = wrapped[id_]
            with contextlib.suppress(InvalidTag, ValueError):
                return self._keys[id_].decrypt(
                    data[:_NONCE_B], data[_NONCE_B:], _associated_with(purpose, id_)
                )
        raise WrongKeyError(
            what, cause=f"vault key {known[0]} of {self.path} does not open it, or it was altered"
        )


def _fingerprint(key: _VaultKey) -> str:
    """From the key by HKDF: a key of 256 random bits cannot be found by trying."""
    info = b"understudy vault key fingerprint 1\0" + key.id.encode()
    return HKDF(SHA256(), 16, None, info).derive(key.key).hex()


def _associated(key_id: str, machine: str) -> bytes:
    return f"understudy wrap 1\0{key_id}\0{machine}".encode()


def _associated_with(purpose: str, key_id: str) -> bytes:
    return f"understudy {purpose} 1\0{key_id}".encode()


def check_choice(daemon: str, vault_file: Path | None, control_url: str) -> None:
    """Where a daemon gets keys: of its configuration. Raises ConfigError."""
    what = f"The {daemon}'s configuration is not valid"
    if vault_file is not None and control_url:
        raise ConfigError(
            what,
            cause="it has both `control_url` and `vault_file`, which holds the keys of all machines",
            action="Remove `vault_file`, and the file from this host: the config server hands out what is needed.",
        )
    if vault_file is None and not control_url:
        raise ConfigError(
            what,
            cause="it has neither `control_url` nor `vault_file`: nobody would give it keys",
            action="Add `control_url`, or `vault_file` where there is no config server.",
        )


class MachineDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`machine.json`: which key the machine's logs are sealed with."""

    v: int = 1
    machine: str
    key_id: str
    wrapped: str
    """Base64."""


async def machine_key_of(vault: Vault, machine: str, key_id: str, wrapped: bytes) -> MachineKey:
    """The machine's key from its wrapped form, as a segment's header has it. Raises WrongKeyError."""
    return MachineKey(key_id, wrapped, await vault.unwrap(WrappedKey(key_id, wrapped), machine))


async def key_document(store: BlobStore, machine: str) -> WrappedKey:
    """What the machine's document in storage says. Raises BlobNotFoundError, IntegrityError for one that cannot be read."""
    name = names.KEY_DOCUMENT
    data = await store.read(name)
    try:
        found = decoding.decode(data, type=MachineDocument)
        return WrappedKey(found.key_id, base64.b64decode(found.wrapped, validate=True))
    except UNDECODABLE as exc:
        raise IntegrityError(
            f"The document {name} of machine {machine} cannot be read",
            cause=str(exc),
            action="Restore it; its key also stands in the header of each of the machine's segments.",
        ) from exc


async def machine_key(store: BlobStore, vault: Vault, machine: str, *, create: bool = False) -> MachineKey:
    """The machine's key, from its document in storage. With `create`, a first one is made if there is none.

    Raises BlobNotFoundError (without `create`), WrongKeyError, IntegrityError for a document that cannot be
    read.
    """
    while True:
        try:
            found = await key_document(store, machine)
        except BlobNotFoundError:
            if not create:
                raise
        else:
            return await machine_key_of(vault, machine, found.key_id, found.wrapped)
        key = await vault.new_key(machine)
        document = MachineDocument(
            machine=machine, key_id=key.key_id, wrapped=base64.b64encode(key.wrapped).decode()
        )
        try:
            await store.create(names.KEY_DOCUMENT, msgspec.json.encode(document))
        except BlobExistsError:
            continue  # another process server was faster: its key is the machine's key


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shared.keys.vault", description="Make the vault file of a new installation."
    )
    parser.add_argument("file", type=Path, help="where it shall be; no key in it is ever overwritten")
    parser.add_argument(
        "--add",
        type=Path,
        metavar="OTHER",
        help="put the keys of another vault file into this one, when both were in use",
    )
    args = parser.parse_args(argv)
    path: Path = args.file
    try:
        if args.add is not None:
            made = f"added to {path}: {', '.join(add(path, args.add)) or 'nothing, it had all of them'}"
        else:
            FileVault.create(path)
            made = f"made: {path}"
    except UnderstudyError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return exc.exit_code
    sys.stdout.write(
        f"{made}\nKeep a copy in a second place: without it nothing in storage can be read by anybody.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
