"""`understudy server recover`: a config server on this host, from storage and the recovery key. Options, and the order of the steps.

All is read and checked before anything is changed here. What begins then goes on from wherever it was killed: the vault file is written
once, the data folder is put back as a restore does it, and the rest are the steps of `init`. Who is in force is decided when the server
starts (recovery/generation.py): that is the server's own doing, wherever a database was put back.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from config_server.config import ConfigServerConfig
from config_server.identity.ca import check_host
from config_server.rules.clock import rfc3339
from config_server.setup.command import Plan, after, steps_of
from config_server.setup.recovering import DataBack, Found, KeyNoted, TookOver, VaultBack, find
from deploy.systemd import host_files
from shared.api.route import PORT
from shared.errors import ConfigError, UsageError
from shared.keys.vault import FileVault
from shared.setup.checks import PortFree
from shared.setup.command import Answers, Show, parser, port, run
from shared.setup.files import known
from shared.setup.host import Host
from shared.setup.steps import Done, Step
from shared.setup.storage import add_storage, storage_of
from shared.vocabulary import Role

_VAULT: Final = "vault.json"
_SHOWN: Final = 10


def main(argv: Sequence[str]) -> int:
    made = parser(
        "understudy server recover",
        "Takes the place of an installation's config server that is gone: from the storage account and the recovery key.",
    )
    made.add_argument(
        "--recovery-key",
        type=Path,
        required=True,
        metavar="FILE",
        help="the recovery key that `understudy init` made, or another copy of the vault file; readable by you alone",
    )
    made.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="a DNS name or address under which others reach this server; may be given several times (default: as it was)",
    )
    made.add_argument(
        "--port", type=port, metavar="N", help="the port on which it is reached (default: as it was)"
    )
    made.add_argument("--listen", metavar="ADDRESS", help="where it listens (default: as it was)")
    made.add_argument(
        "--generation",
        type=int,
        metavar="N",
        help="take the state of this generation, not the newest",
    )
    made.add_argument("--yes", action="store_true", help="do not ask; without a terminal it is needed")
    add_storage(made)
    options = made.parse_args(argv)
    return run(
        Role.CONFIG_SERVER, options, lambda show: _begin(options, show), lambda done: _after(options, done)
    )


def _begin(options: argparse.Namespace, show: Show) -> Iterable[Step]:
    host = Host.of(Role.CONFIG_SERVER, host_files(), options)
    there = known(host.config, ConfigServerConfig)
    storage = storage_of(options, Answers(there), host)
    key = options.recovery_key.absolute()
    vault_file = Path(there.get("vault_file", host.folder / _VAULT))
    _check_place(host, there, key, vault_file)
    found = asyncio.run(find(storage.check, FileVault(key), options.generation))
    _tell(found)
    if not (options.dry_run or options.yes):
        _ask()
    settings = found.content.settings
    hosts = [check_host(each) for each in options.host or there.get("hosts") or settings.hosts]
    if not hosts:
        raise UsageError(
            "Missing: --host", cause="the config server that was had no name", action="Give the option."
        )
    config = {
        "name": settings.name,
        "listen": options.listen or there.get("listen") or settings.listen,
        "port": options.port or there.get("port") or settings.port or PORT,
        "certificate_days": settings.certificate_days,
        "grant_hours": settings.grant_hours,
    }
    plan = Plan(host, storage, hosts, config, vault_file, KeyNoted(key, host.folder, vault_file))
    return _steps(plan, found, show, dry_run=options.dry_run)


def _check_place(host: Host, there: Mapping[str, Any], key: Path, vault_file: Path) -> None:
    """What would be found out when half of it is done. Raises UsageError, ConfigError."""
    what = "Nothing was recovered"
    if key.resolve() == vault_file.resolve() or (vault_file.exists() and key.samefile(vault_file)):
        raise UsageError(
            what,
            cause=f"{key} is the vault file of this host itself, and the recovery key is deleted here in the end",
            action=f"Copy it (install -m 600 {key} /root/recovery.key), and give the copy: --recovery-key /root/recovery.key.",
        )
    if there.get("database", {}).get("url"):
        raise ConfigError(
            what,
            cause=f"{host.config} names a database of PostgreSQL ([database]), and what is recovered begins as a file",
            action="Is that database there, start its config server. Shall this host begin from storage: move the configuration away, and"
            " run the command again.",
        )
    if (named := there.get("data_dir")) is not None and Path(named) != host.state_dir:
        raise ConfigError(
            what,
            cause=f"{host.config} names the data folder {named}, and this command puts the state into {host.state_dir}",
            action="Move the configuration away, and run the command again.",
        )


def _steps(plan: Plan, found: Found, show: Show, *, dry_run: bool) -> Iterator[Step]:
    data_dir = plan.host.state_dir
    yield VaultBack(plan.vault_file, found.content.vault)
    yield DataBack(data_dir, plan.vault_file, found)
    if dry_run:  # the others look at what these would have made
        yield PortFree(plan.config["listen"], plan.config["port"], plan.host.role, plan.host.config)
        return
    yield from steps_of(plan, show)
    yield TookOver(plan.storage.check, data_dir, plan.host.by_unit)


def _tell(found: Found) -> None:
    said, content = found.said, found.content
    names = content.machines
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = f": {', '.join(names[:_SHOWN])}{more}" if names else ""
    if said is None:
        who = "Which config server is in force, storage does not say any more."
    else:
        since = f"since {rfc3339(said.since_ns)} (generation {said.generation})"
        who = f"In force is the config server on {said.host or 'a host without a name'}, {since}."
    reached = ", ".join(content.settings.hosts) or "nothing but its address"
    lines = (
        f"The control state is generation {found.generation}, kept in storage at {rfc3339(found.made_ns)}; what was changed later is lost.",
        f"It has {len(names)} machines{listed}. The config server is reached as {reached}.",
        who,
        "If that one runs, or comes back, it changes nothing any more within seconds from the start of this one.",
    )
    sys.stderr.write("".join(f"{_printable(line)}\n" for line in lines))


def _ask() -> None:
    """Raises UsageError unless somebody says yes."""
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing was recovered",
            cause="nobody can be asked, since this is no terminal",
            action="Say it with --yes: this host becomes the installation's config server.",
        )
    sys.stderr.write("Shall this host become the installation's config server? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(
            "Nothing was recovered", cause="it was not wanted", action="Run it again when it is."
        )


def _after(options: argparse.Namespace, done: Sequence[Done]) -> Sequence[str]:
    return (
        *after(options, done),
        "What to look at now: understudy event list; jobs that wait for a word: understudy job list.",
    )


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
