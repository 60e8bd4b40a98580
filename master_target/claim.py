"""Claiming a machine: a lease on the blob masters/<machine>, whose metadata say who has it, for people.

The claim keeps two master targets from working on the same machine; that they could do no harm if they did is the seed disks'
own business (targets/page_blob.py). A master target that starts breaks the claims that carry its own name: they are its
predecessor's, which was killed. So it is back at work at once instead of after the lease's minute.
"""

from __future__ import annotations

import asyncio
import os
import socket

from master_target.leases import KeptLease
from shared import logging
from shared.blob import BlobStore
from shared.errors import BlobExistsError, LeaseHeldError

_log = logging.get()


def claim_blob(machine: str) -> str:
    return f"masters/{machine}"


class Claim:
    """Make it with `take`."""

    def __init__(self, store: BlobStore, machine: str, lease: KeptLease) -> None:
        self._store = store
        self._blob = claim_blob(machine)
        self._lease = lease

    @classmethod
    async def take(cls, store: BlobStore, machine: str, owner: str, *, first: bool) -> Claim:
        """Raises LeaseHeldError while another has it. `first`: this process has not had it yet, so that a claim of the same owner is
        a predecessor's.
        """
        blob = claim_blob(machine)
        try:
            await store.create(blob, b"")
        except BlobExistsError:
            _log.debug("claim blob exists", blob=blob)
        try:
            lease = await KeptLease.take(store, blob)
        except LeaseHeldError:
            if not first or (await store.properties(blob)).metadata.get("owner") != owner:
                raise
            _log.info("claim of a predecessor broken", machine=machine, owner=owner)
            lease = await KeptLease.take(store, blob, by_force=True)
        claim = cls(store, machine, lease)
        try:
            metadata = {"owner": owner, "host": socket.gethostname(), "pid": str(os.getpid())}
            await store.set_metadata(blob, metadata, lease.id)
        except BaseException:
            await claim.release()
            raise
        return claim

    @property
    def lost(self) -> asyncio.Event:
        """Set once the claim is another's."""
        return self._lease.lost

    async def release(self) -> None:
        await self._lease.release()
