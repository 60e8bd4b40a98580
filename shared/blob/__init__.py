"""Blob storage: one container of an Azure storage account (or of Azurite). Everything the project asks of
storage is here.

    store      BlobStore, what callers use: whole, block and append blobs; composed of
    pages      page blobs (`BlobStore.pages`)
    leases     leases (`BlobStore.leases`)
    core       how a request is made: the one retry layer, which all three share
    answers    foreign errors made ours
    connection one HTTPS pool under Azure's SDK, with transport (how bodies reach the socket)
    config     where the container is

All calls raise StorageError and its subclasses only: TransientError (retried here until the store's
deadline), StorageRefusedError, BlobExistsError, BlobNotFoundError, PreconditionError, LeaseHeldError,
LeaseLostError.
"""

from shared.blob.config import BlobConfig
from shared.blob.core import BlobCore, Retry
from shared.blob.leases import FOR_EVER, Lease
from shared.blob.pages import PAGE, PAGE_WRITE_MAX_B
from shared.blob.store import BlobInfo, BlobStore

__all__ = [
    "FOR_EVER",
    "PAGE",
    "PAGE_WRITE_MAX_B",
    "BlobConfig",
    "BlobCore",
    "BlobInfo",
    "BlobStore",
    "Lease",
    "Retry",
]
