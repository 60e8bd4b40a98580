"""Holding a lease on a blob for as long as this process works on it."""

from __future__ import annotations

import asyncio
from typing import Final

from shared import logging
from shared.blob import BlobStore, Lease
from shared.errors import LeaseHeldError, LeaseLostError, UnderstudyError

_log = logging.get()

_LEASE_S: Final = 60
_RENEW_S: Final = 20
_RELEASE_S: Final = 5


class KeptLease:
    """A lease that is renewed until `release`. `lost` is set when somebody else has it."""

    def __init__(self, lease: Lease) -> None:
        self.id: Final = lease.id
        self.lost = asyncio.Event()
        self._lease = lease
        self._renewal = asyncio.create_task(self._keep(), name=f"lease {lease.name}")

    @classmethod
    async def take(cls, store: BlobStore, blob: str, *, by_force: bool = False) -> KeptLease:
        """Raises LeaseHeldError while somebody else has it; `by_force` ends that lease instead."""
        try:
            return cls(await store.leases.acquire(blob, _LEASE_S))
        except LeaseHeldError:
            if not by_force:
                raise
        await store.leases.break_now(blob)
        return cls(await store.leases.acquire(blob, _LEASE_S))

    async def release(self) -> None:
        """Give it back. If that fails, nothing is wrong: it ends by itself within a minute."""
        self._renewal.cancel()
        await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._lease.release()
        except LeaseLostError:
            _log.info("lease was another's already", blob=self._lease.name)
        except TimeoutError:
            _log.warning("lease not given back: storage does not answer", blob=self._lease.name)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._lease.renew()
            except LeaseLostError as exc:
                _log.warning("lease lost", blob=self._lease.name, **exc.as_dict())
                self.lost.set()
                return
            except UnderstudyError as exc:
                _log.warning("lease not renewed", blob=self._lease.name, **exc.as_dict())
