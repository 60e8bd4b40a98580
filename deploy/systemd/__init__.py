"""What systemd needs to run the daemons: their units, users and folders. The files lie beside this module, in a checkout and in a wheel."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

_UNITS: Final = PurePosixPath("/etc/systemd/system")
_OTHERS: Final = {
    "sysusers.conf": PurePosixPath("/usr/lib/sysusers.d/understudy.conf"),
    "tmpfiles.conf": PurePosixPath("/usr/lib/tmpfiles.d/understudy.conf"),
}


def host_files() -> dict[PurePosixPath, str]:
    """What stands in each file, by its path on a host. Users come before folders: whoever writes them runs systemd-sysusers, then
    systemd-tmpfiles --create, then systemctl daemon-reload."""
    found = {}
    for file in files(__name__).iterdir():
        if file.name in _OTHERS:
            found[_OTHERS[file.name]] = file.read_text(encoding="utf-8")
        elif file.name.endswith(".service"):
            found[_UNITS / file.name] = file.read_text(encoding="utf-8")
    return found
