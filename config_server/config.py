"""The config server's configuration file (TOML)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from config_server.ca import check_host, check_subject
from shared import logging
from shared.blob import BlobConfig
from shared.errors import ConfigError, RequestError
from shared.messages import PORT
from shared.naming import SAYS, is_name
from shared.vocabulary import Role


class ConfigServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    data_dir: Path
    """CA, database and operator token. Back it up; it holds private keys."""
    name: str = "cs1"
    listen: str = "0.0.0.0"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = PORT
    hosts: list[str] = []
    """DNS names and addresses under which clients reach it, besides localhost and its host name."""
    blob: BlobConfig | None = None
    """Where the machines' logs and points are; without it there are no points and no restore grants."""
    vault_file: Path | None = None
    """The keys that wrap every machine's data key. Only the config server has it, and gives daemons what they need of it, machine by
    machine. Back it up apart from its disk: without it nothing in storage can be read."""
    grant_hours: Annotated[float, msgspec.Meta(gt=0, le=168)] = 8.0
    """How long whoever restores may read the machine's container; a restore that takes longer asks again."""
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=825)] = 30.0
    """Life of the certificates that it issues; daemons renew when a third is left."""
    log_level: logging.Level = logging.Level.INFO

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
