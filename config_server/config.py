"""The config server's configuration file (TOML). What stands below a field is for whoever sets it (docs/configuration.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from config_server.identity.ca import check_host, check_subject
from config_server.store.config import DatabaseConfig
from shared.api.route import PORT
from shared.blob import BlobConfig
from shared.daemon import logging
from shared.errors import ConfigError, RequestError
from shared.naming import SAYS, is_name
from shared.vocabulary import Role


class ConfigServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    data_dir: Path
    """The folder of the CA, the database, the operator token and its own certificate. It holds private keys; back it up
    (`python -m config_server backup`)."""
    database: DatabaseConfig = msgspec.field(default_factory=DatabaseConfig)
    """Where the database is (docs/operations/database.md)."""
    name: str = "cs1"
    """Its name in the installation, in its own certificate."""
    listen: str = "0.0.0.0"
    """The address on which it is reached: `0.0.0.0` for every IPv4 address of the host, `::` for every address of IPv4 and IPv6 (of IPv4
    alone where the kernel has no IPv6), else one address, or a name, of which the first address is taken."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = PORT
    """The port on which it is reached; it stands in everybody's `control_url`, unless it is 443."""
    hosts: list[str] = []
    """The DNS names and addresses under which daemons and the command line reach it, for its certificate. `localhost` and the host's own
    name need not be named."""
    blob: BlobConfig | None = None
    """The storage account with the machines' logs and points. Without it no points are shown, and nobody is admitted to storage for a
    restore."""
    vault_file: Path | None = None
    """The file with the keys that wrap every machine's data key. Without it no daemon gets a key. Keep a copy where no server is: without
    it nothing in storage can be read. Whoever moves it moves the note beside it, too (`….ca`): by that a server whose data folder is gone
    knows that it is, and does not begin anew."""
    grant_hours: Annotated[float, msgspec.Meta(gt=0, le=168)] = 8.0
    """How long whoever restores a machine may read its container. A restore that takes longer asks again."""
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=825)] = 30.0
    """How long the certificates are valid that it issues. Daemons renew theirs when a third of that is left."""
    log_level: logging.Level = logging.Level.INFO
    """From which level on lines are written to the log."""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ConfigError(f"name = {self.name!r} is no name", cause=SAYS)
        try:
            check_subject(Role.CONFIG_SERVER, self.name)
            for host in self.hosts:
                check_host(host)
        except RequestError as exc:
            raise ConfigError(
                "The config server's configuration is not valid", cause=f"{exc.what}: {exc.cause}"
            ) from exc
