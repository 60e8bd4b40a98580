"""The process server: its cache, and whether the log in storage is the one that it continues."""

from __future__ import annotations

from shared.errors.storage import StorageError


class FencedError(StorageError):
    """Another process server has taken the machine's log: this one may write no more of it."""

    code = "US438"
    default_action = (
        "Nothing: the agent goes on with the newer process server. If it repeats, look for a clone."
    )


class SpoolError(StorageError):
    """The process server's cache disk failed; what was not durable was not acknowledged and is sent again."""

    code = "US439"
    default_action = "Check the cache disk (dmesg, smartctl); the agent repeats what was not acknowledged."


class SpoolFullError(SpoolError):
    code = "US480"
    default_action = "Free space on the cache disk; nothing was lost, the agent waits and sends again."


class NotOpenError(StorageError):
    """A machine's log is used before it was begun."""

    code = "US484"
    default_cause = "no agent has begun a session yet"
    default_action = "It opens when the agent connects."


class SpoolLostError(SpoolError):
    """Batches that were acknowledged as spooled cannot be read back from the cache disk."""

    code = "US483"
    ends_epoch = True
    default_action = "Replace the cache disk. A new epoch begins by itself with a resync."


class SpoolStateError(SpoolError):
    """The note beside an epoch's spool files, which makes later checks stricter, cannot be written."""

    code = "US541"
    default_action = "Make room on the cache disk, or make it writable. Uploads go on; it is tried again."


class SpoolLeftoversError(SpoolError):
    """Spool files that are in storage cannot be deleted, and take room."""

    code = "US542"
    default_action = "Make the cache disk writable. Nothing is lost; it is tried again."


class SpoolVersionError(SpoolError):
    """A spool file was written by a newer program. It stays as it is."""

    code = "US401"
    default_action = "Run the version that wrote it until everything is uploaded, or upgrade again."


class SetAsideError(StorageError):
    """Acknowledged batches that can never be listed, because the log went on without them, are kept aside."""

    code = "US402"
    default_action = "Nothing, if the machine went on elsewhere. Delete the folder when nobody needs it."


class UploadsStoppedError(StorageError):
    """Acknowledged batches wait on the process server, and none gets to storage. What they say of the cause is the cause's own."""

    code = "US403"
    default_action = "Check the storage account and the network to it. Until then points stand still."


class StorageForgotError(StorageError):
    """Acknowledged data is gone from storage: the log has a hole that nobody here can fill."""

    code = "US481"
    ends_epoch = True
    default_cause = "storage has lost data that it had acknowledged"
    default_action = "A new epoch begins by itself with a resync; look for a failover of the storage account."


class EpochRefusedError(StorageError):
    """The agent's epoch is not the newest of its machine, or storage never heard of it."""

    code = "US482"
    ends_epoch = True
    default_action = "A new epoch begins by itself with a resync; if it repeats, look for a clone."


class OtherEpochError(EpochRefusedError):
    """The epoch that bears this number in storage is another one: the claims differ (shared/log/epoch_id.py)."""

    code = "US520"
    default_action = (
        "A new epoch begins by itself with a resync. Look for a restore or a failover of the storage account,"
        " and for a copy of the machine."
    )


class CacheQuotaError(StorageError):
    """A machine has used up its part of the process server's cache; its credit is 0 until some is
    uploaded."""

    code = "US485"
    default_action = "Storage takes less than the machine writes: check the upload, or raise the quota."


class CacheFillingError(StorageError):
    """Little is left of the cache until all machines are throttled."""

    code = "US607"
    default_action = "Check the upload to storage (`understudy machine show` names what waits), or make room on the cache disk."


class CacheLowError(StorageError):
    """The cache as a whole has no room above its floor; all machines are throttled."""

    code = "US486"
    default_action = "Check the upload to storage, or make room on the cache disk."
