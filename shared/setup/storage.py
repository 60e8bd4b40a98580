"""The storage account in a set-up: its options, and its key and CA on this host. For those that use it; an agent does not."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from shared.blob import BlobConfig
from shared.blob.config import is_account_url, read_key
from shared.errors import ConfigError, UsageError, cause_of
from shared.setup.access import too_open
from shared.setup.checks import Check
from shared.setup.command import Answers
from shared.setup.files import Folder, GivenFile
from shared.setup.host import CREDENTIAL, Host
from shared.setup.steps import Done, Outcome, Step

_ANOTHER_KEY: Final = (
    f"If the account's key was changed: install -m 600 FILE {CREDENTIAL}, then restart the units that use it."
)
_ANOTHER_CA: Final = "If storage's CA was changed, put the new one there, and restart the units that use it."


@dataclass(frozen=True)
class _KeyInPlace(Check):
    """Where no unit gets a copy: the administrator's own file, which the configuration names."""

    file: Path

    async def look(self, dry_run: bool) -> Done:
        try:
            wrong = too_open(self.file.stat(), 0o600)
        except OSError as exc:
            wrong = f"it could not be looked at: {cause_of(exc)}"
        return Done(
            step="storage-key",
            outcome=Outcome.WARNING if wrong else Outcome.CHECKED,
            what=str(self.file),
            detail=wrong or "the storage account's key, which the daemon reads there",
            action=f"chmod 600 {self.file}, and consider it known to others." if wrong else "",
        )


class Storage(NamedTuple):
    check: BlobConfig
    """As this command reaches it."""
    daemon: dict[str, Any]
    """As it stands in the daemon's configuration."""
    files: tuple[Step, ...]
    """The steps that put key and CA where the unit finds them."""


def add_storage(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--blob-url", metavar="URL", help="the storage account: https://ACCOUNT.blob.core.windows.net"
    )
    made.add_argument(
        "--blob-container", metavar="NAME", help="the installation's vault container (default: understudy)"
    )
    made.add_argument(
        "--blob-key-file",
        type=Path,
        metavar="FILE",
        help="file with the account's key; without it, this host's identity in Azure",
    )
    made.add_argument(
        "--blob-ca-file",
        type=Path,
        metavar="FILE",
        help="CA of the storage server, where it is no public one",
    )


def storage_of(options: argparse.Namespace, answers: Answers, host: Host) -> Storage:
    """Raises UsageError, ConfigError."""
    url = answers.value(
        options.blob_url,
        ("blob", "url"),
        "--blob-url",
        "URL of the storage account (https://ACCOUNT.blob.core.windows.net)",
    )
    # Who gives the account as an option gives a whole command, and pastes it with the lines that follow: a question would eat the next.
    asks = options.blob_url is None
    container = answers.value(
        options.blob_container,
        ("blob", "container"),
        "--blob-container",
        "Its vault container",
        "understudy",
        asks=asks,
    )
    key = answers.value(
        _text(options.blob_key_file),
        ("blob", "account_key_file"),
        "--blob-key-file",
        "File with the account's key (none: this host has an identity in Azure)",
        "",
        asks=asks,
    )
    ca = _text(options.blob_ca_file) or answers.known("blob", "ca_file")
    answers.check()
    key_file = None if not key else CREDENTIAL if Path(key) == host.credential else Path(key).absolute()
    ca_file = None if not ca else Path(ca).absolute()
    config = BlobConfig(url=url, container=container, account_key_file=key_file, ca_file=ca_file)
    if not is_account_url(config):
        raise UsageError(
            f"'{url}' is no storage account",
            cause="its URL must look like https://ACCOUNT.blob.core.windows.net",
            action="Correct --blob-url.",
        )
    if not host.by_unit:
        return Storage(config, _plain(config), () if key_file is None else (_KeyInPlace(key_file),))
    files: list[Step] = []
    as_unit = config
    if key_file is not None:
        content = (read_key(key_file) + "\n").encode()
        says = "the storage account's key, for root alone; systemd gives each unit a copy"
        files.append(Folder(CREDENTIAL.parent, 0o700, is_shared=True))
        files.append(GivenFile("storage-key", CREDENTIAL, content, 0o600, says, _ANOTHER_KEY))
        as_unit = msgspec.structs.replace(as_unit, account_key_file=host.credential)
    if ca_file is not None:
        place = host.etc / "storage-ca.pem"
        files.append(
            GivenFile(
                "storage-ca",
                place,
                _read(ca_file),
                0o644,
                "storage's CA",
                _ANOTHER_CA,
                reader=host.user,
            )
        )
        as_unit = msgspec.structs.replace(as_unit, ca_file=place)
    return Storage(config, _plain(as_unit), tuple(files))


def _plain(config: BlobConfig) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    return {name: value for name, value in found.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"The file {path} could not be read", cause=cause_of(exc), action="Correct --blob-ca-file."
        ) from exc
