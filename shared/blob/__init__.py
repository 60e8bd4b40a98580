"""Blob storage: containers of one Azure storage account (or of Azurite). Everything the project asks of
storage is here.

    store      BlobStore, what callers use, over one container: whole, block and append blobs; composed of
    pages      page blobs (`BlobStore.pages`)
    leases     leases (`BlobStore.leases`)
    policies   stored access policies (`BlobStore.policies`), and tokens under them
    reading    a blob's bytes: all that were asked for, or an error
    core       how a request is made: the one retry layer, which all share
    answers    the table of error codes: foreign errors made ours, and what becomes of the request
    lanes      how many requests at a time: small and bulk ones apart, fewer when storage throttles
    connection one HTTPS pool under Azure's SDK, with transport (how requests reach the socket, or the proxy)
    retried    what stores and the machines of an account share: patience, and an end
    config     where the vault's container is
    check/     is an account fit for it? Before anything is built there

All calls raise StorageError and its subclasses only: TransientError (retried here until the store's deadline),
StorageRefusedError (an operator must act), StorageRequestError (a bug), and the answers that callers act upon:
BlobExistsError, BlobNotFoundError, BlobTooShortError, PreconditionError, LeaseHeldError, LeaseLostError.
"""

from shared.blob.config import BlobConfig
from shared.blob.core import BlobCore, Missing, Retry
from shared.blob.leases import FOR_EVER, Lease
from shared.blob.pages import PAGE, PAGE_WRITE_MAX_B
from shared.blob.retried import Retried
from shared.blob.store import BlobInfo, BlobStore, Content

__all__ = [
    "FOR_EVER",
    "PAGE",
    "PAGE_WRITE_MAX_B",
    "BlobConfig",
    "BlobCore",
    "BlobInfo",
    "BlobStore",
    "Content",
    "Lease",
    "Missing",
    "Retried",
    "Retry",
]
