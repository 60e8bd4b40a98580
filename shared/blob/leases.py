"""Leases on blobs of the container. `BlobStore.leases`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from shared.blob.core import BlobCore
from shared.errors import BlobExistsError, LeaseHeldError, LeaseLostError

FOR_EVER: Final = -1
"""Duration of a lease that does not expire; only release or break ends it."""


class Lease(msgspec.Struct, frozen=True):
    """A lease that this process holds on a blob. `id` goes with each write to that blob."""

    core: BlobCore
    name: str
    id: str

    async def renew(self) -> None:
        """Raises LeaseLostError when it has expired and somebody else took it, or when it was broken."""
        await self.core.call(
            f"renew the lease of {self.name}", lambda: _client(self.core, self.name, self.id).renew()
        )

    async def release(self) -> None:
        """Gives it back. Raises LeaseLostError when it was not ours any more."""
        await self.core.call(
            f"release the lease of {self.name}",
            lambda: _client(self.core, self.name, self.id).release(),
        )


class Leases:
    def __init__(self, core: BlobCore) -> None:
        self._core = core

    async def acquire(self, name: str, seconds: int = 60, lease_id: str | None = None) -> Lease:
        """Seconds: 15 to 60, or FOR_EVER. LeaseHeldError while somebody else holds it; BlobNotFoundError
        without the blob.
        """
        lease_id = lease_id or str(uuid.uuid4())
        # The id is ours, not the server's: a repeated request whose first answer was lost succeeds.
        await self._core.call(
            f"take the lease of {name}",
            lambda: _client(self._core, name, lease_id).acquire(lease_duration=seconds),
        )
        return Lease(self._core, name, lease_id)

    async def break_now(self, name: str) -> None:
        """Ends whoever's lease at once. Nothing happens if there is none."""
        try:
            await self._core.call(
                f"break the lease of {name}",
                lambda: _client(self._core, name, None).break_lease(lease_break_period=0),
            )
        except LeaseLostError:
            return


@contextmanager
def existing_leased() -> Iterator[None]:
    """Around the creation of a blob that must not exist: one that exists, and is leased, is one that exists.

    Azure looks at the lease first and answers 412 LeaseIdMissing; Azurite 3.35 answers 409 BlobAlreadyExists.
    """
    try:
        yield
    except LeaseHeldError as exc:
        raise BlobExistsError(exc.what, cause="a blob of this name exists already, and is leased") from exc


def _client(core: BlobCore, name: str, lease_id: str | None) -> Any:
    from azure.storage.blob.aio import BlobLeaseClient

    return BlobLeaseClient(core.blob(name), lease_id=lease_id)
