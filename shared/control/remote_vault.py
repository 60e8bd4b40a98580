"""A vault at the other end of the network: process servers and master targets are given data keys by the config server.

    unwrap ─► memory ─► key cache ─► config server ─► memory and key cache ─► the key

Only what was never asked for before needs the config server, which may be away for weeks, over any number of restarts. A key is in the
cache, durably, before it is first used: so a machine whose batches were ever acknowledged here is served here without the config server.
A cache that cannot be read or written is told (`problem`) and stops nobody: while it cannot be written, keys are in memory only; what
could not be read is looked at again, and is never written over but with the same key.

The keys of a machine that was deleted go (`forget`), from memory and disk. One that is asked for again is got anew.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, ParamSpec, Self, TypeVar

import msgspec

from shared import api
from shared.api import Route
from shared.api.keys import KeyRequest, MachineKeyGrant
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.daemon import logging
from shared.daemon.single_writer import SingleWriter
from shared.errors import (
    KeyCacheError,
    KeyUnavailableError,
    NoThreadError,
    PeerError,
    UnderstudyError,
    UnreachableError,
    WrongKeyError,
)
from shared.keys.key_cache import FOLDER, CachedKey, KeyCache
from shared.keys.sealing import MachineKey
from shared.keys.vault import FileVault, Vault, WrappedKey
from shared.keys.vault_record import RecordedVault
from shared.status import Problem
from shared.trust import tls
from shared.trust.pointer import Whereabouts
from shared.trust.tls import TlsFiles
from shared.vocabulary import Severity
from shared.waiting import wait_for

_log = logging.get()
_Q = TypeVar("_Q", bound=msgspec.Struct)
_P = ParamSpec("_P")
_T = TypeVar("_T")

_ASK_S: Final = 10.0
"""Less than a session's patience for a log to open."""
_RETRY_S: Final = 60.0
"""Between tries to write the cache, or to read what could not be read."""


class _Id(NamedTuple):
    machine: str
    key_id: str
    wrapped: bytes


class RemoteVault:
    """An async context manager. `files`: who this daemon is."""

    def __init__(self, url: str, files: TlsFiles, cache: KeyCache, where: Whereabouts | None = None) -> None:
        self._where: Final = where or Whereabouts(url, files.cert, files.ca)
        self._context: Final = tls.client_context(files, tls.CONFIG_SERVER)
        self._client: Final = RestClient(url, self._context, timeout_s=_ASK_S)
        self._cache: Final = cache
        self._keys: Final[dict[_Id, bytes]] = {}
        self._asking: Final[dict[_Id, asyncio.Lock]] = {}
        self._writer: Final = SingleWriter("store keys", self._store)
        self._unstored: Final[set[_Id]] = set()
        """What is in memory, and not (as it should be) on the disk."""
        self._unwanted: Final[set[_Id]] = set()
        """What is on the disk, and is to go."""
        self._unwritable: KeyCacheError | None = None
        self._unreadable: KeyCacheError | None = None
        self._told: KeyCacheError | None = None
        self._wake: Final = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._load()
        self._tending = asyncio.create_task(self._tend(), name="key cache")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        await self._writer.close()
        await self._client.close()

    @property
    def problem(self) -> KeyCacheError | None:
        """What is wrong with the cache."""
        return self._unwritable or self._unreadable

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        """Also raises KeyUnavailableError."""
        id_ = _Id(machine, wrapped.key_id, wrapped.wrapped)
        if id_ in self._keys:
            return self._keys[id_]
        async with self._asking.setdefault(id_, asyncio.Lock()):  # several who want it ask once
            if id_ not in self._keys and not await self._found(id_):
                request = KeyRequest(key_id=wrapped.key_id, wrapped=wrapped.wrapped)
                key = await self._ask(api.KEY_UNWRAP, request, machine)
                if (key.key_id, key.wrapped) != (wrapped.key_id, wrapped.wrapped):
                    raise _unavailable(machine, PeerError("", cause="it answered with another key"))
                await self._keep(id_, key)
        return self._keys[id_]

    async def new_key(self, machine: str) -> MachineKey:
        """Also raises KeyUnavailableError."""
        key = await self._ask(api.KEY_CREATE, Nothing(), machine)
        # Before anybody can have seal anything with it: from here on the config server may go away.
        await self._keep(_Id(machine, key.key_id, key.wrapped), key)
        return key

    def renewed(self, chain: tls.Chain) -> None:
        """Our certificate, perhaps also our private key, was replaced. Whoever is killed before the cache is sealed with the new one
        finds it not to open and asks again: the config server was there a moment ago.
        """
        tls.present(self._context, chain)
        self._unstored.update(self._keys)
        self._writer.changed()
        self._wake.set()

    def forget(self, machine: str) -> None:
        """It was deleted: its keys go, soon, and tried again until they are gone."""
        for id_ in [id_ for id_ in self._keys if id_.machine == machine]:
            del self._keys[id_]
            self._unstored.discard(id_)
            self._unwanted.add(id_)
        self._writer.changed()
        self._wake.set()

    async def forgotten(self, machine: str) -> None:
        """`forget`, and they are gone. Raises KeyCacheError: then some may be there."""
        self.forget(machine)
        await self._writer.written()
        left = [self._cache.path(*id_) for id_ in self._unwanted if id_.machine == machine]
        if left:
            cause = "it is not written yet" if self._unwritable is None else self._unwritable.cause
            raise KeyCacheError(f"The key cache {min(left)} cannot be removed", cause=cause)

    async def _ask(self, route: Route[_Q, MachineKeyGrant], request: _Q, machine: str) -> MachineKey:
        self._client.url = self._where.url
        try:
            grant = await self._client.call(route, request, machine=machine)
            return MachineKey(
                grant.key_id,
                base64.b64decode(grant.wrapped, validate=True),
                base64.b64decode(grant.key, validate=True),
            )
        except WrongKeyError:
            raise
        except UnderstudyError as exc:
            raise _unavailable(machine, exc) from exc
        except ValueError as exc:
            raise _unavailable(machine, PeerError("", cause=f"its answer is no key: {exc}")) from exc

    # ---- the cache ----

    async def _load(self) -> None:
        try:
            found, errors = await _in_thread(self._cache.load)
        except KeyCacheError as exc:
            found, errors = [], [exc]
        for key in found:
            if (id_ := _Id(key.machine, key.key_id, key.wrapped)) not in self._unwanted:
                self._keys.setdefault(id_, key.key)
        self._unreadable = errors[0] if errors else None
        self._tell()

    async def _found(self, id_: _Id) -> bool:
        """Whether the cache has it by now: another process of this daemon may have written it, or somebody mended the disk."""
        goes = id_ in self._unwanted
        try:
            found = await _in_thread(self._cache.find, *id_)
        except KeyCacheError as exc:
            self._unreadable = exc
            self._tell()
            return False
        if found is not None:
            self._keys[id_] = found.key
            if goes:  # and may be gone since it was read
                self._unstored.add(id_)
                self._writer.changed()
                self._wake.set()
        return found is not None

    async def _keep(self, id_: _Id, key: MachineKey) -> None:
        self._keys[id_] = key.key
        self._unstored.add(id_)
        self._writer.changed()
        # What was under way may have begun before this key was there, and failed for another's sake: the next one has it.
        if not await self._writer.written() and not await self._writer.written():
            self._wake.set()

    async def _store(self) -> bool:
        """What is to be removed, and to be stored; whether all of it is. What hinders one hinders no other."""
        errors: list[KeyCacheError] = []
        for id_ in self._unwanted - self._keys.keys():
            try:
                await _in_thread(self._cache.remove, *id_)
            except KeyCacheError as exc:
                errors.append(exc)
            else:
                self._unwanted.discard(id_)
                if id_ in self._keys:  # asked for meanwhile
                    self._unstored.add(id_)
        self._unwanted.difference_update(self._keys)
        for id_ in list(self._unstored):
            # Before it is written: should the private key change meanwhile, it is put there again.
            self._unstored.discard(id_)
            if id_ not in self._keys:
                continue
            try:
                await _in_thread(self._cache.store, CachedKey(**id_._asdict(), key=self._keys[id_]))
            except KeyCacheError as exc:
                self._unstored.add(id_)
                errors.append(exc)
        # By path: a set has no order, and the words are to stay while the cause does.
        self._unwritable = min(errors, key=str, default=None)
        if self._unreadable is not None:
            await self._load()
        self._tell()
        return self._unwritable is None

    async def _tend(self) -> None:
        """Seals anew when that is wanted, and tries again what failed. Never returns."""
        while True:
            await wait_for(self._wake, None if self.problem is None else _RETRY_S)
            self._wake.clear()
            await self._writer.written()
            if self._unreadable is not None:
                await self._load()

    def _tell(self) -> None:
        before, self._told = self._told, self.problem
        if self._told is not None and (before is None or before.as_dict() != self._told.as_dict()):
            _log.warning("key cache: trouble; work goes on", **self._told.as_dict())
        elif self._told is None and before is not None:
            _log.info("key cache: trouble is over")


