"""A lab's folder: settings, places, lock.

DIR/lab.json            settings (this module)      DIR/lab.lock     taken by commands that change something
DIR/profile.toml        for the command line (config_server/cli/profile.py)
DIR/NAME.toml           configuration of a daemon   DIR/tls/NAME/    its key and certificate
DIR/config-server/      CA, database, operator token
DIR/secrets/            vault file, storage account key (0700)
DIR/spool/  DIR/blob/   cache of the process server, Azurite's data
DIR/master-target/      keys that the master target was given, sealed
DIR/log/NAME.log        output; at 16 MiB it becomes NAME.log.1

lab.json is written first, so that a lab whose making was cut off can go on or be wiped; a wipe renames it to lab.wiping.json before it
deletes anything, so that what is left of a lab is never taken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from deploy.lab.vocabulary import Daemon
from shared import decoding
from shared.errors import UNDECODABLE, LabError, LabNotFoundError, StateFileError, cause_of
from shared.host import durable

MACHINE: Final = "lab"
HOST: Final = "127.0.0.1"
PINS: Final = Path("/sys/fs/bpf/understudy")
VERSION: Final = 1
_STATE_FILE: Final = "lab.json"
_WIPED_FILE: Final = "lab.wiping.json"
_LOCK_FILE: Final = "lab.lock"
LAST: Final = (_WIPED_FILE, _LOCK_FILE)
"""What a wipe deletes last: with them it can be run again."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """What `lab up` was asked for."""

    v: int = VERSION
    id: str
    """Random; names what the lab leaves outside of its folder: pins, firewall rule."""
    disks: tuple[str, ...]
    port_base: int = 9440
    point_interval_s: float = 300.0
    segment_seconds: float = 5.0
    ring_mib: int = 64
    cache_mib: int = 2048
    blob_url: str = ""
    """An account elsewhere; empty for the lab's own Azurite."""
    blob_container: str = "understudy"
    blob_key_file: str = ""
    blob_ca_file: str = ""


class Lab:
    """A lab: its folder and settings."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.named: Final = folder
        self.folder: Final = folder.resolve()
        """Whatever links lead to it: its daemons are found by this path, and it is in their command lines."""
        self.settings = settings

    @classmethod
    def open(cls, folder: Path) -> Lab:
        """Raises LabNotFoundError, or LabError for one that this version cannot use or that is half deleted."""
        if not _exists(folder / _STATE_FILE) and _exists(folder / _WIPED_FILE):
            raise LabError(
                f"The lab in {folder} is half deleted",
                cause="`lab down --wipe` was interrupted",
                action=f"Run it again: understudy lab down --wipe --dir {folder}.",
            )
        return cls._read(folder, _STATE_FILE)

    @classmethod
    def open_to_wipe(cls, folder: Path) -> Lab:
        """Also one that is half deleted."""
        return cls._read(folder, _STATE_FILE if _exists(folder / _STATE_FILE) else _WIPED_FILE)

    @classmethod
    def _read(cls, folder: Path, name: str) -> Lab:
        try:
            data = (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise LabNotFoundError(f"{folder} is no lab", cause=f"it has no {_STATE_FILE}") from exc
        except OSError as exc:
            raise LabError(
                f"The lab in {folder} could not be read",
                cause=cause_of(exc),
                action="Run as root." if isinstance(exc, PermissionError) else "Check the folder's name.",
            ) from exc
        try:
            settings = decoding.decode(data, type=Settings)
        except UNDECODABLE as exc:
            raise LabError(f"The lab in {folder} could not be read", cause=f"{name}: {exc}") from exc
        if settings.v != VERSION:
            raise LabError(
                f"The lab in {folder} could not be read",
                cause=f"it was made by another version (its format is {settings.v}, not {VERSION})",
            )
        return cls(folder, settings)

    @classmethod
    def is_one(cls, folder: Path) -> bool:
        """Whether a lab is there, whole or half deleted."""
        return _exists(folder / _STATE_FILE) or _exists(folder / _WIPED_FILE)

    def save(self) -> None:
        durable.replace_file(self.folder / _STATE_FILE, msgspec.json.encode(self.settings), mode=0o600)

    def begin_wipe(self) -> None:
        """From here on nothing takes it for a lab. Needs no room."""
        with contextlib.suppress(FileNotFoundError):  # begun before
            (self.folder / _STATE_FILE).rename(self.folder / _WIPED_FILE)

    # ---- places

    @property
    def own_azurite(self) -> bool:
        return not self.settings.blob_url

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """In the order in which they are started."""
        return tuple(daemon for daemon in Daemon if daemon is not Daemon.AZURITE or self.own_azurite)

    def ports(self, daemon: Daemon) -> list[int]:
        """Ports on which a daemon listens; with the default base, agents find the process server at 9443."""
        offset = {Daemon.CONFIG_SERVER: 0, Daemon.PROCESS_SERVER: 3, Daemon.AZURITE: 10}.get(daemon)
        return [] if offset is None else [self.settings.port_base + offset]

    @property
    def config_server_url(self) -> str:
        return f"https://{HOST}:{self.ports(Daemon.CONFIG_SERVER)[0]}"

    @property
    def ca_file(self) -> Path:
        return self.folder / Daemon.CONFIG_SERVER / "ca.pem"

    @property
    def operator_token_file(self) -> Path:
        return self.folder / Daemon.CONFIG_SERVER / "operator.token"

    @property
    def vault_file(self) -> Path:
        return self.folder / "secrets" / "vault.json"

    @property
    def account_key_file(self) -> Path:
        return self.folder / "secrets" / "account.key"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def blob(self) -> Path:
        return self.folder / "blob"

    @property
    def pin_dir(self) -> Path:
        return PINS / f"lab-{self.settings.id}"

    def config_file(self, daemon: Daemon) -> Path:
        return self.folder / f"{daemon}.toml"

    def tls_dir(self, daemon: Daemon) -> Path:
        return self.folder / "tls" / daemon

    def log_file(self, daemon: Daemon) -> Path:
        return self.folder / "log" / f"{daemon}.log"


def is_rest(folder: Path) -> bool:
    """Whether the folder holds nothing but what a `lab up` leaves that was cut off before there was a lab."""
    return folder.is_dir() and all(
        entry.name in (_LOCK_FILE, "lost+found") or entry.name.startswith(f".{_STATE_FILE}.")
        for entry in folder.iterdir()
    )


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One changing command at a time. Raises LabError when another one is at work."""
    path = folder / _LOCK_FILE
    what = f"The lab in {folder} could not be locked"
    try:
        with durable.named(what):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except StateFileError as exc:
        if isinstance(exc.__cause__, PermissionError):
            raise LabError(what, cause=exc.cause, action="Run as root.") from exc
        raise
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LabError(
                f"The lab in {folder} is busy",
                cause="another `understudy lab` command is changing it",
                action="Wait until that one is done.",
            ) from exc
        yield
    finally:
        os.close(fd)
