"""What a machine, a server or a daemon may be called: the names are parts of paths, blob names, certificates and URLs.

A folder in which each machine has a folder under its name (a process server's spool, a master target's images) may hold other things of
its daemon. Their names begin with a dot, as no machine's does (`.lock`, `.keys`), so that no machine takes the place of one; and no file
that a configuration names may lie there (`check_apart`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
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


def is_address(text: str) -> bool:
    """Whether it is `host:port`; an IPv6 address stands in brackets."""
    host, _, _ = text.rpartition(":")
    if host.startswith("[") != host.endswith("]") or (":" in host) != host.startswith("["):
        return False
    parts = address_of(text)
    return parts is not None and is_host(parts[0])


def address_of(text: str) -> tuple[str, int] | None:
    """Of `host:port`; two that are equal are one address, however they are written. None where there is no port, or no host."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port[:9]) < 1 << 16:
        return None
    return host.strip("[]"), int(port)


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


def check_apart(folder: Path, files: Iterable[Path | None]) -> None:
    """For configurations: machines have their folders in `folder`, under their names, so none of `files` lies there. Raises ConfigError."""
    for file in files:
        if file is not None and file.absolute().is_relative_to(folder.absolute()):
            raise ConfigError(
                f"{file} cannot lie in {folder}",
                cause="each machine has a folder under its name there, which could take the place of the file, or it that of a machine's",
                action="Put it elsewhere, for example into /etc/understudy.",
            )
