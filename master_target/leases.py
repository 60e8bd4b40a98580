"""Holding a lease on a blob for as long as this process works on it.

A lease of a minute is renewed every quarter of it. Whatever a renewal meets, it is cut short in time for the next: three fit into
what is left. One that was not renewed is given up before it ends, by this process's own monotonic clock and counted from before the
request that took it, so that two never believe at once that they hold it: whether storage hangs, refuses or is away, or this
process stood still.
"""

from __future__ import annotations

import asyncio
from typing import Final

from shared.blob import BlobStore, Lease
from shared.daemon import logging
from shared.errors import (
    BlobNotFoundError,
    LeaseHeldError,
    LeaseLostError,
    StorageError,
    TransientError,
    UnderstudyError,
)

_log = logging.get()

_LEASE_S: Final = 60
_RENEW_S: Final = 15.0
_ATTEMPT_S: Final = 10.0
_AGAIN_S: Final = 2.0
_MARGIN_S: Final = 5.0
"""A lease is given up so long before it ends."""
_RELEASE_S: Final = 5


class KeptLease:
    """A lease that is renewed until `release`. `lost` is set when somebody else has it, or soon may: its blob may be gone."""

    def __init__(self, lease: Lease, taken_s: float) -> None:
        """`taken_s`: when it was asked for, at the latest (the loop's clock)."""
        self.id: Final = lease.id
        self.lost = asyncio.Event()
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._held_until_s = taken_s + _LEASE_S - _MARGIN_S
        self._renewal = asyncio.create_task(self._keep(), name=f"lease {lease.name}")

    @classmethod
    async def take(cls, store: BlobStore, blob: str, *, by_force: bool = False) -> KeptLease:
        """Raises LeaseHeldError while somebody else has it; `by_force` ends that lease instead."""
        try:
            return await cls._acquire(store, blob)
        except LeaseHeldError:
            if not by_force:
                raise
        await store.leases.break_now(blob)
        return await cls._acquire(store, blob)

    async def is_held(self) -> bool:
        """False, and `lost` is set, when storage says so; True also when it does not answer in time."""
        if not self.lost.is_set():
            try:
                await self._renew(self._loop.time() + _ATTEMPT_S)
            except (LeaseLostError, BlobNotFoundError):
                self.lost.set()
            except UnderstudyError as exc:
                _log.warning("lease not looked at", blob=self._lease.name, **exc.as_dict())
        return not self.lost.is_set()

    async def release(self) -> None:
        """Give it back. If that fails, nothing is wrong: it ends by itself within a minute."""
        self._renewal.cancel()
        await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._lease.release()
        except (LeaseLostError, BlobNotFoundError):
            _log.info("lease was another's already, or went with its blob", blob=self._lease.name)
        except TimeoutError:
            _log.warning("lease not given back: storage does not answer", blob=self._lease.name)
        except StorageError as exc:
            _log.warning("lease not given back", blob=self._lease.name, **exc.as_dict())

    @classmethod
    async def _acquire(cls, store: BlobStore, blob: str) -> KeptLease:
        """A request that was answered late, or by its repetition, may have taken it at its begin."""
        began_s = asyncio.get_running_loop().time()
        return cls(await store.leases.acquire(blob, _LEASE_S), began_s)

    async def _keep(self) -> None:
        pause_s = _RENEW_S
        while True:
            left_s = self._held_until_s - self._loop.time()
            await asyncio.sleep(max(0.0, min(pause_s, left_s)))
            began_s = self._loop.time()
            if began_s >= self._held_until_s:
                break
            try:
                await self._renew(min(began_s + _ATTEMPT_S, self._held_until_s))
            except (
                LeaseLostError,
                BlobNotFoundError,
            ) as exc:  # whoever makes the blob anew may have it at once
                _log.warning("lease lost", blob=self._lease.name, **exc.as_dict())
                self.lost.set()
                return
            except UnderstudyError as exc:
                _log.warning("lease not renewed", blob=self._lease.name, **exc.as_dict())
                pause_s = _AGAIN_S
            else:
                self._held_until_s, pause_s = began_s + _LEASE_S - _MARGIN_S, _RENEW_S
        _log.warning("lease given up: it could not be renewed in time", blob=self._lease.name)
        self.lost.set()

    async def _renew(self, until_s: float) -> None:
        """Also a patient store's request, which would go on for ever, ends then."""
        try:
            async with asyncio.timeout_at(until_s):
                await self._lease.renew()
        except TimeoutError as exc:
            raise TransientError(
                f"The lease of {self._lease.name} was not renewed", cause="storage did not answer in time"
            ) from exc
