"""What a machine, a server or a daemon may be called: the names are parts of paths, blob names, certificates and URLs."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from shared.errors import ConfigError

NAME: Final = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
"""A regular expression, to be matched at the beginning."""
SAYS: Final = "a name is 1 to 63 ASCII letters, digits, dots, hyphens and underscores, begins with a letter or digit, and has no '..'"

_NAME: Final = re.compile(NAME)
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?\Z", re.IGNORECASE | re.ASCII
)


def is_name(text: str) -> bool:
    return _NAME.match(text) is not None


def is_host(text: str) -> bool:
    """An address, or a DNS name: labels of 1 to 63 characters, as a resolver takes them."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        try:
            return _HOST.match(text if text.isascii() else text.encode("idna").decode()) is not None
        except UnicodeError:  # a label that is empty or too long
            return False
    return True


def is_server_url(url: str) -> bool:
    """Whether `url` can be a config server's: https, and a host that can be one."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme == "https"
            and is_host(parts.hostname or "")
            and parts.port != 0
            and "@" not in parts.netloc
        )
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


def check_server_url(url: str) -> None:
    """For configurations. Raises ConfigError."""
    if not is_server_url(url):
        raise ConfigError(
            f"control_url = {url!r} is no config server",
            cause="it must look like https://HOST or https://HOST:PORT",
        )
