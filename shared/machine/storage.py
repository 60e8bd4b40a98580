"""Where each machine lies in the storage account: a container of its own, named by a stable id that the registry gives it.

    <vault container>           machines/<name>.json     the registry: name → id, created once (If-None-Match)
    <vault container>-<id>      all that is of that machine (shared/log/names.py), and metadata that say whose it is

So whoever may read one machine can be given that container and nothing else, and a name that is used again never meets what an earlier
machine of it left.

A machine begins in this order: registry entry, then container. Whoever is killed in between leaves an entry, and the next to come makes
its container; two that begin one machine at once get one id, since who loses the create reads what the winner wrote. A container is
never made before its entry, so none is left that nobody names.

Storage describes itself (I8): with the registry lost, the containers' metadata say the same, and an entry is made again from them. Of
several containers of one name the youngest is the machine's: that is the one which the registry named last.

What two places say must fit: an entry that is another machine's (a copy of the blob, a rename that went half way), or that names a
container whose metadata are another machine's, is an IntegrityError for whoever would use it, since two machines in one container end
each other's epochs. Metadata that are not there contradict nothing: tools that copy an account leave them behind.

`find` asks for the id once, and keeps it; `find_or_create`, with which each session of an agent begins, asks the registry each time: when
the name was given to another container, the old one, whole as it may be, is not written to any more, and its epoch is not in the new one.

When a machine's container is not there any more, the registry is asked: does it still name this one, somebody may bring the container back
(ContainerMissingError); `find_or_create` makes it anew, empty, so that a machine whose agent comes back is replicated again rather than
not at all. Else storage forgot the machine: what stands under its name now, in another container, is another history, and a store never
goes over to it by itself. Every request of the old one fails, once; who asks `find_or_create` again gets a store on the new one.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import time
from typing import Annotated, Final, Self

import msgspec

from shared import decoding
from shared.blob import BlobConfig, BlobStore, Missing, Retried, Retry
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    IntegrityError,
    MachineNotFoundError,
    StorageError,
    StorageForgotError,
    UnderstudyError,
)
from shared.log.names import check_machine, is_machine
from shared.trust import pointer

REGISTRY: Final = "machines/"
_SUFFIX: Final = ".json"
_ID_B: Final = 8
_MOST_B: Final = 1 << 16
"""Of an entry."""
_SOON: Final = Retry(deadline_s=8.0, attempt_s=4.0)
_DELETE: Final = "Delete it: it is made anew from the metadata of the machine's container."

_log = logging.get()

MachineId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class MachineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`machines/<name>.json` in the vault container. It never changes."""

    v: int = 1
    machine: str
    id: MachineId
    created_ns: int
    claim: str
    """Random: tells who made it when the answer to the create was lost."""


