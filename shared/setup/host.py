"""A daemon's host: its user, folders and unit. By systemd where root runs this on a host that systemd runs, else by hand: then the files
are of whoever runs this, and starting the daemon is his."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from shared import durable
from shared.errors import ProgramPlaceError, UnitError, UsageError
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
_START_S: Final = 180.0
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

    def prepared(self) -> Iterator[Step]:
        """Users, folders, and the unit's file."""
        if self.by_unit:
            yield _Program()
            for path, text in sorted(self.files.items()):
                if path.parent != _UNIT_FOLDER or path.stem == self.unit:
                    yield GivenFile(
                        "unit-file", Path(path), text.encode(), otherwise=_CHANGED, replace=self.replace_units
                    )
            yield _Users(self)
        else:
            yield Folder(self.etc, 0o755)
            yield Folder(self.folder, 0o700)
        yield Folder(self.state_dir, 0o700, self.user)


@contextlib.contextmanager
def alone(etc: Path) -> Iterator[None]:
    """One set-up at a time on this host (of those that share `etc`); the lock is on a folder that is there, and goes with the process.
    Raises UsageError."""
    place = next(folder for folder in etc.absolute().parents if folder.is_dir())
    with durable.named(f"The folder {place} could not be locked"):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UsageError(
                "Nothing was set up",
                cause=f"another set-up is at work on this host (it holds {place})",
                action="Wait until that one is done, and run the command again.",
            ) from exc
        yield
    finally:
        os.close(fd)


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
                action=f"Start it: {sys.executable} -m {host.module} --config {host.config}",
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
    done = subprocess.run(words, capture_output=True, text=True, timeout=_START_S, check=False)
    return (done.stderr.strip() or "it failed") if done.returncode else ""


def _says(verb: str, unit: str) -> str:
    return _output("systemctl", verb, unit).strip()


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout


def _run(*words: str) -> None:
    """Raises UnitError."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except OSError as exc:
        raise UnitError(f"{words[0]} could not be run", cause=str(exc), action="Install systemd.") from exc
    if done.returncode:
        raise UnitError(
            f"`{' '.join(words)}` failed",
            cause=(done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1],
            action="See to it, and run the command again.",
        )
