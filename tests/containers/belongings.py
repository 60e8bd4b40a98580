"""What a host has that an installation may leave behind: compared before and after, a removal is proved.

What a running host, pip and Python write by themselves is left out, as docs/install.md names it. Files count by kind, mode, owner and path;
of what is in them only that which says who and what there is: users, groups, units, pins, ports, processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from tests.containers.container import Container

Belongings = Mapping[str, frozenset[str]]
_BY_THEMSELVES: Final = re.compile(
    r"/(?:var/log|var/lib/systemd|var/tmp|root/\.cache)(?:/|$)"
    r"|^/var/backups/(?:alternatives|dpkg)\."  # at midnight
    r"|/__pycache__(?:/|$)"
    r"|^/(?:etc|var)/\.updated$"
    r"|^/etc/\.pwd\.lock$|^/etc/(?:passwd|group|shadow|gshadow)-$"  # what userdel keeps of the last change
)
_LISTS: Final = {
    "user": ("getent", "passwd"),
    "group": ("getent", "group"),
    "password": ("cut", "-d:", "-f1", "/etc/shadow", "/etc/gshadow"),
    "unit file": ("systemctl", "list-unit-files", "--plain", "--no-legend", "--no-pager"),
    "unit": ("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "understudy*"),
    "pin": ("find", "/sys/fs/bpf", "-mindepth", "1"),
    "in /run": ("sh", "-c", "ls -d /run/*understudy* /run/credentials/*understudy* 2> /dev/null; true"),
}
_FILES: Final = ("find", "/", "-xdev", "-ignore_readdir_race", "-printf", r"%p\t%y %m %U:%G\n")
_PORTS: Final = ("ss", "--no-header", "--listening", "--tcp", "--udp", "--numeric")
_PROCESSES: Final = ("ps", "-e", "-o", "args=")


def of(container: Container) -> Belongings:
    found = {kind: frozenset(_words(container.read(*words))) for kind, words in _LISTS.items()}
    found["file"] = frozenset(files(container.read(*_FILES, within_s=300).splitlines()))
    found["port"] = frozenset(ports(container.read(*_PORTS).splitlines()))
    found["process"] = frozenset(
        line for line in container.read(*_PROCESSES).splitlines() if "/opt/understudy" in line
    )
    return found


def files(lines: Iterable[str]) -> set[str]:
    """Of find's lines: path, tab, kind and mode and owner. Pure."""
    return {line for line in lines if not _BY_THEMSELVES.search(line.partition("\t")[0])}


def ports(lines: Iterable[str]) -> set[str]:
    """Of ss's lines: protocol and local address. Pure."""
    split = [line.split() for line in lines]
    return {f"{fields[0]} {fields[4]}" for fields in split}


def difference(before: Belongings, after: Belongings) -> list[str]:
    """One line for what came (+), and for what went (-). Pure."""
    return [
        f"{sign} {kind} {what}"
        for kind in sorted(before)
        for sign, some in (("+", after[kind] - before[kind]), ("-", before[kind] - after[kind]))
        for what in sorted(some)
    ]


def _words(text: str) -> Iterable[str]:
    """Lines, whatever stands between their columns."""
    return (" ".join(line.split()) for line in text.splitlines())
