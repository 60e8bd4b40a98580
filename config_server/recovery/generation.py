"""`control/generation.json`: which config server is in force, and what the others do not do then.

**Why no two of them act.** The number is raised by compare-and-swap, so of any two servers that looked, one sees that it is not the one in
storage. A server looks at its start, before it answers (where storage answers within seconds), every 10 s, and once more, never more than 5
s ago, before what cannot be taken back: before it claims a job, before a step of a job begins or is undone, before each container that a
sweep changes. One that stood still (its looks are overdue) looks before it answers who wants to change something. So an act of the old one
can only come from a look of before the other's PUT. That is not nothing: between look and act there are up to 5 s, however long its process
or host then stands still (no clock of a host that is frozen goes on, so none is asked), and however late its request arrives. What such an
act can do:

    state of the control plane   goes to a blob with the number of its own generation, which nobody else writes
    generation.json, pointer     under the ETag that it read: the other's PUT has changed it
    a machine's container gone   under the time of the container's last change (storage/removal.py): the other one's first word about it,
                                 or a note that it takes back, has changed that
    the active side              under its ETag (shared/machine/active_side.py)
    grants                       under the ETag of the container's policies; one that it gives counts five minutes, unless somebody makes it
                                 longer, and the other one's sweep ends what its rows do not know
    revocations                  signed, created once, never changed: they say what was said, by whichever server
    a step of a job              makes only what bears the job's name, and looks first (jobs/kinds.py). Jobs that had not ended are held in
                                 a database that was put back, until a person says how they go on; who does, reads that one may be running
    keys                         new ones are wrapped under a vault key that storage knows; both servers have it
    daemons                      are told no opinion, no command, and get no certificate, from its next look on. One that was told before
                                 goes by it: wishes have numbers and incarnations, by which a later one of the other server is known to be
                                 later (rules/wishes.py), and shows its certificate, which the other one takes in
    what an operator said        in the seconds between the other's PUT and the next look is said here alone, and lost (recovering.md)

Clocks decide nothing in this. Where storage does not answer, nobody knows: then no job is claimed and no step begun, and all else goes on
as before, since a server that is alone must not stop for storage. A server that has once seen that it is superseded remembers it in its
database. It is read-only until a person acts, who puts a backup of its own back on it (`python -m config_server restore`), say.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from config_server.rules.clock import rfc3339
from config_server.rules.facts import SELF
from config_server.rules.force import Generation, InForce, Ours, Put, judge
from config_server.store import audit, force
from config_server.store.database import Connection, Database
from shared import decoding
from shared.blob import BlobStore
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    DatabaseError,
    IntegrityError,
    PreconditionError,
    ServerSupersededError,
    TransientError,
    UnderstudyError,
    VaultMisfitError,
)
from shared.keys import vault_record
from shared.machine.storage import MachineStorage

_log = logging.get()

FOLDER: Final = "control/"
BLOB: Final = f"{FOLDER}generation.json"
_STATE: Final = re.compile(rf"{FOLDER}state-([0-9]{{6,}})\Z")
LOOK_S: Final = 10.0
_FRESH_S: Final = 5.0
_START_S: Final = 3.0
_OVERDUE_S: Final = 2.5 * LOOK_S
"""Behind this nobody has looked when he should: this server stood still."""
_PATIENCE_S: Final = 4.0
"""Of one look."""
_MOST_B: Final = 1 << 16
_TRIES: Final = 5
UNKNOWN: Final = "storage does not say which config server is in force"


def state_blob(generation: int) -> str:
    return f"{FOLDER}state-{generation:06d}"


def generation_of(blob: str) -> int | None:
    """None: it is no state."""
    found = _STATE.match(blob)
    return int(found[1]) if found else None


async def states(vault: BlobStore) -> dict[int, str]:
    """The states in storage: generation → blob. Raises StorageError."""
    found = dict[int, str]()
    with contextlib.suppress(ContainerMissingError):
        async for info in vault.list(f"{FOLDER}state-"):
            if (number := generation_of(info.name)) is not None:
                found[number] = info.name
    return found


async def read(vault: BlobStore) -> tuple[Generation, str] | None:
    """What storage says, and its ETag; None: nothing. Raises StorageError, IntegrityError."""
    try:
        found = await vault.read_versioned(BLOB, _MOST_B)
    except ContainerMissingError:
        return None
    return None if found is None else (_decoded(found[0]), found[1])


class Force:
    """Whether this config server is the one in force. `storage` gives that, when it is asked; None: there is none, or no vault, and this
    one is alone for all that it knows."""

    def __init__(
        self,
        db: Database,
        storage: Callable[[], MachineStorage] | None,
        host: str,
        keys: Mapping[str, str] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`host`: how people find this one. `keys`: those of its vault (FileVault.fingerprints)."""
        self._db: Final = db
        self._storage: Final = storage
        self._host: Final = host
        self._keys: Final = keys or {}
        self._now_ns: Final = now_ns
        self._looking: Final = asyncio.Lock()
        self._looked_s = -1e9
        """When the last look that was answered began (monotonic)."""
        self._tried_s = _boot_s()
        """When the last one began, answered or not."""
        self.generation = 0
        """This one's, while it is in force. 0: it is not known to be."""
        self._said: Generation | None = None
        """What storage had at the last look, from which all of this follows."""
        self.by: Generation | None = None
        """Which one is, where this one has been superseded."""

    @property
    def is_alone(self) -> bool:
        return self._storage is None

    @property
    def error(self) -> ServerSupersededError | None:
        """What is said to whoever wants to change something here."""
        by = self.by
        if by is None:
            return None
        who = f"the config server on {by.host}" if by.host else "another config server"
        since = f" since {rfc3339(by.since_ns)}" if by.since_ns else ""
        return ServerSupersededError(
            "This config server has been superseded, and changes nothing any more",
            cause=f"{who} is in force{since} (generation {by.generation})",
        )

    def check(self) -> None:
        """As far as it is known now. Raises ServerSupersededError."""
        if (error := self.error) is not None:
            raise error

    async def current(self) -> ServerSupersededError | None:
        """`error`; looked at once more by who stood still: what was sent to him meanwhile is not answered by what was so before. Where
        storage does not answer it is tried as often as else, and nobody waits for that twice."""
        if self._storage is not None and _boot_s() - self._tried_s > _OVERDUE_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self._look_quietly()
        return self.error

    async def start(self) -> None:
        """Before anything is answered: what was known before, and what storage says if it answers soon. Raises DatabaseError."""
        if self._storage is None:
            return
        self.by = await self._db.run(force.superseded)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await self._look_quietly()

    async def watch(self) -> None:
        """A look, as it is done now and then. Raises IntegrityError, and StorageErrors that time alone does not mend."""
        if self._storage is None:
            return
        with contextlib.suppress(TransientError):  # who reads storage all the time says so
            await self.look()

    async def hindrance(self) -> str:
        """Why this one may not do now what cannot be taken back; "": it may. Storage was asked not more than 5 s ago. Raises
        DatabaseError."""
        if self._storage is None:
            return ""
        if time.monotonic() - self._looked_s > _FRESH_S:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._look_quietly()
            except TimeoutError:
                pass
            if time.monotonic() - self._looked_s > _FRESH_S:
                return UNKNOWN
        error = self.error
        return "" if error is None else f"{error.what}: {error.cause}"

    async def is_superseded(self) -> bool:
        """As `hindrance`, for what goes on where nobody knows: it needs storage anyway."""
        await self.hindrance()
        return self.by is not None

    async def look(self) -> None:
        """Asks storage, and takes over where that is this one's to do. Raises StorageError, IntegrityError, DatabaseError."""
        assert self._storage is not None
        asked_s = time.monotonic()
        async with self._looking:
            if self._looked_s >= asked_s:
                return  # somebody else has asked since
            began_s = time.monotonic()
            self._tried_s = _boot_s()
            await self._look(self._storage())
            self._looked_s = began_s

    # ---- inside

    async def _look_quietly(self) -> None:
        try:
            await self.look()
        except DatabaseError:
            raise
        except UnderstudyError as exc:
            _log.info("not looked which config server is in force", **exc.as_dict())

    async def _look(self, storage: MachineStorage) -> None:
        vault = storage.vault
        if await self._is_as_it_was(vault):
            return
        ours = await self._db.run(force.ours)
        for _ in range(_TRIES):
            found = await read(vault)
            is_ours = found is not None and found[0].holder == ours.holder
            highest = 0 if is_ours else max(await states(vault), default=0)
            match judge(ours, found[0] if found else None, highest):
                case InForce(generation):
                    await self._taken(generation, found[0] if found else None)
                    return
                case Put(generation):
                    await self._check_keys(storage)
                    if await self._put(vault, ours, generation, found):
                        reach("generation.put")
                    # And is looked at once more: somebody else's may be there, or ours, of which no answer came.
                case superseded:
                    await self._lost(superseded.by, found[0] if found else None)
                    return
        raise TransientError(
            "It is not known which config server is in force", cause="it changes all the time"
        )

    async def _is_as_it_was(self, vault: BlobStore) -> bool:
        """With one request, as it is as a rule."""
        if self._said is None:
            return False
        try:
            return _decoded(await vault.read(BLOB, 0, _MOST_B)) == self._said
        except (BlobNotFoundError, ContainerMissingError):
            return False

    async def _check_keys(self, storage: MachineStorage) -> None:
        """Whoever has none of the vault keys of this storage is another installation's, and takes nothing over. Raises VaultMisfitError."""
        recorded = await vault_record.known_keys(storage)
        if vault_record.is_another_s(self._keys, recorded):
            raise VaultMisfitError(
                "This config server does not take over",
                cause=f"storage knows vault key {', '.join(sorted(recorded))}, and this one's vault has none of them",
            )

    async def _put(
        self, vault: BlobStore, ours: Ours, generation: int, over: tuple[Generation, str] | None
    ) -> bool:
        said = Generation(generation=generation, holder=ours.holder, host=self._host, since_ns=self._now_ns())
        data = msgspec.json.encode(said)
        reach("generation.before-put")
        try:
            if over is None:
                await self._created(vault, data)
            else:
                await vault.replace(BLOB, data, if_match=over[1])
        except (BlobExistsError, PreconditionError, BlobNotFoundError):
            return False
        if over is not None:
            before = f"{over[0].host} (generation {over[0].generation})"
            _log.warning(f"this config server takes over from {before}", generation=generation)
        return True

    @staticmethod
    async def _created(vault: BlobStore, data: bytes) -> None:
        try:
            await vault.create(BLOB, data)
        except ContainerMissingError:
            await vault.ensure_container()
            await vault.create(BLOB, data)

    async def _taken(self, generation: int, said: Generation | None) -> None:
        if generation != self.generation or self.by is not None:
            await self._db.run(lambda db: self._note_taken(db, generation))
            _log.info("this config server is in force", generation=generation)
        self.generation, self.by, self._said = generation, None, said

    def _note_taken(self, db: Connection, generation: int) -> None:
        before = force.ours(db)
        if before.generation != generation or before.takes_over:
            audit.add(db, SELF, "server.in-force", SELF, {"generation": generation}, self._now_ns())
        force.taken(db, generation)

    async def _lost(self, by: Generation, said: Generation | None) -> None:
        is_news, self.generation, self.by, self._said = by != self.by, 0, by, said
        if is_news and (error := self.error) is not None:
            _log.error("superseded", **error.as_dict())
            await self._db.run(lambda db: force.lost(db, by))


def _boot_s() -> float:
    """As the monotonic clock, which stands while this host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _decoded(data: bytes) -> Generation:
    try:
        found = decoding.decode(data, type=Generation)
        if found.v != 1:
            raise ValueError(f"it is of version {found.v}, which a newer config server wrote")
    except UNDECODABLE as exc:
        raise IntegrityError(
            f"{BLOB} in storage cannot be read",
            cause=str(exc),
            action="Put back an older version of the blob, if the account keeps any. Else delete it: the config server that was in force"
            " makes it again.",
        ) from exc
    return found
