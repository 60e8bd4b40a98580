"""Folders, files whose content is given, and configuration files. Nothing that is there is ever written over."""

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

from shared import durable
from shared.configuration.sample import sample
from shared.crashpoints import reach
from shared.errors import ConfigError, StateFileError, cause_of
from shared.service import load_config
from shared.setup.steps import Done, Outcome
from shared.toml import to_value

_AGAIN: Final = "See to it, and run the command again."


@dataclass(frozen=True)
class Folder:
    """A folder for one user. `owner` "": whoever runs this."""

    path: Path
    mode: int
    owner: str = ""

    async def look(self, dry_run: bool) -> Done:
        with durable.named(f"The folder {self.path} cannot be used", action=_AGAIN):
            if not self.path.is_dir():
                return self._done(Outcome.WOULD_CREATE)
            uid = self.path.stat().st_uid
        if self.owner and uid != _uid(self.owner):
            # A file system that was mounted there, or of a run that was killed before it gave the folder away.
            if uid == 0 and all(path.name == "lost+found" for path in self.path.iterdir()):
                return self._done(Outcome.WOULD_CREATE)
            raise StateFileError(
                f"The folder {self.path} cannot be used",
                cause=f"it belongs to {_user(uid)}, and not to {self.owner}",
                action=f"If what is in it is this daemon's: chown -R {self.owner}: {self.path}. {_AGAIN}",
            )
        return self._done(Outcome.KEPT)

    async def do(self) -> Done:
        with durable.named(f"The folder {self.path} could not be made", action=_AGAIN):
            durable.make_folder(self.path, self.mode)
            reach("setup.step")
            if self.owner:
                owner = pwd.getpwnam(self.owner)
                self.path.chmod(self.mode)
                os.chown(self.path, owner.pw_uid, owner.pw_gid)
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        whose = f"for {self.owner} alone" if self.owner and self.mode == 0o700 else f"mode {self.mode:04o}"
        return Done(step="folder", outcome=outcome, what=str(self.path), detail=whose)


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

    async def look(self, dry_run: bool) -> Done:
        with durable.named(f"The file {self.path} could not be read", action=_AGAIN):
            try:
                found = self.path.read_bytes()
            except FileNotFoundError:
                return self._done(Outcome.WOULD_CREATE)
            mode = stat.S_IMODE(self.path.stat().st_mode)
        if found.strip() == self.content.strip():
            if self.mode == 0o600 and mode & 0o077:
                return Done(
                    step=self.step,
                    outcome=Outcome.WARNING,
                    what=str(self.path),
                    detail=f"others can read it: its mode is {mode:04o}",
                    action=f"chmod 600 {self.path}, and consider it known to others.",
                )
            return self._done(Outcome.KEPT)
        if self.replace:
            return self._done(Outcome.WOULD_CREATE)
        return Done(
            step=self.step,
            outcome=Outcome.DIFFERS,
            what=str(self.path),
            detail="it is there with another content, and stays as it is",
            action=self.otherwise,
        )

    async def do(self) -> Done:
        with durable.named(f"The file {self.path} could not be written", action=_AGAIN):
            durable.make_folder(self.path.parent, 0o700 if self.mode == 0o600 else 0o755)
            reach("setup.step")
            if self.replace:
                durable.replace_file(self.path, self.content, mode=self.mode)
            else:
                durable.create_file(self.path, self.content, mode=self.mode)
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        return Done(step=self.step, outcome=outcome, what=str(self.path), detail=self.says)


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

    async def look(self, dry_run: bool) -> Done:
        if not self.path.exists():
            return self._done(Outcome.WOULD_CREATE, self.says)
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


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def known(path: Path, type_: type[msgspec.Struct]) -> dict[str, Any]:
    """What an earlier run, or an administrator, wrote; nothing where no file is. Raises ConfigError."""
    return read(path, type_) if path.exists() else {}
