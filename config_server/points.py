"""Recovery points as people see them, from the catalog of a machine's log."""

from __future__ import annotations

from shared.blob import BlobStore
from shared.messages import PointList


async def read(store: BlobStore, machine: str) -> PointList:
    """The machine's points in log order, and the periods without any. Raises StorageError, IntegrityError."""
    raise NotImplementedError
