"""Folders, files whose content is given, and configuration files. Nothing that is there is ever written over; who may read and write it is
set right, or told (access.py)."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.configuration.sample import sample
from shared.crashpoints import reach
from shared.daemon.service import load_config
from shared.errors import ConfigError, StateFileError, cause_of
from shared.host import durable
from shared.host.toml import to_value
from shared.setup.access import Access, admits, too_open, user_name
from shared.setup.steps import Done, Outcome

_AGAIN: Final = "See to it, and run the command again."


@dataclass(frozen=True)
class Folder:
    """A folder for one user (0700), or for all. `owner` "": whoever runs this."""

    path: Path
    mode: int
    owner: str = ""
    reader: str = ""
    """The daemon's user, who must get in; "": whoever runs this."""
    is_shared: bool = False
    """Others than this program have files in it, and may have let somebody in: told, and left as it is."""
    is_restored: bool = False
    """Root may have put the daemon's files there, from a backup: they are given to the owner with the folder."""

    async def look(self, dry_run: bool) -> Done:
        with durable.named(f"The folder {self.path} cannot be used", action=_AGAIN):
            if not self.path.is_dir():
                return self._done(Outcome.WOULD_CREATE)
            found = self.path.stat()
            if self._is_to_give(found):
                return self._done(Outcome.WOULD_CREATE)
            wrong = self._wrong(found)
        if wrong:
            return self._done(Outcome.WOULD_MEND, wrong)
        shared = too_open(found, self.mode | 0o055)
        if shared and not found.st_mode & stat.S_ISVTX:  # the sticky bit: nobody moves another's folders
            # It may be many people's, or somebody's way to let a group in: that is his to change.
            return self._done(
                Outcome.WARNING,
                f"{shared}; they could put other folders in the place of those that are in it",
                f"chmod go-w {self.path}",
            )
        if self.is_shared and (others := too_open(found, self.mode)):
            return self._done(Outcome.KEPT, f"{others}, which stays so, since others have files in it, too")
        return self._done(Outcome.KEPT)

    async def do(self) -> Done:
        with durable.named(f"The folder {self.path} could not be made", action=_AGAIN):
            found = self.path.stat() if self.path.is_dir() else None
            wrong = "" if found is None or self._is_to_give(found) else self._wrong(found)
            if found is not None and wrong:
                return self._mended(found, wrong)
            durable.make_folder(self.path, self.mode)
            reach("setup.step")
            if self.owner:
                owner = pwd.getpwnam(self.owner)
                self.path.chmod(self.mode)
                # The folder is the last: until then nobody but root gets in, and another run gives the rest.
                for path in (*self._files(), self.path):
                    os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        return self._done(Outcome.CREATED)

    def _is_to_give(self, found: os.stat_result) -> bool:
        """A file system that was mounted there, or of a run that was killed before it gave the folder away; or what root has restored, and
        nobody else could enter. Raises StateFileError."""
        if not self.owner or found.st_uid == _uid(self.owner):
            return False
        files = self._files()
        if found.st_uid == 0 and not files:
            return True
        if self.is_restored and found.st_uid == 0 and not too_open(found, 0o700):
            ours = {0, _uid(self.owner)}
            if all(path.lstat().st_uid in ours for path in files):
                return True
        raise StateFileError(
            f"The folder {self.path} cannot be used",
            cause=f"it belongs to {user_name(found.st_uid)}, and not to {self.owner}",
            action=f"If what is in it is this daemon's: chown -R {self.owner}: {self.path}. {_AGAIN}",
        )

    def _files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.relative_to(self.path).parts[0] != "lost+found"]

    def _wrong(self, found: os.stat_result) -> str:
        if self.is_shared:
            return ""
        if self.mode == 0o700:
            return too_open(found, self.mode)
        if self.reader and not admits(found, self.reader):
            return f"{self.reader} cannot get in: its mode is {stat.S_IMODE(found.st_mode):04o}"
        return ""

    def _mended(self, found: os.stat_result, wrong: str) -> Done:
        before = stat.S_IMODE(found.st_mode)
        mode = before & 0o7700 if self.mode == 0o700 else before | self.mode
        self.path.chmod(mode)
        see = f"See what others left in it, or took: ls -la {self.path}" if self.mode == 0o700 else ""
        return self._done(Outcome.MENDED, f"{wrong}; now it is {mode:04o}", see)

    def _done(self, outcome: Outcome, detail: str = "", action: str = "") -> Done:
        whose = f"for {self.owner} alone" if self.owner and self.mode == 0o700 else f"mode {self.mode:04o}"
        return Done(
            step="folder", outcome=outcome, what=str(self.path), detail=detail or whose, action=action
        )


