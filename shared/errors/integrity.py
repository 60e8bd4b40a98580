"""Data in storage is not what it must be: digest, key, order, records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.errors.base import UnhealthyError
from shared.errors.storage import StorageError


class SeedDiskError(StorageError):
    """A seed disk is not in the state that its own records promise, or its source disk does not fit it."""

    code = "US491"
    default_action = "Look for another writer of this disk; a new epoch (resync) makes it whole again."


class DiskTooLargeError(SeedDiskError):
    code = "US477"
    default_action = (
        'Use another target for this machine (target = "image" of the master target), or leave the disk out.'
    )


class IntegrityError(UnhealthyError):
    code = "US440"


class SegmentMissingError(IntegrityError):
    code = "US441"
    default_action = "Restore a point before it, or a later one that has snapshots of its own."


class SegmentTruncatedError(SegmentMissingError):
    code = "US442"


class SegmentAlteredError(SegmentMissingError):
    code = "US443"


class OtherEpochSegmentError(SegmentMissingError):
    """A segment that another epoch with the same number wrote (shared/log/epoch_id.py)."""

    code = "US521"
    default_action = "Storage was restored in part, or mixed: restore all of the machine's log from one copy, or a point of a later epoch."


class SegmentVersionError(SegmentMissingError):
    """A newer program wrote it."""

    code = "US457"
    default_action = "Upgrade this program to the version of the one that wrote it."


class WrongKeyError(IntegrityError):
    code = "US444"
    default_action = (
        "Use the vault file of the installation that wrote it (the config server's), or a backup of it."
    )


class VaultMisfitError(IntegrityError):
    """Storage knows a vault key that the vault file lacks (shared/keys/vault_record.py)."""

    code = "US560"
    default_action = (
        "Put the installation's vault file, or its newest backup, in its place, and restart. If both files were used, put their keys "
        "together: python -m shared.keys.vault FILE --add OTHER. Only if a key is lost for good, with all that it sealed: delete its "
        "record, vault/N.json in the vault container."
    )


class IndexDamagedError(IntegrityError):
    code = "US445"
    default_action = "The log behind it cannot be used: restore an earlier point, resynchronise the machine."


class IndexMissingError(IndexDamagedError):
    """A blob of the log index, or the document of an epoch, is gone, and what is left says that it was there."""

    code = "US591"
    ends_epoch = True
    default_action = (
        "Restore an earlier point (`understudy point list`). A new epoch begins by itself, with a resync."
    )


class LogGapError(IntegrityError):
    """The log index does not lead from where we are to where we must be."""

    code = "US492"
    default_action = "Choose another point: what this one needs is lost. See `understudy point verify`."


class LogMisfitError(IntegrityError):
    """The log of an epoch contradicts the epoch's own list of disks."""

    code = "US458"
    default_action = "This is a bug in the agent, or a foreign log. Resynchronise the machine; restore a point of another epoch."


class MissingUnknownError(IntegrityError):
    """Seed disks name what of the source they lack, and nothing tells what that is (master_target/unreadable.py). Not raised: a status."""

    code = "US606"
    default_action = (
        'Points go on, and say "up to" of what of these disks was not written since. To know it exactly: resynchronise the machine; or '
        "delete the seed disks, which are then rebuilt from the log of their epoch. That takes the snapshots of all points with it: those "
        "of this epoch are taken anew; points of older ones then restore from their log only: slower, and not at all where that is gone."
    )

    @classmethod
    def of(cls, disks: Sequence[str], record: str) -> MissingUnknownError:
        return cls(
            f"How much of the source is missing on the seed disks {', '.join(disks)} is not known",
            cause=f"{record} does not have what they name (or what older versions wrote beside it cannot be read): it was deleted or "
            "damaged, or is an older copy than they",
        )


class ImageReplacedError(IntegrityError):
    """An image file is not the one that its state is of (master_target/targets/image_state.py). Not raised: a status."""

    code = "US608"
    default_action = (
        "Nothing, if it was meant: the disk is built anew from the log, and its points get their snapshots when it is where it was. "
        "Else see what did it (a backup that was restored, a copy, dd, chown): none but the master target may touch its image files."
    )

    @classmethod
    def of(cls, path: Path, at: str) -> ImageReplacedError:
        return cls(
            f"Disk image {path} is built anew from the log",
            cause=f"it is not the file, as it was left, that its state was of, which stood at {at}: it was replaced, moved, cut, written "
            "to, or its owner, mode or links were changed",
        )


class SnapshotError(IntegrityError):
    """A snapshot that a recovery point names is missing, or does not name the point's position."""

    code = "US493"
    default_action = "The point can still be restored from the log while that is retained."
