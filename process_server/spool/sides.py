"""Whether a machine that says Hello is the active side of its name (I7, shared/machine/active_side.py).

Input: identities from Hello. Output: nothing, or CopyRefusedError. Storage is asked each time, for a moment; while it cannot
be asked, what it said last counts for a Hello: it lies beside the machine's spool, so that a restart in an outage refuses and admits
as before. Whoever must know (`surely`) is told that storage did not answer.

A container that was deleted, while the registry still names it, takes the document along. Then the side that is remembered here is begun
with again: the machine itself goes on, and a copy that is faster does not become it. No container is made for a Hello that is refused.

The file beside the spool (`<machine>/side.json`) is storage's document (shared/FORMAT.md) with one field more, `container`: the machine's
then. So what is left of a machine that was deleted can be told also where nothing else is (process_server/deletions.py). An earlier version
wrote none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from process_server.machine_files import MachineFiles
from shared import decoding
from shared.blob import Retry
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    ContainerMissingError,
    IntegrityError,
    MachineNotFoundError,
    SideFileError,
    StorageError,
    TransientError,
)
from shared.machine import active_side
from shared.machine.active_side import ActiveSide, Known
from shared.machine.storage import MachineStorage

_ASK: Retry = Retry(deadline_s=3.0)
_FILE = "side.json"

_log = logging.get()


class _Kept(ActiveSide, frozen=True, kw_only=True):
    container: str


class _KeptIn(msgspec.Struct, frozen=True):
    container: str = ""


class Sides:
    def __init__(self, storage: MachineStorage, spool_dir: Path) -> None:
        self._storage = storage.with_retry(_ASK)
        self.files = MachineFiles(spool_dir, _FILE, "active sides", SideFileError)
        """What storage said last. At worst it is not on the disk: then storage must be there when this server starts anew."""
        self._known = Known()

    async def check(self, machine: str, identity: str, *, claim: bool, surely: bool = False) -> bool:
        """Whether this identity is known to be the active side. Raises CopyRefusedError; TransientError when nobody can tell yet;
        IntegrityError for a document that cannot be read. With `surely`, any StorageError: nothing from memory.

        With `claim`, a name that nobody has, or somebody without an identity, is this machine's from now on: so first without, and with
        it when nobody else answers for the name.
        """
        side = await self._current(machine, identity, claim, surely)
        if side is not None and (claim or side.identity != active_side.UNKNOWN):
            side.check(identity)
        return side is not None and side.identity == identity != active_side.UNKNOWN

    async def remove(self, machine: str) -> None:
        """It was deleted: whoever has the name next is another one. Raises SpoolError."""
        self._known.forget(machine)
        await self.files.remove(machine)

    async def attribute(self, machine: str, container: str) -> None:
        """What is kept of it, by an earlier version, does not say of which container it is: from now on it is of this one; unless somebody
        has come meanwhile."""
        found = await asyncio.to_thread(self._recall, machine)
        if found is not None and self._known.get(machine) is None:
            kept = _Kept(**msgspec.structs.asdict(found), container=container)
            await self.files.keep(machine, msgspec.json.encode(kept))

    async def _current(self, machine: str, identity: str, claim: bool, surely: bool) -> ActiveSide | None:
        asked = self._known.asking()
        try:
            found, container = await self._stored(machine)
            lost = await self._lost(machine) if found is None and not surely else None
            if claim and (found is None or found.identity == active_side.UNKNOWN):
                if lost is not None and lost.identity != active_side.UNKNOWN:
                    lost.check(identity)  # before anything is made
                store = await self._storage.find_or_create(machine)
                side, container = (
                    await active_side.find_or_begin(store, machine, identity, lost),
                    store.container,
                )
            elif found is not None:
                side = found
            else:
                return lost
        except StorageError as exc:
            if surely:
                raise
            known = self._known.get(machine) or await asyncio.to_thread(self._recall, machine)
            if known is None:
                raise TransientError(
                    f"Machine {machine} cannot be taken yet",
                    cause=f"storage does not say which machine has this name: {exc.cause or exc.what}",
                    action=exc.action,
                ) from exc
            _log.warning("active side not asked for", machine=machine, **exc.as_dict())
            return known
        known = self._known.learn(side, asked)
        if known is side:
            kept = _Kept(**msgspec.structs.asdict(side), container=container)
            await self.files.keep(machine, msgspec.json.encode(kept))
        return known

    async def _stored(self, machine: str) -> tuple[ActiveSide | None, str]:
        """What storage says, and in which container; nothing is made. None: it has no such document, or no container to have it in."""
        try:
            return await active_side.find_of(self._storage, machine)
        except (MachineNotFoundError, ContainerMissingError):
            return None, ""

    async def _lost(self, machine: str) -> ActiveSide | None:
        """Storage has no active side: the one that it had, unless the machine was taken out of it on purpose, registry and all."""
        try:
            await self._storage.find(machine)
        except MachineNotFoundError:
            return None
        return self._known.get(machine) or await asyncio.to_thread(self._recall, machine)

    def _recall(self, machine: str) -> ActiveSide | None:
        path = self.files.path(machine)
        try:
            return active_side.decode(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except (OSError, IntegrityError) as exc:
            _log.warning("active side not recalled", machine=machine, cause=str(exc))
            return None


def container_in(folder: Path) -> str:
    """Of which container the side is that lies in a machine's folder; "" where there is none, or it does not tell. Blocking."""
    try:
        return decoding.decode((folder / _FILE).read_bytes(), type=_KeptIn).container
    except (OSError, *UNDECODABLE):
        return ""
