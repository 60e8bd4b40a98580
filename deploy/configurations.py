"""Which configuration each daemon has, the smallest that it runs with, and docs/configuration.md, which explains all of them.

`make docs` writes that page (`python -m deploy.configurations FILE`). Of the daemons only their configurations are imported, each when it
is asked for: a host may have what one of them needs and not what another does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from shared.configuration import page
from shared.host.toml import to_toml
from shared.vocabulary import Role

_TITLES: Final = {
    Role.AGENT: "Agent",
    Role.PROCESS_SERVER: "Process server",
    Role.MASTER_TARGET: "Master target",
    Role.CONFIG_SERVER: "Config server",
}
_URL: Final = "https://config.example.com"
_BLOB: Final = {"url": "https://account.blob.core.windows.net"}
SMALLEST: Final[Mapping[Role, Mapping[str, Any]]] = {
    Role.AGENT: {
        "machine": "web1",
        "disks": ["/dev/disk/by-id/wwn-0x5000c500a1b2c3d4"],
        "process_server": "ps1.example.com:9443",
        "control_url": _URL,
        "state_dir": "/var/lib/understudy/agent",
        "pin_dir": "/sys/fs/bpf/understudy",
        "tls": {name: f"/etc/understudy/agent/{name}.pem" for name in ("cert", "key", "ca")},
    },
    Role.PROCESS_SERVER: {
        "name": "ps1",
        "spool_dir": "/var/lib/understudy/process-server",
        "control_url": _URL,
        "tls": {name: f"/etc/understudy/process-server/{name}.pem" for name in ("cert", "key", "ca")},
        "blob": _BLOB,
    },
    Role.MASTER_TARGET: {
        "name": "mt1",
        "control_url": _URL,
        "tls": {name: f"/etc/understudy/master-target/{name}.pem" for name in ("cert", "key", "ca")},
        "blob": _BLOB,
    },
    Role.CONFIG_SERVER: {
        "data_dir": "/var/lib/understudy/config-server",
        "hosts": ["config.example.com"],
        "vault_file": "/etc/understudy/config-server/vault.json",
        "blob": _BLOB,
    },
}
"""Daemon → what must be set in an installation with a config server, on a host that was set up as deploy/systemd/README.md says."""

_INTRODUCTION: Final = """\
# Configuration

<!-- Written by `make docs` from the code that reads the files; to be changed there. -->

A daemon has one TOML file, which `--config FILE` names: `/etc/understudy/DAEMON.toml` where it is a systemd unit
([deploy/systemd](../deploy/systemd/README.md)). It is read when the daemon starts. A key that is not known, or a value that cannot be, is
refused with exit code 2; the error names the key, and which one was probably meant. Files are given by path; no secret stands in a
configuration.

- *required*: it must be set; in a table, wherever the table stands. *none*: nothing is set unless you do.
- A number stands without its unit: 32 MiB of a key that takes bytes is `33554432`, 5 min of one that takes seconds is `300`.
- `credit.window_b` is the key `window_b` of the table `credit`. It is written below a line `[credit]`, or as `credit = {window_b = …}`.
  A key belongs to the last table that stands above it, so those without a table come first.
- `[[disk]]` is written once for each disk, with the keys of that disk below it.
"""

_PROFILE: Final = """\
## Profile of the command line

`understudy` finds an installation by a file that `--profile FILE` or `UNDERSTUDY_PROFILE` names, or by a folder that has one of the name
`profile.toml` (`--lab DIR`, `UNDERSTUDY_LAB`).

"""


def type_of(role: Role) -> type[msgspec.Struct]:
    """By which `shared.daemon.service.load_config` reads a daemon's file. Raises ValueError for a role that is no daemon of ours;
    ImportError where what it needs is not installed."""
    match role:
        case Role.AGENT:
            from agent.config import AgentConfig

            return AgentConfig
        case Role.PROCESS_SERVER:
            from process_server.config import ProcessServerConfig

            return ProcessServerConfig
        case Role.MASTER_TARGET:
            from master_target.config import MasterTargetConfig

            return MasterTargetConfig
        case Role.CONFIG_SERVER:
            from config_server.config import ConfigServerConfig

            return ConfigServerConfig
        case Role.STORAGE:
            raise ValueError("an emulator of storage has no configuration file")


def reference() -> str:
    """docs/configuration.md."""
    from config_server.cli.profile import Profile

    daemons = [_section(role, title) for role, title in _TITLES.items()]
    return "\n".join([_INTRODUCTION, *daemons, _PROFILE + page.table(Profile)])


def _section(role: Role, title: str) -> str:
    smallest = to_toml(SMALLEST[role])
    return f"## {title}\n\n`{role}.toml`; the smallest of a whole installation:\n\n```toml\n{smallest}```\n\n{page.table(type_of(role))}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