async def _in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Work with the cache. That there is no thread for it is a trouble of the cache: raises KeyCacheError."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except NoThreadError as exc:
        raise KeyCacheError("The keys on this host could not be read or stored", cause=exc.cause) from exc


def _unavailable(machine: str, exc: UnderstudyError) -> KeyUnavailableError:
    said = exc.cause or exc.what
    action = "" if isinstance(exc, UnreachableError) else exc.action
    return KeyUnavailableError(
        f"The key of machine {machine} is not here and cannot be had now",
        cause=f"the config server did not hand it out: {said}",
        action=f"{action} {KeyUnavailableError.default_action}".strip(),
    )


@contextlib.asynccontextmanager
async def opened(
    vault_file: Path | None,
    control_url: str,
    files: TlsFiles | None,
    state_dir: Path,
    where: Whereabouts | None = None,
) -> AsyncIterator[Vault]:
    """The vault that a daemon's configuration names. Raises UsageError for a vault file that cannot be used."""
    if vault_file is not None:
        yield FileVault(vault_file)
        return
    assert files is not None, "a configuration with control_url has tls"
    async with RemoteVault(control_url, files, KeyCache(state_dir / FOLDER, files), where) as vault:
        yield vault


def renewed(vault: Vault, chain: tls.Chain) -> None:
    """This daemon's certificate was replaced."""
    if isinstance(vault, RemoteVault):
        vault.renewed(chain)


def forget(vault: Vault, machine: str) -> None:
    """The machine was deleted, and this daemon has nothing more of it: its keys go in the background."""
    if isinstance(vault, RemoteVault):
        vault.forget(machine)


async def forgotten(vault: Vault, machine: str) -> None:
    """`forget`, and they are gone. Raises KeyCacheError."""
    if isinstance(vault, RemoteVault):
        await vault.forgotten(machine)


def warnings(vault: Vault) -> list[Problem]:
    """What is wrong about it, for the daemon's report: nothing that stops the machines that are there."""
    if isinstance(vault, RecordedVault) and vault.problem is not None:
        return [Problem(**vault.problem.as_dict())]
    if not isinstance(vault, RemoteVault) or vault.problem is None:
        return []
    return [Problem(**vault.problem.as_dict(), severity=Severity.WARNING)]
