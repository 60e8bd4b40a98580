"""Who else may read or write what a set-up made: told, and taken from them.

What is made has the mode that it shall have, whatever the umask; what is there may be an earlier version's, or have passed through other
hands. A secret that others could read is closed to them, which harms nobody, and is told with what to do about what they may have read.
What is no secret, and an administrator's to change (a folder that others share, a configuration), is only told."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from shared.host import durable


class Access(NamedTuple):
    """A file or folder of ours, and who may do what with it."""

    path: Path
    mode: int
    """What others may do with it, at most."""
    uid: int
    """Whose it is; root may always be."""
    gid: int

    @classmethod
    def in_folder(cls, path: Path, mode: int = 0o600) -> Access:
        """Of the folder's owner, as what a daemon has in its own. Raises OSError."""
        found = path.parent.stat()
        return cls(path, mode, found.st_uid, found.st_gid)

    def wrong(self) -> str:
        """Who may do more, in words; "": nobody, or it is not there. Raises OSError."""
        try:
            return self._of(self.path.stat())
        except FileNotFoundError:
            return ""

    def close(self) -> str:
        """Takes that from them; what was and what is, in words. Raises StateFileError."""
        what = f"Others can use {self.path}, and could not be kept from it"
        action = "See to it (chown, chmod), and run the command again."
        with durable.named(what, action=action):
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if not stat.S_ISDIR(found.st_mode) and (
                    not stat.S_ISREG(found.st_mode) or found.st_nlink != 1
                ):
                    raise OSError(errno.EINVAL, "it is no plain file, or has a second name", str(self.path))
                was = self._of(found)
                if self._owner(found):
                    os.fchown(fd, self.uid, self.gid)
                os.fchmod(fd, stat.S_IMODE(found.st_mode) & (self.mode | 0o7700))
                os.fsync(fd)
                now = os.fstat(fd)
                if self._of(now):
                    raise OSError(errno.EINVAL, "its file system keeps no modes", str(self.path))
            finally:
                os.close(fd)
        return f"{was}; now it is {user_name(now.st_uid)}'s, and its mode {stat.S_IMODE(now.st_mode):04o}"

    def _of(self, found: os.stat_result) -> str:
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            return ""  # a unit that is masked leads to /dev/null
        return " and ".join(each for each in (self._owner(found), too_open(found, self.mode)) if each)

    def _owner(self, found: os.stat_result) -> str:
        return "" if found.st_uid in (0, self.uid) else f"it belongs to {user_name(found.st_uid)}"


def too_open(found: os.stat_result, mode: int) -> str:
    """What others than its owner may do beyond `mode`, in words; "": nothing."""
    there = stat.S_IMODE(found.st_mode)
    more = there & ~mode & 0o077
    may = [word for bits, word in ((0o044, "read"), (0o022, "write")) if more & bits]
    if stat.S_ISDIR(found.st_mode) and more & 0o011 and not may:
        may = ["enter"]
    return f"others can {' and '.join(may)} it: its mode is {there:04o}" if may else ""


def admits(found: os.stat_result, user: str) -> bool:
    """Whether that user may read it (a folder: enter it). Also where there is no such user yet."""
    try:
        whose = pwd.getpwnam(user)
    except KeyError:
        return True
    if whose.pw_uid == 0:
        return True
    wanted = 0o1 if stat.S_ISDIR(found.st_mode) else 0o4
    groups = os.getgrouplist(user, whose.pw_gid)
    shift = 6 if found.st_uid == whose.pw_uid else 3 if found.st_gid in groups else 0
    return bool(stat.S_IMODE(found.st_mode) >> shift & wanted)


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
