"""Keeps the control state in storage: within 60 s of a change that is worth it, and once after each start.

Every LOOK_S the database is asked whether something has changed (state.py), which costs storage nothing, and this host 0.2 s of a thread
with 500 machines and 100,000 entries of the audit log (measured; the copy takes 0.4 s, and has 26 MB before it is compressed). A change
costs one PUT, at most every PAUSE_S: 4,320 a day at the very most, and one a start where nothing changes. (The look which server is in
force is one GET every 10 s.)

The blob has the number of this server's generation, which no other server has; replicas over one database write the same, under the ETag
that they have seen *before* they read the database, so that an older content that lands late goes over none. What could not be put back is
no state, and is not put over one that can; nor is one with a vault that lacks a key that storage knows.

**It is there still?** Somebody may delete it, or put an older version back, and a replica whose vault or configuration is another one may
have written. So now and then its ETag is asked for, and where that is not the one that was written, it is put once more. A server that ends
puts what it has, if that takes no longer than a few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from config_server.config import ConfigServerConfig
from config_server.recovery import sealed, state
from config_server.recovery.generation import Force, state_blob
from config_server.rules.clock import rfc3339
from config_server.store.database import Database
from shared.blob import BlobStore, Retry
from shared.crashpoints import reach
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    ControlStateUnstoredError,
    DatabaseError,
    PreconditionError,
    TransientError,
    UnderstudyError,
)
from shared.keys.vault import FileVault

_log = logging.get()

LOOK_S: Final = 15.0
PAUSE_S: Final = 20.0
CHECK_S: Final = 300.0
"""How often it is looked whether it is there as it was put."""
LAST_S: Final = 5.0
"""So long an end waits for the last one."""
LATE_S: Final = 300.0
"""So long a change may wait before that is a problem."""
_RETRY: Final = Retry(deadline_s=60.0, attempt_s=20.0)
_NONE: Final = ""
"""As an ETag: there is no blob."""


async def _fits() -> None:
    return None


class Keeping:
    def __init__(
        self,
        db: Database,
        config: ConfigServerConfig,
        vault: FileVault,
        force: Force,
        storage: Callable[[], BlobStore],
        clock: Callable[[], float] = time.monotonic,
        misfit: Callable[[], Awaitable[UnderstudyError | None]] = _fits,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`storage` gives the vault container; `misfit` says what the vault lacks of what storage knows; `is_behind`: this server's files
        lack the CA by which daemons have certificates. (It says so, US656; a replica that has it keeps the state.)"""
        self._is_behind: Final = is_behind
        self._clock: Final = clock
        self._misfit: Final = misfit
        self._checked_s = -1e9
        self._db: Final = db
        self._config: Final = config
        self._vault: Final = vault
        self._force: Final = force
        self._storage: Final = storage
        self._kept = b""
        """The digest of what storage has."""
        self._put_s = -1e9
        self._waits_since_s: float | None = None
        self._why = "it was not tried yet"
        self._kept_ns = self._kept_mono_ns = 0
        """Of when that is, by the time of day and monotonic."""
        self._etag: str | None = None
        """Of what was seen, or put, last; None: it is to be seen first."""
        self._name = ""
        """Of which blob."""

    @property
    def error(self) -> ControlStateUnstoredError | None:
        since_s = self._waits_since_s
        if since_s is None or self._clock() - since_s < LATE_S:
            return None
        last = f"; what is there is of {rfc3339(self._kept_ns)}" if self._kept_ns else ""
        return ControlStateUnstoredError(
            "What a config server on another host would begin with is not in storage",
            cause=f"{self._why}{last}",
        )

    def kept_ns(self) -> int:
        """Of when is what storage has (monotonic: the time of day may be set); 0: this process has put nothing yet."""
        return self._kept_mono_ns

    async def look(self) -> None:
        """Puts it, if it is time. Why it could not be is in `error` when that lasts. Raises DatabaseError."""
        if self._force.by is not None or self._is_behind():
            self._waits_since_s = None  # it is another one's to keep
            return
        if await state.digest(self._db, self._config, self._vault) == self._kept and await self._is_there():
            self._waits_since_s = None
            return
        now_s = self._clock()
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        if now_s - self._put_s < PAUSE_S:
            return
        try:
            await self._put()
        except DatabaseError:
            raise
        except UnderstudyError as exc:
            why = f"{exc.what}: {exc.cause}" if exc.cause else exc.what
            if why != self._why:
                _log.warning("the control state is not in storage yet", **exc.as_dict())
            self._why = why
        else:
            self._waits_since_s = None

    async def last(self) -> None:
        """What has changed since, when this server ends: for a few seconds it is tried, and nobody is told that it failed but the log."""
        if self._force.by is not None or self._is_behind() or not self._force.generation:
            return
        try:
            async with asyncio.timeout(LAST_S):
                if await state.digest(self._db, self._config, self._vault) != self._kept:
                    await self._put()
        except (UnderstudyError, TimeoutError) as exc:
            _log.warning("what was changed last is not in storage", cause=str(exc))

    async def _is_there(self) -> bool:
        """As it was put, as far as is known: storage that is away is asked again."""
        now_s = self._clock()
        if now_s - self._checked_s < CHECK_S:
            return True
        self._checked_s = now_s
        try:
            found = await self._storage().with_retry(_RETRY).properties(state_blob(self._force.generation))
        except (BlobNotFoundError, ContainerMissingError):
            etag = _NONE
        except UnderstudyError as exc:
            _log.info("not looked whether the control state is in storage", **exc.as_dict())
            return True
        else:
            etag = found.etag
        if etag == self._etag:
            return True
        _log.warning("the control state in storage is not the one that was put there")
        self._etag = None
        return False

    async def _put(self) -> None:
        generation = self._force.generation
        if not generation:
            raise TransientError("It waits", cause="storage has not said yet which config server is in force")
        if (lacks := await self._misfit()) is not None:
            raise lacks
        name = state_blob(generation)
        await self._see(name)  # before the database is read: what somebody has put since is not older
        made_ns, mono_ns = time.time_ns(), time.monotonic_ns()
        parts, digest = await state.gathered(self._db, self._config, self._vault)
        data = await in_thread(self._sealed, parts, generation, made_ns)
        self._put_s = self._clock()
        reach("state.before-put")
        await self._write(name, data)
        reach("state.put")
        self._kept, self._kept_ns, self._kept_mono_ns = digest, made_ns, mono_ns
        _log.info("control state kept in storage", generation=generation, size_b=len(data))

    def _sealed(self, parts: dict[str, bytes], generation: int, made_ns: int) -> bytes:
        now = FileVault(self._vault.path)  # which may have got a key since this server began
        return sealed.seal(parts, now, generation=generation, made_ns=made_ns)

    async def _see(self, name: str) -> None:
        if self._etag is None or name != self._name:
            try:
                self._etag = (await self._storage().with_retry(_RETRY).properties(name)).etag
            except BlobNotFoundError:
                self._etag = _NONE
        self._name = name

    async def _write(self, name: str, data: bytes) -> None:
        vault = self._storage().with_retry(_RETRY)
        before, self._etag = self._etag, None
        try:
            if before == _NONE:
                self._etag = await vault.create(name, data)
            else:
                self._etag = await vault.replace(name, data, if_match=before)
        except (BlobExistsError, PreconditionError, BlobNotFoundError) as exc:
            raise TransientError(
                f"{name} was written by somebody else", cause="a replica, or an attempt of before"
            ) from exc