@dataclass(frozen=True)
class GivenFile:
    """A file with this content. Another one that is there is kept, and told; `replace`: it is written anew."""

    step: str
    path: Path
    content: bytes
    mode: int = 0o644
    says: str = ""
    """What it is for."""
    otherwise: str = ""
    """What to do where another one is there."""
    replace: bool = False
    reader: str = ""
    """The daemon's user, who must be able to read it; "": whoever runs this, or systemd."""

    async def look(self, dry_run: bool) -> Done:
        done = self._content()
        if done.outcome is Outcome.WOULD_CREATE or not (wrong := self._wrong()):
            return done
        if not self.path.is_symlink():
            return self._done(Outcome.WOULD_MEND, wrong)
        where = f"{wrong}, where the link {self.path} leads"
        more = f"; {done.detail}" if done.outcome is Outcome.DIFFERS else ""
        return self._done(
            Outcome.WARNING, f"{where}{more}", f"See to it there (chown, chmod). {done.action}".strip()
        )

    async def do(self) -> Done:
        if self._content().outcome is not Outcome.WOULD_CREATE:
            return self._mended()
        with durable.named(f"The file {self.path} could not be written", action=_AGAIN):
            durable.make_folder(self.path.parent, 0o700 if self.mode == 0o600 else 0o755)
            reach("setup.step")
            if self.replace:
                durable.replace_file(self.path, self.content, mode=self.mode)
            else:
                durable.create_file(self.path, self.content, mode=self.mode)
        return self._done(Outcome.CREATED)

    def _content(self) -> Done:
        with durable.named(f"The file {self.path} could not be read", action=_AGAIN):
            try:
                found = self.path.read_bytes()
            except FileNotFoundError:
                return self._done(Outcome.WOULD_CREATE)
        if found.strip() == self.content.strip():
            return self._done(Outcome.KEPT)
        if self.replace:
            return self._done(Outcome.WOULD_CREATE)
        return self._done(
            Outcome.DIFFERS, "it is there with another content, and stays as it is", self.otherwise
        )

    def _wrong(self) -> str:
        """Of what is there; "": nothing."""
        with durable.named(f"The file {self.path} could not be read", action=_AGAIN):
            left = ", ".join(map(str, self._left()))
            copies = f"a run that was killed left {left} beside it" if left else ""
            return self._access.wrong() or too_closed(self.path, self.reader) or copies

    def _left(self) -> list[Path]:
        return durable.leftovers(self.path, self.content) if self.mode == 0o600 else []

    def _mended(self) -> Done:
        done, detail, more = self._content(), self._wrong(), ""
        if self._access.wrong():
            detail = self._access.close()
            more = "Consider it known to others." if self.mode == 0o600 else "See that nobody has changed it."
        elif too_closed(self.path, self.reader):
            detail = opened(self.path, self.reader, self.mode)
        with durable.named(f"A copy of {self.path} could not be removed", action=_AGAIN):
            for copy in self._left():
                durable.remove_file(copy)
        if done.outcome is not Outcome.DIFFERS:
            return self._done(Outcome.MENDED, detail, more)
        return self._done(Outcome.MENDED, f"{detail}; {done.detail}", f"{more} {done.action}".strip())

    @property
    def _access(self) -> Access:
        return Access(self.path, self.mode, os.geteuid(), os.getegid())

    def _done(self, outcome: Outcome, detail: str = "", action: str = "") -> Done:
        return Done(
            step=self.step, outcome=outcome, what=str(self.path), detail=detail or self.says, action=action
        )


