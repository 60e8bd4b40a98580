"""Blob storage: what it answers, and who must act. Only a TransientError is ever tried again."""

from __future__ import annotations

from shared.errors.base import UnhealthyError


class StorageError(UnhealthyError):
    code = "US430"

    is_refusal = False
    """Storage itself answered that it did not do it. Else nobody knows whether it did, or still will: no answer came, what answered is not
    storage, or storage did not end what it had begun. (shared/blob/answers.py)"""


class TransientError(StorageError):
    code = "US431"
    default_action = (
        "Check the network and the storage account. Servers try again by themselves; run a command again."
    )


class ThrottledError(TransientError):
    """Storage is busy and says so. `retry_after_s` is the pause that it asks for; 0 if it names none."""

    code = "US494"
    default_action = "Nothing: requests become fewer by themselves. If it lasts, the storage account is too small for what is asked of it."

    def __init__(self, what: str, *, cause: str = "", action: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what, cause=cause, action=action)
        self.retry_after_s = retry_after_s


class KeyUnavailableError(TransientError):
    """A machine's data key was never here, and the config server, which has it, does not hand it out now."""

    code = "US510"
    default_action = "The machine waits, and goes on by itself once the config server answers; those whose keys are here go on."


class VaultUnrecordedError(TransientError):
    """No new key is wrapped under a vault of which storage knows nothing, and storage cannot be asked or told now."""

    code = "US561"
    default_action = "Machines that are new wait, and go on by themselves once the config server reaches storage and may write there."


class StorageRequestError(StorageError):
    """Storage understood the request and says that it is wrong: no repetition helps."""

    code = "US489"
    default_action = "Report it with this message; what else the machine needs goes on."


class StorageRefusedError(StorageError):
    """Storage answers, but does not let us in: key, role, certificate, firewall, or the account itself. An
    operator must act; subclasses say what is wrong.
    """

    code = "US432"
    default_action = "Check the storage account's URL, its key or role assignment, and its certificate."


class StorageKeyError(StorageRefusedError):
    code = "US495"
    default_cause = "the storage account does not accept the key"
    default_action = (
        "Put one of the account's two access keys into the account key file, and restart the service, which reads "
        "it at its start."
    )


class GrantEndedError(StorageRefusedError):
    """Storage does not take what the config server had granted: its time is over, it was revoked, or it never included this."""

    code = "US501"
    default_action = (
        "Run the same command again: it gets a new grant, and a restore goes on where it stopped. If that is refused as well, "
        "`understudy grant list MACHINE` shows who revoked it."
    )


class StorageRightsError(StorageRefusedError):
    code = "US496"
    default_action = (
        "Assign the role Storage Blob Data Contributor on the account to this service's identity, and let the "
        "account's network rules admit this host."
    )


class StorageRoleError(StorageRightsError):
    """An identity was let in, and its role does not include this."""

    code = "US640"
    default_action = (
        "Assign the role Storage Blob Data Contributor on the account to this service's identity."
    )


class StorageIdentityError(StorageRefusedError):
    """No key is configured, and Azure gives this host no identity."""

    code = "US446"
    default_action = (
        "Give this host a managed identity with a role on the account, or give the account's key: --blob-key-file FILE; in a configuration"
        " account_key_file."
    )


class ContainerMissingError(StorageRefusedError):
    code = "US497"
    default_cause = "the container does not exist"
    default_action = "Check the names of account and container. If the container was deleted, restore it (soft delete) first."


class AccountMissingError(StorageRefusedError):
    code = "US498"
    default_action = "Check the account's URL; whether the account still exists and is enabled; and DNS, if it has a private endpoint."


class PublicAccessRefusedError(StorageRefusedError):
    code = "US499"
    default_cause = "the request came without credentials, and the account admits no public access"
    default_action = (
        "Leave public access off; give this service the account's key, or an identity with a role."
    )


class StorageClockError(StorageRefusedError):
    """Storage refuses what is signed at a time too far from its own."""

    code = "US487"
    default_action = "Set this host's clock right (NTP: timedatectl, chronyc tracking); then it goes on."


class StorageCertificateError(StorageRefusedError):
    code = "US488"
    default_action = (
        "Give the CA that signed it (--blob-ca-file FILE; in a configuration ca_file), or find out what answers in the account's"
        " place."
    )


class StorageProtectedError(StorageRefusedError):
    """The account is set up so that what we must do is forbidden: immutability, legal hold, encryption."""

    code = "US448"
    default_action = "Change the account's data protection or encryption settings; docs/operations.md says what they must be."


class NotStorageError(StorageRefusedError):
    """Something between us and the account answers in its place: it knows nothing of what storage did."""

    code = "US447"
    default_action = (
        "Find the proxy, portal or firewall between this host and the account, and let blob storage pass."
    )


class BlobExistsError(StorageError):
    code = "US433"


class BlobNotFoundError(StorageError):
    code = "US434"


class PreconditionError(StorageError):
    """A conditional request found the blob changed (ETag, append position, sequence number)."""

    code = "US435"


class RangeError(PreconditionError):
    """The range that was to be read begins at or behind the blob's end. Nothing else that a condition can say means that."""

    code = "US590"


class BlobTooShortError(StorageError):
    """The blob ends before the range that was to be read."""

    code = "US449"
    default_action = "Its writer has not finished, or another program shortened it: see the machine's events."


class LeaseHeldError(StorageError):
    """Somebody else holds the lease."""

    code = "US436"
    default_action = "Nothing, if another of our servers is at work on it; it is tried again."


class LeaseLostError(StorageError):
    """The lease that the request named is not, or no longer, the blob's lease."""

    code = "US437"
    default_action = "Nothing: whoever holds the lease now goes on; it is tried again."
