"""Claiming a machine: a lease on the blob `master` in its container, whose metadata say who has it, for people.

The claim keeps two master targets from working on the same machine; that they could do no harm if they did is the seed disks'
own business (targets/page_blob.py). A master target that starts breaks the claims that carry its own name: they are its
predecessor's, which was killed. So it is back at work at once instead of after the lease's minute.
"""

from __future__ import annotations

import asyncio
import os
import socket

from master_target.leases import KeptLease
from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import BlobExistsError, LeaseHeldError, LeaseLostError
from shared.log import names

_log = logging.get()


class Claim:
    """Make it with `take`."""

    def __init__(self, machine: str, lease: KeptLease) -> None:
        self._machine = machine
        self._lease = lease

    @classmethod
    async def take(cls, store: BlobStore, machine: str, owner: str, *, first: bool) -> Claim:
        """Raises LeaseHeldError while another has it. `first`: this process has not had it yet, so that a claim of the same owner is
        a predecessor's.
        """
        try:
            await store.create(names.MASTER, b"")
        except BlobExistsError:
            _log.debug("claim blob exists", machine=machine)
        try:
            lease = await KeptLease.take(store, names.MASTER)
        except LeaseHeldError:
            if not first or (await store.properties(names.MASTER)).metadata.get("owner") != owner:
                raise
            _log.info("claim of a predecessor broken", machine=machine, owner=owner)
            lease = await KeptLease.take(store, names.MASTER, by_force=True)
        claim = cls(machine, lease)
        try:
            metadata = {"owner": owner, "host": socket.gethostname(), "pid": str(os.getpid())}
            await store.set_metadata(names.MASTER, metadata, lease.id)
        except BaseException:
            await claim.release()
            raise
        return claim

    @property
    def lost(self) -> asyncio.Event:
        """Set once the claim is another's."""
        return self._lease.lost

    async def check(self) -> None:
        """Raises LeaseLostError once the claim is another's, as far as storage tells."""
        if not await self._lease.is_held():
            raise LeaseLostError(
                f"The claim on machine {self._machine} was lost",
                cause="another master target took it, somebody deleted its blob, or it could not be renewed in time",
            )

    async def release(self) -> None:
        await self._lease.release()