class MachineStorage(Retried):
    """The machines of one vault container. All stores that it gives share its connections: close only this."""

    def __init__(self, vault: BlobStore) -> None:
        self.vault: BlobStore = vault
        """The vault container, where only the registry lies."""
        self._known: Final[dict[str, str]] = {}
        """Container by machine; shared by all that `with_retry` and `patient` gave."""
        self._entries: Final[dict[str, tuple[str, MachineEntry]]] = {}
        """What `machines` read of each entry, and its ETag: so a list costs no request for each machine."""

    @classmethod
    def connect(cls, config: BlobConfig) -> Self:
        """See BlobCore.connect."""
        return cls(BlobStore.connect(config))

    async def close(self) -> None:
        await self.vault.close()

    def with_retry(self, retry: Retry) -> Self:
        return self._over(self.vault.with_retry(retry))

    async def find(self, machine: str) -> BlobStore:
        """The machine's container. Raises MachineNotFoundError, StorageError; IntegrityError for an entry that cannot be
        read, or does not fit its container.
        """
        container = self._known.get(machine)
        if container is None:
            entry = await self._registered(machine) or await self._described(machine)
            if entry is None:
                raise MachineNotFoundError(
                    f"Storage holds nothing of machine '{machine}'",
                    cause=f"neither container {self.vault.container} nor another one beside it names the machine",
                    action="Check that this is the right storage account; `understudy machine list` shows the machines.",
                )
            container = self._container(entry.id)
            if await self.check(machine, container):
                self._known[machine] = container
        return self.at(machine, container)

    async def find_or_create(self, machine: str) -> BlobStore:
        """The machine's container, made if there is none. The registry is asked each time, with one request: a name may be another
        machine's since. Raises StorageError, IntegrityError.
        """
        entry = await self._registered(machine)
        if entry is None:
            await self.vault.ensure_container()
            entry = await self._register(await self._described(machine) or self._new(machine))
        container = self._container(entry.id)
        known = self._known.get(machine)
        if container != known:
            if known is not None:
                _log.warning("machine lies elsewhere now", machine=machine, container=container, before=known)
            metadata = {"machine": machine, "vault": self.vault.container, "created": str(entry.created_ns)}
            await self.vault.in_container(container).ensure_container(metadata)
            await self.check(machine, container)
            self._known[machine] = container
        return self.at(machine, container)

    async def pointer(self) -> bytes:
        """Where the config server is, as the vault container has it (pointer.py); empty: it says nothing. Raises StorageError, soon."""
        found = await self.vault.with_retry(_SOON).read_versioned(pointer.BLOB, pointer.MOST_B)
        return b"" if found is None else found[0]

    async def named(self, machine: str) -> str | None:
        """The container that the registry names, asked now; where it has no entry, the one whose metadata name the machine. None where
        neither is. Nothing is remembered, and it need not be there. Raises StorageError, IntegrityError.
        """
        entry = await self._registered(machine) or await self._described(machine)
        return None if entry is None else self._container(entry.id)

    async def unregister(self, machine: str, container: str) -> str:
        """Behind the deletion of the machine's container: takes its entry out of the registry, unless that names another one by now, which
        is returned. Raises StorageError, IntegrityError; PreconditionError where somebody changes it at that moment.
        """
        self.forget(machine, container)
        with contextlib.suppress(BlobNotFoundError, ContainerMissingError):
            etag = (await self.vault.properties(_name(machine))).etag
            entry = await self._entry(machine)
            named = "" if entry is None else self._container(entry.id)
            if named != container:
                return named
            await self.vault.delete(_name(machine), if_match=etag)
            _log.info("machine taken out of the registry", machine=machine, container=container)
        return ""

    def forget(self, machine: str, container: str) -> None:
        """Nothing is remembered of it: whoever asks next is told what storage says then."""
        if self._known.get(machine) == container:
            del self._known[machine]
        self._entries.pop(machine, None)

    async def has(self, machine: str, container: str) -> bool:
        """Whether the container is there, by the account's own list, or the registry names it, so that somebody may bring it back. (One
        that is disabled, or just being deleted, answers as if it were not there.) Raises StorageError, IntegrityError."""
        entry = await self._registered(machine)
        if entry is not None and self._container(entry.id) == container:
            return True
        return await self.is_listed(container)

    async def is_listed(self, container: str) -> bool:
        """Whether the container is there, by the account's own list. Raises StorageError."""
        return any([name == container async for name, _ in self.vault.list_containers(container)])

    async def machines(
        self, *, thorough: bool = False, unreadable: list[IntegrityError] | None = None
    ) -> dict[str, str]:
        """The machines, in order, and their containers: those in the registry. Containers that the registry does not name are
        looked for when it is lost, or holds no machine; with `thorough`, always. A machine whose entry cannot be read is left out; why,
        is in `unreadable`.
        """
        found: dict[str, str] = {}
        try:
            async for info in self.vault.list(REGISTRY):
                machine = info.name.removeprefix(REGISTRY).removesuffix(_SUFFIX)
                if not is_machine(machine):
                    continue
                try:
                    entry = await self._listed(machine, info.etag)
                except IntegrityError as exc:
                    if unreadable is None:
                        _log.warning("machine left out", machine=machine, **exc.as_dict())
                    else:
                        unreadable.append(exc)
                else:
                    if entry is not None:
                        found[machine] = self._container(entry.id)
        except ContainerMissingError as exc:
            _log.debug("no registry", **exc.as_dict())
        if thorough or not found:
            described = {entry.machine: self._container(entry.id) for entry in await self._all_described()}
            found = described | found
        return dict(sorted(found.items()))

    async def containers(self) -> dict[str, str]:
        """All containers that are machines' of this vault, and whose: those that say so themselves (also such as a name had earlier), and
        those that the registry names and that contradict it in nothing.
        """
        found = {self._container(entry.id): entry.machine for entry in await self._all_described()}
        for machine, container in (await self.machines()).items():
            if container not in found:
                try:
                    if await self.check(machine, container):
                        found[container] = machine
                except IntegrityError as exc:
                    _log.warning("container left out", machine=machine, container=container, **exc.as_dict())
        return found

    def at(self, machine: str, container: str) -> BlobStore:
        """A store on that container, which `machines` names as the machine's."""
        return self.vault.in_container(container, self._missing(machine, container))

    async def check(self, machine: str, container: str) -> bool:
        """Whether the container is there; one that is not says so when it is used. Raises IntegrityError if it says that it is another
        machine's. `find` and `find_or_create` have asked it.
        """
        try:
            said = await self.vault.in_container(container).container_metadata()
        except ContainerMissingError:
            return False
        for key, expected in (("machine", machine), ("vault", self.vault.container)):
            if said.get(key, expected) != expected:
                raise IntegrityError(
                    f"Container {container} is not that of machine {machine}",
                    cause=f"the registry names it, but its own metadata say {key} {said[key]}",
                    action=f"Find out which is right: correct the container's metadata, or delete the entry {_name(machine)}: it is "
                    "made anew from the metadata of the machine's container.",
                )
        return True

    # ---- inside ----

    def _over(self, vault: BlobStore) -> Self:
        other = copy.copy(self)
        other.vault = vault
        return other

    def _container(self, id_: str) -> str:
        return f"{self.vault.container}-{id_}"

    def _new(self, machine: str) -> MachineEntry:
        return MachineEntry(
            machine=machine,
            id=secrets.token_hex(_ID_B),
            created_ns=time.time_ns(),
            claim=secrets.token_hex(8),
        )

    async def _register(self, entry: MachineEntry) -> MachineEntry:
        """The entry that stands now: this one, or that of somebody who was faster."""
        try:
            await self.vault.create(_name(entry.machine), msgspec.json.encode(entry))
        except BlobExistsError:
            found = await self._entry(entry.machine)
            if found is None:
                raise
            return found
        _log.info("machine registered", machine=entry.machine, container=self._container(entry.id))
        return entry

    async def _entry(self, machine: str) -> MachineEntry | None:
        """What the registry says of the machine. Raises ContainerMissingError when there is no registry."""
        name = _name(machine)
        try:
            data = await self.vault.read(name, 0, _MOST_B)  # what is longer is none, whoever put it there
        except BlobNotFoundError:
            return None
        try:
            entry = decoding.decode(data, type=MachineEntry)
        except UNDECODABLE as exc:
            raise IntegrityError(
                f"The registry's entry {name} cannot be read", cause=str(exc), action=_DELETE
            ) from exc
        if entry.machine != machine:
            raise IntegrityError(
                f"The registry's entry {name} is of another machine",
                cause=f"it was made for machine {entry.machine}, and names that one's container",
                action=_DELETE,
            )
        return entry

    async def _registered(self, machine: str) -> MachineEntry | None:
        try:
            return await self._entry(machine)
        except ContainerMissingError:
            return None

    async def _listed(self, machine: str, etag: str) -> MachineEntry | None:
        """The entry of a machine that a listing of the registry names; None when it is gone since. Raises IntegrityError."""
        read = self._entries.get(machine)
        if read is not None and read[0] == etag:
            return read[1]
        entry = await self._entry(machine)
        if entry is not None:
            # Should it have changed since the list: the next list has another ETag, and it is read again.
            self._entries[machine] = etag, entry
        return entry

    async def _described(self, machine: str) -> MachineEntry | None:
        """What the containers say of the machine."""
        found = [entry for entry in await self._all_described() if entry.machine == machine]
        return found[-1] if found else None

    async def _all_described(self) -> list[MachineEntry]:
        """What the containers beside the vault's say of themselves, oldest first."""
        prefix = f"{self.vault.container}-"
        found: list[MachineEntry] = []
        async for name, metadata in self.vault.list_containers(prefix):
            if metadata.get("vault") != self.vault.container or not is_machine(metadata.get("machine", "")):
                continue
            try:
                entry = decoding.convert(
                    {
                        "machine": metadata["machine"],
                        "id": name.removeprefix(prefix),
                        "created_ns": int(metadata.get("created", "0")),
                        "claim": secrets.token_hex(8),
                    },
                    MachineEntry,
                )
            except ValueError:
                continue  # another's, or somebody changed it
            found.append(entry)
        return sorted(found, key=lambda entry: entry.created_ns)

    def _missing(self, machine: str, container: str) -> Missing:
        hasty = self.vault.with_retry(Retry(deadline_s=0.0))

        async def explain(error: ContainerMissingError) -> StorageError:
            if self._known.get(machine) == container:
                del self._known[machine]  # who asks next sees to it that it is there
            try:
                entry = await self._over(hasty)._entry(machine)
            except UnderstudyError:
                return error  # nobody can tell now
            if entry is not None and self._container(entry.id) == container:
                return error
            now = "no machine of this name" if entry is None else f"container {self._container(entry.id)}"
            return StorageForgotError(
                f"Storage forgot machine {machine}",
                cause=f"its container {container} is gone, and the registry names {now}",
            )

        return explain


def _name(machine: str) -> str:
    return f"{REGISTRY}{check_machine(machine)}{_SUFFIX}"
