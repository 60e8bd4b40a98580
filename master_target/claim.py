"""Claiming a machine: a lease on the blob masters/<machine>, whose metadata say who has it, for people.

The claim keeps two master targets from working on the same machine; that they could do no harm if they did is the seed disks'
own business (targets/page_blob.py). A master target that starts breaks the claims that carry its own name: they are its
predecessor's, which was killed. So it is back at work at once instead of after the lease's minute.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import socket
from typing import Final

from shared import logging
from shared.blob import BlobStore, Lease
from shared.errors import BlobExistsError, LeaseHeldError, LeaseLostError, UnderstudyError

_log = logging.get()

_LEASE_S: Final = 60
_RENEW_S: Final = 20
_RELEASE_S: Final = 5


def claim_blob(machine: str) -> str:
    return f"masters/{machine}"


class Claim:
    """Make it with `take`. `lost` is set once the claim is another's, or has ended."""

    def __init__(self, store: BlobStore, machine: str, owner: str, lease: Lease) -> None:
        self.lost = asyncio.Event()
        self.skew_s = 0.0
        """The storage's clock minus ours, when it was last looked at; whole seconds."""
        self._store = store
        self._blob = claim_blob(machine)
        self._owner = owner
        self._lease = lease
        self._renewal = asyncio.create_task(self._keep(), name=f"claim {machine}")

    @classmethod
    async def take(cls, store: BlobStore, machine: str, owner: str, *, ours: bool) -> Claim:
        """Raises LeaseHeldError while another has it. `ours`: break a claim of the same name (at start only)."""
        blob = claim_blob(machine)
        try:
            await store.create(blob, b"")
        except BlobExistsError:
            _log.debug("claim blob exists", blob=blob)
        try:
            lease = await store.acquire_lease(blob, _LEASE_S)
        except LeaseHeldError:
            if not ours or (await store.properties(blob)).metadata.get("owner") != owner:
                raise
            _log.info("claim of a predecessor broken", machine=machine, owner=owner)
            await store.break_lease(blob)
            lease = await store.acquire_lease(blob, _LEASE_S)
        claim = cls(store, machine, owner, lease)
        try:
            await claim._sign()
        except BaseException:
            await claim.release()
            raise
        return claim

    async def release(self) -> None:
        self._renewal.cancel()
        await asyncio.gather(self._renewal, return_exceptions=True)
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._lease.release()
        except (LeaseLostError, TimeoutError) as exc:
            _log.info("claim not given back: it ends by itself", blob=self._blob, cause=str(exc))

    async def _sign(self) -> None:
        """Say who we are, and learn the storage's clock from the answer."""
        metadata = {"owner": self._owner, "host": socket.gethostname(), "pid": str(os.getpid())}
        await self._store.set_metadata(self._blob, metadata, self._lease.id)
        changed = (await self._store.properties(self._blob)).last_modified
        self.skew_s = (changed - dt.datetime.now(dt.UTC)).total_seconds()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._lease.renew()
                await self._sign()
            except LeaseLostError as exc:
                _log.warning("claim lost", blob=self._blob, **exc.as_dict())
                self.lost.set()
                return
            except UnderstudyError as exc:
                _log.warning("claim not renewed", blob=self._blob, **exc.as_dict())
