"""What a daemon or a command needs of this host and cannot have: files to read or write, threads."""

from __future__ import annotations

from shared.errors.base import UnhealthyError
from shared.errors.storage import StorageError, TransientError


class NoThreadError(TransientError):
    """This host has no room for one more thread, or no memory. Nothing was done, and it says nothing of what was to be done."""

    code = "US604"
    default_action = (
        "Give this host and this service (TasksMax, MemoryMax) room for threads and memory. Servers and agents try again by "
        "themselves; run a command again."
    )


class LogLostError(UnhealthyError):
    """A daemon's log lines cannot be written. It works on, and what is wrong is in its reports, but not what happened."""

    code = "US540"
    default_action = "Make room where its log goes (journal, file), or start what reads it again."


class IdentityFileError(UnhealthyError):
    """A private key, a certificate or a CA could not be written on this host."""

    code = "US475"
    default_action = "Make room on the file system that holds it, or make it writable. What was there stays, and it is tried again."


class KeyCacheError(StorageError):
    """A file in which a daemon keeps a key that it was given. Nothing stops for it."""

    code = "US511"
    default_action = (
        "See that its folder is readable, writable and has room; it is tried again. Keys are asked for anew, which needs the config "
        "server. If this host was enrolled anew, or the file is damaged: it may be deleted."
    )


class StateFileError(StorageError):
    """A file of a daemon's own, which it needs to start or go on, cannot be read or written."""

    code = "US478"
    default_action = "Make room on its disk, or make it writable; then start the daemon again."


class DatabaseError(StateFileError):
    """The config server's database. What daemons report is still shown, from memory; nothing is remembered."""

    code = "US545"
    default_action = (
        "Check that its disk works, has space and is writable; if the file is damaged, restore a backup."
    )


class OutcomeUnknownError(DatabaseError):
    """A change of which nobody knows whether it was made: PostgreSQL was asked to, and did not answer."""

    code = "US637"
    default_action = (
        "Look whether it was made, and do it again if not. Whatever this server does by itself looks again."
    )


class NotMountedError(UnhealthyError):
    """A folder of a daemon's lies on another file system than before; mounted again, it is as it was."""

    code = "US595"


class HostNoteError(StateFileError):
    """Other programs of this host are not told which disks are protected; protection goes on."""

    code = "US546"
    default_action = (
        "Make room in /run, or make it writable; it is tried again. Meanwhile nothing warns who puts a spool, a lab or a restore onto "
        "a protected disk."
    )


class RevokedListError(StateFileError):
    """The list of revoked certificates is in force, but not on the disk."""

    code = "US543"
    default_action = (
        "Make room on its disk, or make it readable and writable; it is tried again. A restart while the config server is away "
        "would admit who was revoked."
    )


class WishDamagedError(StateFileError):
    """What the config server wanted of this agent is not known any more. That is neither "nothing" nor "stop"."""

    code = "US620"
    default_action = (
        "Say it again on the config server: what it says next is written anew. Or make the file readable, or put it back; or, if the"
        ' configuration alone is to count, write {"v": 1, "wish": null, "machine": "NAME"} into it, with the machine\'s name; and restart'
        " the agent. Until then what is captured stays captured."
    )


class WishForeignError(StateFileError):
    """The folder of the agent was copied, or its disk was put into another machine: what was wanted of that one is not wanted of this."""

    code = "US585"
    default_action = (
        "If this is the machine from now on (understudy machine rebind), say which of its disks are to be protected: understudy machine"
        " protect NAME. Else nothing: the file is never gone by, and may be deleted."
    )


class WishUnwrittenError(StateFileError):
    """What the config server wants cannot be kept, so it is not done: a restart would undo it."""

    code = "US621"
    default_action = (
        "Make room in the agent's state_dir, or make it writable; it is tried again every few seconds."
    )


class SideFileError(StateFileError):
    """Which copy of a machine is its active side is known, but not on the disk."""

    code = "US544"
    default_action = (
        "Make room on the cache disk, or make it writable; it is tried again. A restart while storage is away would keep the "
        "machine waiting."
    )


class BootFileError(StateFileError):
    """Which boot of a machine was admitted last is known, but not on the disk."""

    code = "US549"
    default_action = (
        "Make room on the cache disk, or make it writable; it is tried again. After a restart meanwhile, a copy of the machine would not "
        "be kept waiting for it, or the machine itself would wait for a moment."
    )


class UndroppedError(UnhealthyError):
    """A daemon still has something of a machine that was deleted, and could not be rid of it when it tried. Nothing is replicated there."""

    code = "US649"
    default_action = (
        "It is tried again by itself. Where it lasts, look at what the cause names, or restart the daemon."
    )


class ImageFileError(StorageError):
    """A disk image on a local file system: full, I/O error, too short."""

    code = "US490"
    default_action = (
        "Make room or repair the file system that holds it; the work then resumes where it stopped."
    )
