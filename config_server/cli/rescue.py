"""The worst day: commands that work from storage and vault alone, when every server is gone (storage describes itself).

Options that `restore`, `machine list`, `point list` and `point verify` share, and what storage knows of machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from click.core import ParameterSource

from config_server.cli.options import Target, find_target
from shared.api.points import PointView
from shared.errors import AccessError, ConfigError, NotFoundError, UnderstudyError, UsageError
from shared.vocabulary import MachineState

if TYPE_CHECKING:
    from config_server.cli.profile import Rescue
    from shared.blob import BlobConfig
    from shared.machine.storage import MachineStorage

HINT: Final = (
    "If it is gone for good, storage is enough: give --vault-file FILE --blob-url URL --blob-key-file FILE"
    " (also to `machine list` and `point list`)."
)
STORAGE: Final = (
    click.option("--blob-url", metavar="URL", help="The storage account,"),
    click.option(
        "--blob-container", default="understudy", show_default=True, metavar="NAME", help="container,"
    ),
    click.option("--blob-key-file", type=click.Path(path_type=Path), metavar="FILE", help="account key,"),
    click.option(
        "--blob-ca-file", type=click.Path(path_type=Path), metavar="FILE", help="CA of the storage server."
    ),
)
OPTIONS: Final = (
    click.option(
        "--vault-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Rescue without a config server: the vault, and:",
    ),
    *STORAGE,
)


def _check_unused() -> None:
    """Where no account is named. Raises UsageError for what would be passed over, since the account is a configuration's, or the
    profile's."""
    context = click.get_current_context(silent=True)
    if context is None:
        return
    names = ("blob_container", "blob_key_file", "blob_ca_file")
    if given := [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]:
        raise UsageError(
            f"{' and '.join(given)} would not be used",
            cause="no --blob-url is given, so the storage account is another, with a container and a key of its own",
            action="Give --blob-url, too; or leave these out.",
        )


def find(vault_file: Path | None, blob_url: str | None, **blob: Any) -> Target | Rescue:
    """Where the options lead; without them, to the config server. Raises what `find_target` does."""
    if vault_file is None and blob_url is None:
        _check_unused()
        return find_target()
    if vault_file is None or blob_url is None:
        raise UsageError(
            "A rescue needs both the vault and the storage account",
            action="Give --vault-file and --blob-url.",
        )
    from config_server.cli.profile import Rescue

    return Rescue(vault_file=vault_file, blob=_config(blob_url, **blob))


def storage_of(blob_url: str | None, vault_file: Path | None, **blob: Any) -> BlobConfig | None:
    """For what is only listed: the vault opens nothing there. None without these options."""
    if blob_url is None and vault_file is not None:
        raise UsageError("A rescue needs the storage account", action="Give --blob-url.")
    if blob_url is None:
        _check_unused()
        return None
    return _config(blob_url, **blob)


def _config(
    blob_url: str, blob_container: str, blob_key_file: Path | None, blob_ca_file: Path | None
) -> BlobConfig:
    from shared.blob import BlobConfig

    return BlobConfig(
        url=blob_url, container=blob_container, account_key_file=blob_key_file, ca_file=blob_ca_file
    )


class StoredMachine(msgspec.Struct):
    """A machine as storage knows it."""

    name: str
    points: int
    last_point: PointView | None
    state: str = MachineState.UNKNOWN
    cause: str = "read from storage: no server was asked"


def is_of_the_user(exc: UnderstudyError) -> bool:
    """Whether the request is wrong, and no config server would grant it. A token that it does not know, and what it lacks itself, are
    none of it: it may have lost its database, its vault, or its mind."""
    return isinstance(exc, (UsageError, NotFoundError)) and not isinstance(exc, (AccessError, ConfigError))


async def machines(config: BlobConfig) -> list[StoredMachine]:
    """All machines that storage has, with their points. One whose log cannot be read is listed with the reason."""
    from shared.machine.storage import MachineStorage

    async with MachineStorage.connect(config) as storage:
        return [await _machine(storage, name) for name in await storage.machines(thorough=True)]


async def _machine(storage: MachineStorage, name: str) -> StoredMachine:
    from shared.recovery import listing

    try:
        found = [point for point in (await listing.read(storage, name)).points if not point.lost]
    except UnderstudyError as exc:
        return StoredMachine(name, 0, None, cause=str(exc))
    return StoredMachine(name, len(found), found[-1] if found else None)
