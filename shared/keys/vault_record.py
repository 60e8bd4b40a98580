"""Which vault keys an installation has, as storage remembers it: so that a wrong vault file is noticed before anything is sealed under it.

    <vault container>/vault/<n: 6 digits>.json    the n-th vault key: its id, and a value that only the same key gives (not the key)

A vault file that is not the installation's (a backup from before a key was added, a file that was made anew, another installation's) opens
nothing of what is there, but would wrap new machines' keys without a word; months later nobody has the file any more. So a key of ours is
recorded before the first machine's key is wrapped under it, by whoever has *all* keys that are recorded already:

- Record n is created once (If-None-Match), after all before it were read and found in the file. Of two files that begin at the same time
  one gets the number, and the other then reads a record of a key that it lacks.
- Where nothing is recorded yet, an older installation may have machines: the keys that their documents name count as recorded.
- New keys are wrapped only under a key that is recorded, with the same value. What was recorded once stays so: whoever remembers it
  (`remembered`) makes new keys while storage is away. Who does not, waits for storage, without which no new machine begins anyway.
- A file that lacks a recorded key, or has another under its id, is a problem (US560) as long as it is so. Existing machines go on: their
  keys are opened by the file, or are not (US444). Nor are new keys refused for it, where the file's current key is recorded: that is a
  backup from before a key was added, and the whole file opens what is sealed now.

A record is never changed, and removed by a person only, who knows that its key is lost for good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import msgspec

from shared import decoding
from shared.daemon import logging
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    IntegrityError,
    UnderstudyError,
    VaultMisfitError,
    VaultUnrecordedError,
)
from shared.keys.sealing import MachineKey
from shared.keys.vault import FileVault, Vault, WrappedKey, key_document
from shared.machine.storage import MachineStorage

_log = logging.get()

FOLDER: Final = "vault/"
_AT_ONCE: Final = 16
_MOST_B: Final = 1 << 16
"""Of a record."""
_PATIENCE_S: Final = 8.0
"""How long who wants a new key waits for storage: less than a process server waits for the answer."""


class VaultKeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    key_id: str
    fingerprint: str
    """See FileVault.fingerprints."""
    created_ns: int


Records = Mapping[str, str]
"""Key id → fingerprint; "" where only the id is known."""


def misfits(ours: Records, recorded: Records) -> list[str]:
    """What is wrong about a vault with the keys `ours` where `recorded` are known, in words. Pure."""
    return [
        *(f"it lacks vault key {id_}" for id_ in sorted(recorded.keys() - ours.keys())),
        *(
            f"it has another key under the id {id_}"
            for id_ in sorted(recorded.keys() & ours.keys())
            if recorded[id_] not in ("", ours[id_])
        ),
    ]


def is_another_s(ours: Records, recorded: Records) -> bool:
    """Whether a vault with the keys `ours` has none of the `recorded`: it is not an older or newer one of theirs. Pure."""
    return bool(recorded) and len(misfits(ours, recorded)) == len(recorded)


def admits(ours: Records, current: str, recorded: Records) -> bool:
    """Whether new keys may be wrapped under the key `current`. Pure."""
    return recorded.get(current) == ours[current]


class RecordedVault:
    """A vault file, which wraps new keys only once storage knows of its own. `machines` gives what is asked, when it is; None: there is no
    storage to ask, and nothing is checked."""

    def __init__(
        self,
        file: FileVault,
        machines: Callable[[], MachineStorage] | None,
        remembered: Records | None = None,
        remember: Callable[[Records], Awaitable[None]] | None = None,
    ) -> None:
        """`remembered`: what storage had when it answered last; `remember` is told of a change."""
        self.file: Final = file
        self.problem: UnderstudyError | None = None
        """What is wrong with the file, or why new keys wait."""
        self._machines: Final = machines
        self._recorded: Records = dict(remembered or {})
        self._remembered: Records = self._recorded
        self._remember: Final = remember
        self._checking: Final = asyncio.Lock()
        self._judge()

    @property
    def recorded(self) -> Records:
        """As storage had them when it answered last."""
        return self._recorded

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        return await self.file.unwrap(wrapped, machine)

    async def new_key(self, machine: str) -> MachineKey:
        """Also raises VaultMisfitError and VaultUnrecordedError."""
        if self._machines is not None and not self._admits():
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self.check()
            except TimeoutError as exc:
                raise self._unrecorded("storage does not answer") from exc
            if not self._admits():
                raise self.problem or self._unrecorded("storage has no record of its key")
        return await self.file.new_key(machine)

    async def check(self) -> None:
        """Compares with storage, and records what is missing there. What is found is in `problem`. Whether storage does not answer is
        one only where it keeps new machines waiting."""
        if self._machines is None:
            return
        async with self._checking:
            try:
                recorded = await self._record(self._machines())
            except UnderstudyError as exc:
                if not self._admits() and not isinstance(self.problem, VaultMisfitError):
                    self._note(self._unrecorded(f"{exc.what}: {exc.cause}" if exc.cause else exc.what))
                return
            self._recorded = recorded
            self._judge()
            if recorded != self._remembered and self._remember is not None:
                await self._remember(recorded)
                self._remembered = recorded

    # ---- inside

    def _admits(self) -> bool:
        return admits(self.file.fingerprints, self.file.current, self._recorded)

    def _judge(self) -> None:
        wrong = misfits(self.file.fingerprints, self._recorded)
        if not wrong:
            self._note(None)
            return
        goes_on = "" if self._admits() else "; machines that are new wait"
        self._note(
            VaultMisfitError(
                f"The vault file {self.file.path} is not the one of this storage",
                cause=f"{', '.join(wrong)} (it holds {', '.join(self.file.fingerprints)}){goes_on}",
            )
        )

    def _note(self, problem: UnderstudyError | None) -> None:
        before, self.problem = self.problem, problem
        if problem is not None and (before is None or before.as_dict() != problem.as_dict()):
            _log.error("vault: trouble", **problem.as_dict())
        elif problem is None and before is not None:
            _log.info("vault: trouble is over")

    def _unrecorded(self, cause: str) -> VaultUnrecordedError:
        return VaultUnrecordedError(
            f"It is not known whether the vault file {self.file.path} is the one of this storage", cause=cause
        )

    async def _record(self, machines: MachineStorage) -> Records:
        """All that storage knows, with our keys if it knows no other."""
        ours = self.file.fingerprints
        while True:
            last, recorded = await _recorded(machines)
            known = await _known(machines, recorded)
            missing = sorted(ours.keys() - recorded.keys())
            if not missing or misfits(ours, known):
                return known
            if not recorded:
                await machines.vault.ensure_container()
            record = VaultKeyRecord(
                key_id=missing[0], fingerprint=ours[missing[0]], created_ns=time.time_ns()
            )
            try:
                await machines.vault.create(f"{FOLDER}{last + 1:06d}.json", msgspec.json.encode(record))
            except BlobExistsError:
                continue  # somebody was faster, or the answer to our own create was lost
            _log.info("vault key recorded in storage", key_id=record.key_id)


def guarded(vault: Vault, machines: MachineStorage) -> Vault:
    """The vault of a daemon that makes new keys: a file that it has itself is compared with storage, as the config server does with its."""
    return RecordedVault(vault, lambda: machines) if isinstance(vault, FileVault) else vault


async def known_keys(machines: MachineStorage) -> Records:
    """The vault keys that storage knows: those recorded or, where none is, those that the machines' documents name. Raises StorageError,
    IntegrityError."""
    _, recorded = await _recorded(machines)
    return await _known(machines, recorded)


async def _known(machines: MachineStorage, recorded: Records) -> Records:
    return recorded or dict.fromkeys(await _named_by_machines(machines), "")


async def _recorded(machines: MachineStorage) -> tuple[int, dict[str, str]]:
    """The last number that is taken, and the recorded keys."""
    last, found = 0, dict[str, str]()
    try:
        async for info in machines.vault.list(FOLDER):
            number = info.name.removeprefix(FOLDER).removesuffix(".json")
            if not number.isdecimal():
                continue
            last = max(last, int(number))
            try:
                # What is longer is none, whoever put it there.
                data = await machines.vault.read(info.name, 0, _MOST_B)
                record = decoding.decode(data, type=VaultKeyRecord)
            except BlobNotFoundError:
                continue
            except UNDECODABLE as exc:
                raise IntegrityError(
                    f"The record {info.name} of a vault key cannot be read",
                    cause=str(exc),
                    action="Restore it (an older version of the blob), or delete it.",
                ) from exc
            found[record.key_id] = record.fingerprint
    except ContainerMissingError:
        return 0, {}
    return last, found


async def _named_by_machines(machines: MachineStorage) -> set[str]:
    """The vault keys under which the machines' keys are wrapped."""

    async def key_id(machine: str, container: str) -> str:
        try:
            return (await key_document(machines.at(machine, container), machine)).key_id
        except (BlobNotFoundError, ContainerMissingError, IntegrityError):
            return ""  # nothing of it can be opened by any vault, but for what its segments say themselves

    places = list((await machines.machines()).items())
    found: set[str] = set()
    for part in _parts(places):
        found.update(await asyncio.gather(*(key_id(*place) for place in part)))
    return found - {""}


def _parts(places: list[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    return (places[at : at + _AT_ONCE] for at in range(0, len(places), _AT_ONCE))
