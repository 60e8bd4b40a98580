"""Which copy of a machine is its active side (I7): `side.json`, created once and changed by compare-and-swap only.

A drill VM, a clone, a machine that was failed over and the old source that comes back all carry the certificate, the agent and the disks of
one machine. Only the active side is replicated: whoever has another identity is refused, and takes nothing. The identity is the hardware's
(SMBIOS); what is the same hardware cannot be told apart by it, so a session that still answers is not given up for a Hello from
another boot either (process_server/reception/admission.py).

The first machine that ever says Hello under the name is the active side. After that only a person makes another one so (`machine rebind`),
or an operation that moves the machine. The generation grows with each change, so that a stale writer fails.

Storage is the truth, also when it was set back: a container that was deleted, a document restored from an older version, begin again with
lower generations. So the generation orders answers only where time cannot, among requests that overlapped (`Known`).
"""

from __future__ import annotations

import enum
import itertools
import secrets
import time
from typing import Final, NamedTuple

import msgspec

from shared import decoding
from shared.blob import BlobStore
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    CopyRefusedError,
    IntegrityError,
    PreconditionError,
    StorageForgotError,
)
from shared.log import names
from shared.machine.storage import MachineStorage

UNKNOWN: Final = ""
"""The identity of a machine that has none: no SMBIOS data, and none configured."""


class Direction(enum.Enum):
    OUTWARD = "outward"
    FAILBACK = "failback"


class ActiveSide(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    machine: str
    generation: int
    identity: str
    direction: Direction = Direction.OUTWARD
    replaced: str = UNKNOWN
    """The identity that was the active side before this one."""
    changed_ns: int
    claim: str
    """Random: tells whose write it was when its answer was lost."""

    def check(self, identity: str) -> None:
        """Raises CopyRefusedError for a machine that is not the active side."""
        if identity != self.identity:
            raise CopyRefusedError(
                f"A copy of machine {self.machine} was refused",
                cause=f"it is {shown(identity)}, the active side is {shown(self.identity)}",
            )


class _Learnt(NamedTuple):
    side: ActiveSide
    at: int


class Known:
    """What storage said last of each machine. Pure.

    Answers overtake each other. One whose request began after what is known was learnt is the newer word, whatever generation it has. One
    whose request was under way then may have been given before or after: there the higher generation counts, as it does as long as storage
    only moves forward; was it set back at that very moment, the next request says so.
    """

    def __init__(self) -> None:
        self._moments = itertools.count()
        """Numbers moments in their order; no clock is needed."""
        self._learnt: dict[str, _Learnt] = {}

    def get(self, machine: str) -> ActiveSide | None:
        learnt = self._learnt.get(machine)
        return None if learnt is None else learnt.side

    def forget(self, machine: str) -> None:
        """It was deleted: whoever has the name next is another one."""
        self._learnt.pop(machine, None)

    def asking(self) -> int:
        """Call it before a request to storage is made; `learn` wants to know."""
        return next(self._moments)

    def learn(self, side: ActiveSide, asked: int) -> ActiveSide:
        """Storage gave this answer; which side counts now."""
        before = self._learnt.get(side.machine)
        if before is not None and asked < before.at and side.generation < before.side.generation:
            return before.side
        self._learnt[side.machine] = _Learnt(side, next(self._moments))
        return side


def shown(identity: str) -> str:
    return identity or "a machine without an identity"


async def find(store: BlobStore) -> ActiveSide | None:
    """None when no machine of this name was ever replicated. Raises IntegrityError, StorageErrors."""
    found = await _read(store, names.SIDE_DOCUMENT)
    return found[0] if found is not None else None


async def find_of(storage: MachineStorage, machine: str) -> tuple[ActiveSide | None, str]:
    """`find` in the container that has the machine now, and that container: the one that was known may have been given up, and the name
    with it. Raises MachineNotFoundError and ContainerMissingError, too."""
    store = await storage.find(machine)
    try:
        return await find(store), store.container
    except StorageForgotError:  # which makes `storage` forget that container
        store = await storage.find(machine)
        return await find(store), store.container


async def find_or_begin(
    store: BlobStore, machine: str, identity: str, lost: ActiveSide | None = None
) -> ActiveSide:
    """The active side; when there is none, `lost`, which storage once had, else `identity`. A machine whose identity was not known is
    taken at its first word.
    """
    name = names.SIDE_DOCUMENT
    while True:
        found = await _read(store, name)
        if found is None:
            first = lost or _following(machine, 0, identity)
            try:
                await store.create(name, msgspec.json.encode(first))
            except BlobExistsError:
                continue  # somebody was faster, or it was this call's first try
            if lost is not None:
                continue
            return first
        side, etag = found
        if side.identity != UNKNOWN or identity == UNKNOWN:
            return side
        named = msgspec.structs.replace(
            _following(machine, side.generation, identity), direction=side.direction
        )
        if await _swap(store, name, named, etag):
            return named


async def change(
    store: BlobStore, machine: str, identity: str, direction: Direction = Direction.OUTWARD
) -> ActiveSide:
    """Makes `identity` the active side, whichever is: the next generation. From now on every other copy is refused."""
    name = names.SIDE_DOCUMENT
    while True:
        found = await store.read_versioned(name)
        generation, replaced = _before(found[0], name) if found is not None else (0, UNKNOWN)
        new = msgspec.structs.replace(
            _following(machine, generation, identity), direction=direction, replaced=replaced
        )
        if found is None:
            try:
                await store.create(name, msgspec.json.encode(new))
            except BlobExistsError:
                continue
            return new
        if await _swap(store, name, new, found[1]):
            return new


def _following(machine: str, generation: int, identity: str) -> ActiveSide:
    return ActiveSide(
        machine=machine,
        generation=generation + 1,
        identity=identity,
        changed_ns=time.time_ns(),
        claim=secrets.token_hex(8),
    )


async def _swap(store: BlobStore, name: str, new: ActiveSide, etag: str) -> bool:
    """Whether `new` stands there now, written over that version; also when the answer to the write was lost."""
    try:
        await store.replace(name, msgspec.json.encode(new), if_match=etag)
    except PreconditionError:
        found = await store.read_versioned(name)
        return found is not None and found[0] == msgspec.json.encode(new)
    return True


def _before(data: bytes, name: str) -> tuple[int, str]:
    """Generation and identity. Of a document that cannot be read nobody knows them: then a number that no count of changes reaches."""
    try:
        before = decode(data, name)
    except IntegrityError:
        return int(time.time()), UNKNOWN
    return before.generation, before.identity


async def _read(store: BlobStore, name: str) -> tuple[ActiveSide, str] | None:
    found = await store.read_versioned(name)
    return None if found is None else (decode(found[0], name), found[1])


def decode(data: bytes, name: str) -> ActiveSide:
    """Raises IntegrityError."""
    try:
        return decoding.decode(data, type=ActiveSide)
    except UNDECODABLE as exc:
        raise IntegrityError(
            f"The document {name} cannot be read",
            cause=str(exc),
            action="Say which machine is the active side: understudy machine rebind NAME.",
        ) from exc
