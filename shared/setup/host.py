"""A daemon's host: its user, folders and unit. By systemd where root runs this on a host that systemd runs, else by hand: then the files
are of whoever runs this, and starting the daemon is his."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from shared.errors import ProgramPlaceError, UnitError, UsageError
from shared.host import durable
from shared.setup.files import Folder, GivenFile
from shared.setup.steps import Done, Outcome, Step
from shared.vocabulary import Role

ETC: Final = Path("/etc/understudy")
STATE: Final = Path("/var/lib/understudy")
PROGRAM: Final = Path("/opt/understudy")
"""What stands in the units; where these folders are others, there is no unit."""
CREDENTIAL: Final = Path("/etc/credstore/understudy.account-key")
"""The storage account's key, of which systemd gives each unit a copy."""
_BOOTED: Final = Path("/run/systemd/system")
_USERS: Final = {
    Role.CONFIG_SERVER: "understudy-config",
    Role.PROCESS_SERVER: "understudy-process",
    Role.MASTER_TARGET: "understudy-master",
    Role.AGENT: "root",
}
ROOTS_LOCKS: Final = Path("/run/understudy-setup")
_RUNTIME: Final = Path("/run/user")
_START_S: Final = 180.0
_UMASK: Final = 0o022
"""Of what systemd's tools make."""
_UNIT_FOLDER: Final = PurePosixPath("/etc/systemd/system")
_CHANGED: Final = (
    "Changes of yours belong into a drop-in (systemctl edit UNIT). To have this version's: the same command with --replace-units,"
    " then systemctl restart."
)


@dataclass(frozen=True)
class Host:
    role: Role
    etc: Path
    state: Path
    files: Mapping[PurePosixPath, str]
    """What systemd needs (deploy/systemd): path → content."""
    by_unit: bool
    replace_units: bool = False

    @classmethod
    def of(cls, role: Role, files: Mapping[PurePosixPath, str], options: argparse.Namespace) -> Host:
        """This one. Raises UsageError where the folders are root's and somebody else runs this."""
        is_usual = (options.etc, options.state) == (ETC, STATE)
        if is_usual and os.geteuid() != 0:
            raise UsageError(
                f"The {role} was not set up",
                cause=f"{ETC} and {STATE} are root's",
                action="Run it as root (sudo), or give folders of your own: --etc DIR --state DIR.",
            )
        by_unit = is_usual and not options.no_unit and _BOOTED.is_dir()
        return cls(
            role, options.etc.absolute(), options.state.absolute(), files, by_unit, options.replace_units
        )

    @property
    def module(self) -> str:
        return self.role.replace("-", "_")

    @property
    def config(self) -> Path:
        return self.etc / f"{self.role}.toml"

    @property
    def folder(self) -> Path:
        """Of its secrets."""
        return self.etc / self.role

    @property
    def state_dir(self) -> Path:
        return self.state / self.role

    @property
    def unit(self) -> str:
        return f"understudy-{self.role}"

    @property
    def user(self) -> str:
        """ "": whoever runs this."""
        return _USERS[self.role] if self.by_unit else ""

    @property
    def credential(self) -> Path:
        """Where its unit finds the storage account's key."""
        return Path(f"/run/credentials/{self.unit}.service") / CREDENTIAL.name

    def prepared(self, *, is_restored: bool = False) -> Iterator[Step]:
        """Users, folders, and the unit's file. `is_restored`: root may have put files from a backup into `state_dir`."""
        if self.by_unit:
            yield _Program()
            for path, text in sorted(self.files.items()):
                if path.parent != _UNIT_FOLDER or path.stem == self.unit:
                    yield GivenFile(
                        "unit-file", Path(path), text.encode(), otherwise=_CHANGED, replace=self.replace_units
                    )
            yield _Users(self)
            yield Folder(self.state, 0o755, reader=self.user)
        yield Folder(self.etc, 0o755, reader=self.user)
        yield Folder(self.folder, 0o700)
        yield Folder(self.state_dir, 0o700, self.user, is_restored=is_restored)


@contextlib.contextmanager
def alone(*folders: Path) -> Iterator[None]:
    """One set-up at a time of those of one user that share one of these folders (`--etc`, `--state`), be they there yet or not. The locks
    go with the process. (Root and a user do not see each other's: to share a place, one would have to trust what the other one can make.)

    A lock on the folder itself, or one above it, could be held by whoever can open that, which is anybody. So they are files in a folder
    that is root's, or this user's, alone, named by the folders' paths. Raises UsageError, StateFileError."""
    with contextlib.ExitStack() as held:
        with durable.named("Whether another set-up is at work could not be found out"):
            places = _locks()
            for folder in sorted({folder.resolve() for folder in folders}):
                for place in places:
                    _lock(held, place, folder)
        yield


def _locks() -> list[Path]:
    """The folders of the locks: all that there can be now. A user's /run/user/UID comes and goes with his sessions, and a home may be
    mounted with one; what two of his set-ups find for certain is that of /tmp, and where somebody took the name there, of his home.
    Raises OSError, UsageError."""
    uid = os.geteuid()
    places = [ROOTS_LOCKS] if uid == 0 else [*_below(uid), Path(f"/tmp/understudy-setup-{uid}")]
    if found := [place for place in places if _is_mine(place, uid)]:
        return found
    raise UsageError(
        "Nothing was set up",
        cause=f"{places[-1]}, in which the locks of this user's set-ups lie, is not a folder of his alone",
        action=f"See who made it (ls -ld {places[-1]}), remove it, and run the command again. If it is another user's, root can; or has a"
        f" folder made that is this user's alone: install -d -m 700 -o {uid} {_RUNTIME / str(uid)}.",
    )


