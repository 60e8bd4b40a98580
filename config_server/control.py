"""What the handlers share: the parts of the config server, and time."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from config_server.ca import CertificateAuthority
from config_server.commands import Bell
from config_server.database import Database
from config_server.presence import Presence
from config_server.storage import Storage
from shared.errors import RequestError
from shared.messages import Revocations

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass
class Control:
    db: Database
    ca: CertificateAuthority
    storage: Storage
    certificate_life: dt.timedelta
    revoked: Revocations = field(default_factory=Revocations)
    """As the database has them."""
    presence: Presence = field(default_factory=Presence)
    bell: Bell = field(default_factory=Bell)
    """Rung with ROLE:NAME when there is a command for it, with a command's id when its result is there."""

    def now_ns(self) -> int:
        return time.time_ns()


def check_name(name: str, what: str) -> str:
    """`name`, when it can name a machine or a daemon: it becomes part of blob names, paths and
    certificates."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise RequestError(
            f"'{name}' cannot be the name of a {what}",
            cause="a name has 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first",
        )
    return name


def new_id() -> str:
    return secrets.token_hex(8)