@dataclass
class Configuration:
    """A configuration file with every key explained. One that is there is whoever's wrote it last: where it says something else than
    `values`, that is told, and stays."""

    path: Path
    type: type[msgspec.Struct]
    values: Mapping[str, Any]
    says: str = "every key is explained there"
    step: str = "configuration"
    made: bool = False
    """By this run."""
    reader: str = ""
    """The daemon's user, who must be able to read it; "": whoever runs this."""

    async def look(self, dry_run: bool) -> Done:
        if not self.path.exists():
            return self._done(Outcome.WOULD_CREATE, self.says)
        done = self._content()
        with durable.named(f"The configuration {self.path} could not be read", action=_AGAIN):
            if wrong := too_closed(self.path, self.reader):
                return self._done(Outcome.WOULD_MEND, wrong)
            wrong = Access(self.path, 0o644, os.geteuid(), os.getegid()).wrong()
        if not wrong:
            return done
        # It is an administrator's, who may want it so.
        detail = f"{wrong}; who can write it can have the daemon do anything. {done.detail}"
        outcome = done.outcome if done.outcome is Outcome.DIFFERS else Outcome.WARNING
        fix = f"chown and chmod 644 {self.path}, unless those are to be trusted with it."
        return self._done(outcome, detail, f"{fix} {done.action}".strip())

    def _content(self) -> Done:
        found = read(self.path, self.type)
        if unlike := list(differences(plain(self.values), found)):
            return self._done(
                Outcome.DIFFERS,
                f"{'; '.join(unlike)}. The file stays as it is",
                "If this run is right, correct the file (or move it away, and run the command again) and restart the daemon.",
            )
        more = sorted(found.keys() - plain(self.values).keys())
        return self._done(Outcome.KEPT, f"it also sets {', '.join(more)}" if more else self.says)

    async def do(self) -> Done:
        if self.path.exists() and too_closed(self.path, self.reader):
            done = self._content()
            detail = opened(self.path, self.reader, 0o644)
            more = f"; {done.detail}" if done.outcome is Outcome.DIFFERS else ""
            return self._done(Outcome.MENDED, f"{detail}{more}", done.action)
        text = sample(self.type, self.values)
        with durable.named(f"The configuration {self.path} could not be written", action=_AGAIN):
            durable.make_folder(self.path.parent, 0o755)
            with contextlib.suppress(FileExistsError):  # somebody else's since the look
                durable.create_file(self.path, text.encode(), mode=0o644)
                self.made = True
        return self._done(Outcome.CREATED, self.says)

    def _done(self, outcome: Outcome, detail: str, action: str = "") -> Done:
        return Done(step=self.step, outcome=outcome, what=str(self.path), detail=detail, action=action)


def read(path: Path, type_: type[msgspec.Struct]) -> dict[str, Any]:
    """What a configuration file sets, as it stands there. Raises ConfigError for one that its daemon would refuse."""
    load_config(path, type_)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"Configuration file {path} could not be read", cause=cause_of(exc)) from exc


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As TOML has them."""
    found: dict[str, Any] = msgspec.to_builtins(values, enc_hook=str)
    return {
        key: plain(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in found.items()
        if value is not None
    }


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What `found` says otherwise, key by key, in words; what it says beside `wanted` is no difference. Pure."""
    for key, value in wanted.items():
        there = found.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            yield from differences(value, there, f"{prefix}{key}.")
        elif there != value:
            is_said = "is not set there" if there is None else f"is {_shown(there)} there"
            yield f"{prefix}{key} {is_said}, and would be {_shown(value)}"


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, Mapping) else to_value(value)


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:  # (dry run: it is not made yet)
        return None


def too_closed(path: Path, reader: str) -> str:
    """In words; "": `reader` can read it. Raises OSError."""
    if not reader or admits(found := path.stat(), reader):
        return ""
    return f"{reader} cannot read it: its mode is {stat.S_IMODE(found.st_mode):04o}"


def opened(path: Path, reader: str, mode: int) -> str:
    """What others may read, and an umask took from them; in words. Raises StateFileError."""
    with durable.named(f"The file {path} could not be opened to {reader}", action=_AGAIN):
        was = too_closed(path, reader)
        now = stat.S_IMODE(path.stat().st_mode) | mode
        path.chmod(now)
    return f"{was}; now it is {now:04o}"


def known(path: Path, type_: type[msgspec.Struct]) -> dict[str, Any]:
    """What an earlier run, or an administrator, wrote; nothing where no file is. Raises ConfigError."""
    return read(path, type_) if path.exists() else {}
