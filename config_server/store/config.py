"""Where the database is: a part of the config server's configuration."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from shared.errors import ConfigError

_SCHEMES = ("postgresql", "postgres")


class DatabaseConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    url: str = ""
    """The database in PostgreSQL 15 or newer, for example `postgresql://understudy@db1.example.com/understudy?sslmode=verify-full`: a
    connection URI as libpq has it, without a password. The database is there, empty, and the user's own; it needs no other
    right. Several hosts (`db1,db2`, with `target_session_attrs=read-write`) are one cluster. Empty: it is a file in `data_dir`."""
    password_file: Path | None = None
    """The file with the user's password, which others cannot read. Without it none is sent: a socket, or a client certificate, says who it
    is."""

    def __post_init__(self) -> None:
        if not self.url:
            return
        what = "The database of the configuration cannot be used"
        try:
            parts = urlsplit(self.url)
            has_password = ":" in parts.netloc.rpartition("@")[0]
        except ValueError as exc:
            raise ConfigError(what, cause=f"{exc} (`url` in [database])") from exc
        if parts.scheme not in _SCHEMES:
            raise ConfigError(
                what,
                cause="`url` in [database] does not begin with postgresql://",
                action="Name a database of PostgreSQL, or leave [database] out: then it is a file of the data folder.",
            )
        if has_password or any(name == "password" for name, _ in parse_qsl(parts.query)):
            raise ConfigError(
                what,
                cause="`url` in [database] has a password in it",
                action="Put it into a file that only the config server's user can read, and name that: password_file.",
            )

    @property
    def is_file(self) -> bool:
        return not self.url

    @property
    def place(self) -> str:
        """For people."""
        parts = urlsplit(self.url)
        return (
            f"{parts.path.lstrip('/') or 'the database'} on {parts.netloc.rpartition('@')[2] or 'this host'}"
        )
