"""Blob storage: one container of an Azure storage account (or of Azurite). Everything the project asks of
storage is here.

    BlobStore(PageBlobs(BlobCore))    core.py: pool, retry, errors; pages.py: page blobs; store.py: the rest

All calls raise StorageError and its subclasses only: TransientError (retried here until the store's
deadline), StorageRefusedError, BlobExistsError, BlobNotFoundError, PreconditionError, LeaseHeldError,
LeaseLostError.
"""

from shared.blob.core import BlobConfig, Retry
from shared.blob.pages import PAGE, PAGE_WRITE_MAX_B
from shared.blob.store import FOR_EVER, BlobInfo, BlobStore, Lease

__all__ = ["FOR_EVER", "PAGE", "PAGE_WRITE_MAX_B", "BlobConfig", "BlobInfo", "BlobStore", "Lease", "Retry"]