def _is_mine(place: Path, uid: int) -> bool:
    """It is there, or made now, and nobody else's. Raises OSError for root's."""
    try:
        with contextlib.suppress(FileExistsError):
            place.mkdir(0o700)
        found = place.lstat()
    except OSError:
        if place == ROOTS_LOCKS:
            raise
        return False  # a home that is full, or mounted read-only
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022


def _below(uid: int) -> Iterator[Path]:
    """In folders in which nobody else can take the name; by what all set-ups of this user can find, whatever their environment."""
    for mine, name in ((_RUNTIME / str(uid), "understudy-setup"), (_home(uid), ".understudy-setup")):
        with contextlib.suppress(OSError):
            found = mine.stat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022:
                yield mine / name


def _home(uid: int) -> Path:
    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        return Path("/nonexistent")


def _lock(held: contextlib.ExitStack, place: Path, folder: Path) -> None:
    name = hashlib.sha256(
        os.fsencode(f"{os.uname().nodename}:{folder}")
    ).hexdigest()  # hosts may share a home
    fd = os.open(place / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    held.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise UsageError(
            "Nothing was set up",
            cause=f"another set-up is at work on this host, in {folder}",
            action="Wait until that one is done, and run the command again.",
        ) from exc


class _Program:
    """The units start what is in /opt/understudy."""

    async def look(self, dry_run: bool) -> Done:
        if not _is_the_units_program():
            raise ProgramPlaceError(
                "The unit would start another program than this one",
                cause=f"units start {PROGRAM}/bin/python, and this is {sys.prefix}",
                action=f"Install the program there (docs/install.md), and run {PROGRAM}/bin/python …; or --no-unit, and start it yourself.",
            )
        return Done(step="program", outcome=Outcome.CHECKED, what=str(PROGRAM))

    async def do(self) -> Done:
        raise NotImplementedError("it is never missing")


@dataclass(frozen=True)
class _Users:
    """The daemons' users and their folders below /etc/understudy, as sysusers.d and tmpfiles.d say."""

    host: Host

    async def look(self, dry_run: bool) -> Done:
        try:
            user = pwd.getpwnam(self.host.user)
            there = self.host.folder.stat().st_uid == user.pw_uid
        except (KeyError, FileNotFoundError):
            there = False
        return self._done(Outcome.KEPT if there else Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        of_ours = {path.parent.name: str(path) for path in self.host.files}
        _run("systemd-sysusers", of_ours["sysusers.d"])
        _run("systemd-tmpfiles", "--create", of_ours["tmpfiles.d"])
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        return Done(
            step="users", outcome=outcome, what=self.host.user, detail=f"its folder is {self.host.folder}"
        )


@dataclass(frozen=True)
class Unit:
    """Enabled, and started. `changed`: whether this run wrote what the daemon has read if it runs already."""

    host: Host
    changed: Callable[[], bool] = lambda: False

    async def look(self, dry_run: bool) -> Done:
        host = self.host
        if not host.by_unit:
            return Done(
                step="unit",
                outcome=Outcome.TO_DO,
                what=host.unit,
                detail="no unit was made: that takes root, a host that systemd runs, and the usual folders",
                action=f"Start it: {shlex.join((sys.executable, '-m', host.module, '--config', str(host.config)))}",
            )
        runs = _says("is-enabled", host.unit) == "enabled" and _says("is-active", host.unit) == "active"
        is_old = (
            _output("systemctl", "show", "--property=NeedDaemonReload", "--value", host.unit).strip() == "yes"
        )
        kept = runs and not is_old and not self.changed()
        return self._done(Outcome.KEPT if kept else Outcome.WOULD_CREATE)

    async def do(self) -> Done:
        unit = self.host.unit
        _run("systemctl", "daemon-reload")
        _run("systemctl", "enable", "--quiet", unit)
        if said := _restart(unit):
            lines = _output("journalctl", f"--unit={unit}", "--lines=40", "--no-pager", "--output=cat")
            cause, action = last_words(lines.splitlines()) or (said, "")
            raise UnitError(
                f"{unit} did not start",
                cause=cause,
                action=f"{action} Its log: journalctl -u {unit}. Then run the command again.".strip(),
            )
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        return Done(step="unit", outcome=outcome, what=self.host.unit, detail="enabled, and running")


def _is_the_units_program() -> bool:
    return Path(sys.prefix).resolve() == PROGRAM.resolve()


def last_words(lines: Sequence[str]) -> tuple[str, str] | None:
    """Of a daemon's log: why it ended, and what to do, when it said so. Pure."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("what") and said.get("level") == "error":
                cause = ": ".join(part for part in (said["what"], said.get("cause")) if part)
                return cause, str(said.get("action") or "")
    return None


def _restart(unit: str) -> str:
    """Until it is ready; else what systemctl says."""
    words = ["systemctl", "restart", unit]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_START_S, check=False, umask=_UMASK)
    return (done.stderr.strip() or "it failed") if done.returncode else ""


def _says(verb: str, unit: str) -> str:
    return _output("systemctl", verb, unit).strip()


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout


def _run(*words: str) -> None:
    """Raises UnitError."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, umask=_UMASK)
    except OSError as exc:
        raise UnitError(f"{words[0]} could not be run", cause=str(exc), action="Install systemd.") from exc
    if done.returncode:
        raise UnitError(
            f"`{' '.join(words)}` failed",
            cause=(done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1],
            action="See to it, and run the command again.",
        )
